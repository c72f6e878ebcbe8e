"""Every public function with one argument at a time replaced by something it cannot use.

Run `python -m tests.attacks.arguments` for a table of what each says.
"""

import contextlib
import inspect
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import nn

import rankedit as rk
from rankedit import gates

IN, OUT, N = 6, 4, 2


def rows(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(IN, IN), nn.Tanh(), nn.Linear(IN, OUT))


def metric():
    return rk.Metric.from_moment(moment())


def moment():
    return rk.SecondMoment(IN).update(rows(50, IN))


def low_rank():
    return rk.LowRank(rows(OUT, 1), rows(1, IN))


def gated():
    return rk.GatedEdit(rows(N, IN), rows(N, OUT, seed=1), metric())


def shard_in(folder):
    """The file of the only shard of some data."""
    path = Path(folder) / "shard.safetensors"
    moment = rk.SecondMoment(IN).update(torch.randn(9, IN))
    rk.save(moment, path, metadata={"shard": rk.Shard(1, 1).mark("c", {})})
    return path


def saved(folder):
    path = Path(folder) / "edits.safetensors"
    rk.save({"2": low_rank()}, path, model=model())
    return path


def exported(folder):
    rk.to_lora({"2": low_rank()}, Path(folder) / "lora", layout=rk.PEFT)
    return Path(folder) / "lora"


def fused():
    layers = model()
    rk.fuse_(layers, {"2": low_rank()})
    return layers


def ledger():
    book = rk.Ledger(rows(OUT, IN), metric())
    book.add("a", rows(1, IN), rows(1, OUT))
    return book


def attached(use):
    with rk.attach(model(), {"2": gated()}) as found:
        use(found)


def searched(layers, **given):
    def loss():
        return layers(rows(N, IN)).square().sum(1)

    sites = {"0": rk.OutputSite(torch.arange(N), count=N)}
    options = rk.ValueSearch(steps=2)
    arguments = {"model": layers, "sites": sites, "loss": loss, "options": options, **given}
    return rk.optimise_value(**arguments)


