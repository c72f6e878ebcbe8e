"""Every public function refuses what it cannot use with an error of the library, by name."""

import inspect
from functools import cache

import pytest
import torch
from torch import nn

import rankedit as rk
from tests.attacks.arguments import attempts, calls

# What a message calls an argument, where another word is as clear.
ALSO = {
    "layer": ("values",),
    "name": ("called", "among the edited projections"),
    "model": ("projection",),
    "moment": ("SecondMoment",),
    "statistics": ("SecondMoment", "metric"),
    "batches": ("batch", "projection"),
    "which": ("select",),
    "pattern": ("select",),
    "edits": ("edit", "the layer itself"),
    "keys": ("statistics", "key 0"),
    "images": ("key 0",),
    "items": ("tensor", "names"),
    "path": ("'m'",),
}


def is_right(argument, error):
    if error is None:
        return True
    named = any(word in str(error) for word in (argument, *ALSO.get(argument, ())))
    return isinstance(error, rk.RankeditError) and named


@cache
def outcomes():
    found = {}
    for call, argument, kind, error in attempts():
        found.setdefault((call, argument), []).append((kind, error))
    return found


@pytest.fixture(scope="module")
def table():
    return outcomes()


def test_each_wrong_argument_is_refused_by_name(table):
    faults = [
        f"{call} {argument}: {kind}: {type(error).__name__}: {error}"
        for (call, argument), tried in table.items()
        for kind, error in tried
        if not is_right(argument, error)
    ]
    assert not faults, "\n".join(faults)


def test_no_public_function_is_left_out(tmp_path):
    tried = {call.partition(".")[0] for call in calls(tmp_path)}
    functions = {
        name for name in rk.__all__ if inspect.isfunction(getattr(rk, name)) and name.islower()
    }
    assert functions <= tried


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (None, "solve_edit: metric must be a Metric, got NoneType None"),
        (rk.SecondMoment(3), "solve_edit: metric must be a Metric, got SecondMoment"),
        (rk.Metric.identity(4), r"keys must have shape \[n, 4\].*4 is the width of the metric"),
    ],
)
def test_what_is_no_metric_of_the_keys(metric, message):
    with pytest.raises(rk.ShapeError, match=message):
        rk.solve_edit(torch.zeros(2, 3), torch.ones(1, 3), torch.ones(1, 2), metric)


def test_the_arguments_of_collect():
    batches = [torch.ones(2, 3)]
    for wrong, message in (
        ({"model": "m"}, "collect: model must be a torch.nn.Module, got str 'm'"),
        ({"which": 3}, "collect: which must be a pattern"),
        ({"which": []}, "collect: which must name at least one"),
        ({"which": [3]}, "collect: which must be a pattern"),
        ({"which": {"0": 3}}, r"collect: which\['0'\] must be a Module or Projection"),
        ({"batches": None}, "collect: batches must be a"),
        ({"batches": "text"}, "collect: batches must be a"),
        ({"call": 3}, "collect: call must be a function"),
        ({"mask": torch.ones(2)}, "collect: mask must be a key"),
        ({"provenance": "x"}, "collect: provenance must be a Provenance"),
        ({"shard": 1}, "collect: shard must be a bool"),
    ):
        given = {"model": nn.Linear(3, 2), "which": "*", "batches": batches, "progress": False}
        with pytest.raises(rk.ShapeError, match=message):
            rk.collect(**given | wrong)


class Mixed(nn.Module):
    """One dense block, and experts in one parameter, as in mixtures whose first block is dense."""

    def __init__(self):
        super().__init__()
        self.dense = nn.ModuleDict({"down_proj": nn.Linear(3, 3)})
        self.experts = nn.Module()
        self.experts.down_proj = nn.Parameter(torch.ones(4, 3, 3))
        self.conv = nn.Conv1d(3, 3, 1)
        self.places = nn.Parameter(torch.ones(1, 5, 3))

    def forward(self, x):
        return self.dense["down_proj"](x) @ self.experts.down_proj[0] + self.places[0, 0]


def test_fused_experts_are_never_left_out_in_silence():
    model, data = Mixed(), [torch.randn(2, 3)]
    message = r"'experts.down_proj' \[4, 3, 3\] and 0 others match too and are left out"
    for which in ("*down_proj", ["*.down_proj", "places"][:1]):
        with pytest.warns(rk.RankeditWarning, match=message):
            found = rk.collect(model, which, data, progress=False)
        assert list(found) == ["dense.down_proj"]
    rk.collect(model, "dense.down_proj", data, progress=False)
    rk.collect(model, "dense.*", data, progress=False)


def test_fused_experts_of_a_real_mixture():
    transformers = pytest.importorskip("transformers")
    config = transformers.Qwen3MoeConfig(
        vocab_size=30,
        hidden_size=16,
        intermediate_size=32,
        moe_intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_experts=4,
        num_experts_per_tok=2,
        mlp_only_layers=[0],
    )
    model = transformers.Qwen3MoeForCausalLM(config)
    data = [{"input_ids": torch.arange(30)[None]}]
    found = rk.collect(model, "*down_proj", data, progress=False)
    stack = "model.layers.1.mlp.experts.down_proj"
    assert list(found) == ["model.layers.0.mlp.down_proj", *(f"{stack}.{n}" for n in range(4))]
