"""Every public function with one argument at a time replaced by something it cannot use.

Run `python -m tests.attacks.arguments` for a table of what each says.
"""

import contextlib
import inspect
import tempfile
import warnings
from pathlib import Path

import torch
from torch import nn

import rankedit as rk

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
        "ledoit_wolf": (rk.ledoit_wolf, {"moment": moment()}),
        "oas": (rk.oas, {"moment": moment()}),
        "Ledger": (rk.Ledger, {"layer": rows(OUT, IN), "metric": metric(), "softness": 0.0}),
        "Ledger.add": (
            lambda **a: ledger().add("b", **a),
            {"keys": rows(1, IN, seed=5), "values": rows(1, OUT)},
        ),
        "Ledger.conflicts": (book.conflicts, {"threshold": 0.9}),
        "LowRank": (rk.LowRank, {"up": rows(OUT, 1), "down": rows(1, IN)}),
        "GatedEdit": (rk.GatedEdit, gate | {"floor": 0.1}),
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
        "fingerprint": (rk.fingerprint, {"module": layers[2]}),
        "attach": (
            lambda **a: rk.attach(**a).detach(),
            {"model": layers, "edits": edits, "strength": 1.0},
        ),
        "detach_all": (rk.detach_all, {"model": model()}),
        "fuse_": (lambda model=None, **a: rk.fuse_(model, **a), {"model": model(), "edits": edits}),
        "unfuse_": (rk.unfuse_, {"model": fused()}),
        "save": (rk.save, {"items": edits, "path": Path(folder) / "new.safetensors"}),
        "load": (rk.load, {"path": saved(folder)}),
        "check_base": (rk.check_base, {"model": layers, "loaded": rk.load(saved(folder))}),
        "to_lora": (
            rk.to_lora,
            {"edits": edits, "path": Path(folder) / "out", "layout": rk.PEFT},
        ),
        "from_lora": (rk.from_lora, {"path": exported(folder)}),
        "OutputSite": (
            rk.OutputSite,
            {"where": torch.arange(N), "count": N, "scale": torch.ones(N)},
        ),
        "ValueSearch": (
            rk.ValueSearch,
            {"steps": 2, "learning_rate": 0.1, "clamp": 1.0, "decay": 0.0, "kl": 0.0},
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
        "Provenance": (rk.Provenance, {"model": "x"}),
    }


def wrong(value):
    """What an argument is replaced by: of other types, and tensors that cannot be computed with."""
    yield from {
        "None": None,
        "text": "m",
        "object": object(),
        "list": [1, "a"],
        "number": -3,
        "nan": float("nan"),
        "moment": rk.SecondMoment(IN),
        "metric of another width": rk.Metric.identity(IN + 1),
    }.items()
    like = value if isinstance(value, torch.Tensor) and value.ndim else rows(N, IN)
    yield "no axes", torch.tensor(1.0)
    yield "an axis more", like[None].float()
    yield "empty", like[:0]
    yield "integers", torch.ones(like.shape, dtype=torch.long)
    yield "complex", torch.ones(like.shape, dtype=torch.complex64)
    yield "meta", like.to("meta")
    yield "sparse", like.to_sparse()
    yield "not finite", torch.full(like.shape, float("nan"))
    yield "huge", torch.full(like.shape, 1e80, dtype=torch.float64)
    yield "too huge", torch.full(like.shape, 1e300, dtype=torch.float64)


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