def calls(folder):
    """`{call: (function, valid arguments)}`; all that the package's `__all__` offers."""
    keys, values, layers = rows(N, IN), rows(N, OUT, seed=1), model()
    solve = {"layer": rows(OUT, IN), "keys": keys, "values": values, "metric": metric()}
    gate = {"keys": keys, "targets": values, "metric": metric(), "gate": rk.Sigmoid()}
    small = {"input": rows(3, IN)}
    edits = {"2": low_rank()}
    book, matrix = ledger(), moment().matrix
    return {
        "solve_edit": (rk.solve_edit, solve | {"softness": 0.0, "hold": rows(1, IN, seed=9)}),
        "solve_edit.two_sided": (rk.solve_edit, solve | {"value_metric": rk.Metric.identity(OUT)}),
        "CrossCovariance": (rk.CrossCovariance, {"dim": IN, "labels": 2}),
        "CrossCovariance.update": (
            lambda **a: rk.CrossCovariance(IN, 2).update(**a),
            {"x": rows(N, IN), "z": rows(N, 2)},
        ),
        "CrossCovariance.merge_": (
            lambda **a: rk.CrossCovariance(IN, 2).merge_(**a),
            {"other": rk.CrossCovariance(IN, 2)},
        ),
        "solve_edit.module": (rk.solve_edit, solve | {"layer": nn.Linear(IN, OUT)}),
        "linear_output": (
            lambda layer, keys: rk.linear_output(layer, keys),
            {"layer": rows(OUT, IN), "keys": keys},
        ),
        "linear_output.module": (
            lambda layer, keys: rk.linear_output(layer, keys),
            {"layer": layers[2], "keys": keys},
        ),
        "linear_output_transposed": (
            lambda layer, keys: rk.linear_output_transposed(layer, keys),
            {"layer": rows(OUT, IN), "keys": values},
        ),
        "SecondMoment": (rk.SecondMoment, {"dim": IN}),
        "SecondMoment.update": (
            lambda **a: rk.SecondMoment(IN).update(**a),
            {"x": keys, "mask": torch.ones(N).bool(), "weights": torch.ones(N)},
        ),
        "SecondMoment.merge_": (lambda **a: moment().merge_(**a), {"other": moment()}),
        "Metric.from_moment": (
            rk.Metric.from_moment,
            {"moment": moment(), "ridge": 1e-3, "shrinkage": 0.1},
        ),
        "Metric.from_matrix": (rk.Metric.from_matrix, {"matrix": matrix, "ridge": 1e-3}),
        "Metric.identity": (rk.Metric.identity, {"dim": IN, "scale": 1.0}),
        "Metric.null_space": (
            rk.Metric.null_space,
            {
                "statistics": torch.diag(torch.tensor([1.0, 1, 0, 0])),
                "relative": 1e-6,
                "scale": 1.0,
            },
        ),
        "Metric.scaled": (lambda **a: metric().scaled(**a), {"factor": 2.0}),
        "Metric.extended": (lambda **a: metric().extended(**a), {"keys": keys, "weights": 1.0}),
        "Metric.restricted": (lambda **a: metric().restricted(**a), {"basis": keys}),
        "Metric.solve": (lambda **a: metric().solve(**a), {"x": keys}),
        "Metric.inner": (lambda **a: metric().inner(**a), {"x": keys, "y": keys}),
        **{
            f"Metric.{name}": (lambda name=name, **a: getattr(metric(), name)(**a), {"x": keys})
            for name in ("whiten", "energy", "reach", "apply", "half")
        },
        "ledoit_wolf": (rk.ledoit_wolf, {"moment": moment()}),
        "oas": (rk.oas, {"moment": moment()}),
        "relative_change": (rk.relative_change, {"before": moment(), "after": moment()}),
        "Ledger": (rk.Ledger, {"layer": rows(OUT, IN), "metric": metric(), "softness": 0.0}),
        "Ledger.add": (
            lambda **a: ledger().add("b", **a),
            {"keys": rows(1, IN, seed=5), "values": rows(1, OUT)},
        ),
        "Ledger.replace": (
            lambda **a: ledger().replace("a", **a),
            {"keys": rows(1, IN, seed=5), "values": rows(1, OUT)},
        ),
        "Ledger.remove": (lambda **a: ledger().remove(**a), {"name": "a"}),
        "Ledger.conflicts": (book.conflicts, {"threshold": 0.9}),
        "LowRank": (rk.LowRank, {"up": rows(OUT, 1), "down": rows(1, IN)}),
        "GatedEdit": (rk.GatedEdit, gate | {"floor": 0.1}),
        "LowRank.to": (low_rank().to, {"dtype": torch.float64, "device": "cpu"}),
        "LowRank.drift": (low_rank().drift, {"statistics": moment()}),
        "LowRank.compress": (
            rk.LowRank(rows(OUT, 2), rows(2, IN)).compress,
            {"rank": 1, "metric": metric()},
        ),
        "GatedEdit.from_images": (
            rk.GatedEdit.from_images,
            {"keys": keys, "targets": values, "images": gated().images, "gate": rk.Sigmoid()},
        ),
        "GatedEdit.with_targets": (gated().with_targets, {"targets": values}),
        "GatedEdit.with_gate": (gated().with_gate, {"gate": rk.Identity(), "floor": 0.5}),
        "GatedEdit.similarity": (gated().similarity, {"x": keys}),
        "GatedEdit.opening": (gated().opening, {"x": keys}),
        "GatedEdit.linearised": (
            lambda **a: gated().linearised(lambda k: k @ rows(IN, OUT), **a),
            {"inputs": keys},
        ),
        "merge": (rk.merge, {"edits": [gated()]}),
        "collect": (
            rk.collect,
            {"model": layers, "which": "*", "batches": [rows(3, IN)], "mask": None}
            | {
                "call": lambda batch: layers(batch),
                "provenance": rk.Provenance(),
                "progress": False,
            },
        ),
        "Checkpoint": (rk.Checkpoint, {"path": "x", "seconds": 1.0}),
        "select": (rk.select, {"model": layers, "pattern": "*"}),
        "probe": (
            rk.probe,
            {"model": layers, "inputs": small, "vary": {"a": {"input": rows(3, IN, seed=2)}}},
        ),
        "Projection": (rk.Projection, {"module": layers[2], "rows": slice(0, 2)}),
        "Projection.split": (
            lambda sizes: rk.Projection(layers[2]).split(sizes, OUT - 1),
            {"sizes": 1},
        ),
        "Projection.outputs": (rk.Projection(layers[2]).outputs, {"keys": keys}),
        "Projection.outputs_transposed": (
            rk.Projection(layers[2]).outputs_transposed,
            {"values": values},
        ),
        "Sketch.of": (rk.Sketch.of, {"layers": {"2": layers[2]}}),
        "Sketch.parse": (rk.Sketch.parse, {"text": rk.Sketch.of({"2": layers[2]}).text()}),
        "fingerprint": (rk.fingerprint, {"module": layers[2]}),
        "attach": (
            lambda **a: rk.attach(**a).detach(),
            {"model": layers, "edits": edits, "strength": 1.0},
        ),
        "Attachment.set": (
            lambda **a: attached(lambda edits: edits.set(**a)),
            {"strength": 0.5, "bias": 0.5, "temperature": 0.2},
        ),
        "Attachment.set.name": (
            lambda name: attached(lambda edits: edits.set(name, strength=1.0)),
            {"name": "2"},
        ),
        "Attachment.refresh": (
            lambda **a: attached(lambda found: found.refresh(**a)),
            {"edits": {"2": gated()}},
        ),
        "detach_all": (rk.detach_all, {"model": model()}),
        "fuse_": (lambda model=None, **a: rk.fuse_(model, **a), {"model": model(), "edits": edits}),
        "unfuse_": (rk.unfuse_, {"model": fused()}),
        "save": (
            rk.save,
            {"items": edits, "path": Path(folder) / "new.safetensors", "metadata": {"a": "b"}}
            | {"model": layers, "dtype": torch.float32},
        ),
        "load": (rk.load, {"path": saved(folder), "gates": [rk.Sigmoid]}),
        "merge_shards": (rk.merge_shards, {"paths": [shard_in(folder)], "partial": False}),
        "save_merged": (
            rk.save_merged,
            {"merged": rk.merge_shards([shard_in(folder)]), "path": Path(folder) / "merged"},
        ),
        "check_base": (rk.check_base, {"model": layers, "loaded": rk.load(saved(folder))}),
        "to_lora": (
            rk.to_lora,
            {"edits": edits, "path": Path(folder) / "out", "layout": rk.PEFT, "component": "a"}
            | {"model": layers, "dtype": torch.float32, "config": {"revision": "x"}}
            | {"metadata": {"a": "b"}},
        ),
        "from_lora": (
            rk.from_lora,
            {"path": exported(folder), "component": "", "modules": ["2"]},
        ),
        "OutputSite": (
            rk.OutputSite,
            {"where": torch.arange(N), "count": N, "scale": torch.ones(N)}
            | {"factor": torch.ones(N)},
        ),
        "ValueSearch": (
            rk.ValueSearch,
            {"steps": 2, "learning_rate": 0.1, "clamp": 1.0, "decay": 0.0, "kl": 0.0}
            | {"key_learning_rate": 0.1, "stop_below": 0.1, "patience": 3},
        ),
        "optimise_value": (
            lambda **a: searched(**{"layers": layers, **a}),
            {
                "sites": {"0": rk.OutputSite(torch.arange(N), count=N)},
                "options": rk.ValueSearch(steps=2),
                "metrics": {},
            },
        ),
        "Sigmoid": (rk.Sigmoid, {"bias": 0.5, "temperature": 0.1}),
        "JointSigmoid": (rk.JointSigmoid, {"bias": 0.5, "temperature": 0.1}),
        "gates.opening": (gates.opening, {"gate": rk.Sigmoid(), "similarity": rows(3, N)}),
        "Provenance": (rk.Provenance, {"model": "x"}),
    }


def wrong(value):
    """What an argument is replaced by: of other types, and tensors that cannot be computed with."""
    like = value if isinstance(value, torch.Tensor) and value.ndim else rows(N, IN)
    yield from {
        "None": None,
        "text": "m",
        "bytes": b"m",
        "object": object(),
        "class": nn.Linear,
        "function": lambda *_: None,
        "list": [1, "a"],
        "list of numbers": like.tolist(),
        "empty list": [],
        "empty mapping": {},
        "mapping": {"2": 3, 4: None},
        "array": like.detach().numpy(),
        "number of an array": np.float32(0.5),
        "number": -3,
        "zero": 0,
        "bool": True,
        "nan": float("nan"),
        "infinity": float("inf"),
        "complex number": 1j,
        "module": nn.Tanh(),
        "module of another width": nn.Linear(IN + 1, OUT + 1),
        "module without data": nn.Linear(IN, OUT, device="meta"),
        "edit of another size": rk.LowRank(rows(OUT + 1, 1), rows(1, IN + 1)),
        "moment": rk.SecondMoment(IN),
        "metric of another width": rk.Metric.identity(IN + 1),
    }.items()
    yield "no axes", torch.tensor(1.0)
    yield "bools", torch.ones(like.shape, dtype=torch.bool)
    yield "bytes of a picture", torch.ones(like.shape, dtype=torch.uint8)
    yield "8 bits", like.to(torch.float8_e4m3fn)
    yield "half precision", like.half()
    yield "double precision", like.double()
    yield "learning", like.detach().clone().float().requires_grad_()
    yield "transposed", like.mT.contiguous() if like.ndim > 1 else like[:, None]
    yield "not contiguous", like.repeat_interleave(2, -1)[..., ::2]
    yield "one row more", torch.cat([like, like[:1]])
    yield "an axis more", like[None].float()
    yield "empty", like[:0]
    yield "integers", torch.ones(like.shape, dtype=torch.long)
    yield "complex", torch.ones(like.shape, dtype=torch.complex64)
    yield "meta", like.to("meta")
    yield "sparse", like.to_sparse()
    yield "not finite", torch.full(like.shape, float("nan"))
    yield "huge", torch.full(like.shape, 1e80, dtype=torch.float64)
    yield "too huge", torch.full(like.shape, 1e300, dtype=torch.float64)


# What runs a model or a function of the caller's passes on what that raises: by call and argument,
# the values that such code may fail on.
_CALLED = ("class", "function", "module", "module of another width", "module without data")
PASSED_ON = {
    ("Metric.from_moment", "shrinkage"): _CALLED,
    ("collect", "mask"): _CALLED,
    ("collect", "call"): _CALLED,
    ("collect", "which"): _CALLED,
    ("collect", "batches"): ("8 bits", "half precision", "double precision", "transposed"),
    ("select", "pattern"): _CALLED,
    ("probe", "model"): _CALLED,
}


def attempts():
    """Every call with every wrong value: call, argument, value, and what came of it."""
    # In the folder, for a path that is a text is a file somewhere.
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.chdir(folder),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        for call, entry in calls(folder).items():
            function, arguments = entry
            function(**arguments)  # the table itself must be right
            for argument, value in arguments.items():
                for kind, replaced in wrong(value):
                    if kind in PASSED_ON.get((call, argument), ()):
                        continue
                    yield call, argument, kind, outcome(function, arguments | {argument: replaced})


def outcome(function, arguments):
    """The exception, or None."""
    try:
        function(**arguments)
    except Exception as error:
        return error
    return None


def main():
    """Print what is not as it should be."""
    for call, argument, kind, error in attempts():
        named = error is None or argument in str(error)
        if not (error is None or isinstance(error, rk.RankeditError)) or not named:
            print(f"{call} | {argument} | {kind} | {type(error).__name__}: {str(error)[:140]!r}")


if __name__ == "__main__":
    assert inspect.ismodule(rk)
    main()
