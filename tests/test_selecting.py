"""select finds projections by name, parent and predicate, and says what it did not find."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from rankedit.errors import ProjectionError
from rankedit.models.projections import find, select
from tests.layer_cases import Conv1D, Doubling


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn = nn.ModuleDict({"q": nn.Linear(4, 4), "k": Doubling(nn.Linear(4, 4))})
        self.norm = nn.LayerNorm(4)
        self.mlp = nn.Sequential(Conv1D(8, 4), nn.ReLU(), nn.Linear(8, 4))


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.down_proj = nn.Parameter(torch.randn(3, 4, 8))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.ModuleDict({"h": nn.ModuleList([Block(), Block()]), "experts": Experts()})


class TestSelect:
    def test_by_name_glob_regex_predicate_and_list(self, model):
        assert list(select(model, "h.0.attn.q")) == ["h.0.attn.q"]
        assert list(select(model, "*.mlp.2")) == ["h.0.mlp.2", "h.1.mlp.2"]
        assert list(select(model, re.compile(r"h\.\d\.attn\.[qk]"))) == [
            "h.0.attn.q",
            "h.0.attn.k",
            "h.1.attn.q",
            "h.1.attn.k",
        ]
        chosen = select(model, lambda name, module: isinstance(module, Conv1D))
        assert list(chosen) == ["h.0.mlp.0", "h.1.mlp.0"]
        assert list(select(model, ["h.1.mlp.0", "h.0.*.q"])) == ["h.1.mlp.0", "h.0.attn.q"]
        assert select(model, "*.q")["h.1.attn.q"] is model["h"][1].attn["q"]

    def test_a_wrapped_layer_is_one_projection(self, model):
        assert list(select(model, "h.0.attn.*")) == ["h.0.attn.q", "h.0.attn.k"]
        exact = select(model, "h.0.attn.k.base_layer")
        assert exact["h.0.attn.k.base_layer"] is model["h"][0].attn["k"].base_layer

    def test_by_parent(self, model):
        assert list(select(model, "*", parent=nn.Sequential)) == [
            "h.0.mlp.0",
            "h.0.mlp.2",
            "h.1.mlp.0",
            "h.1.mlp.2",
        ]
        assert list(select(model, "*q", parent="h.1.*")) == ["h.1.attn.q"]
        second = select(model, "*.0", parent=lambda name, _: name.startswith("h.1"))
        assert list(second) == ["h.1.mlp.0"]

    def test_names_are_those_without_wrappers(self, model):
        compiled = torch.compile(model, backend="eager")
        assert list(select(compiled, "*.mlp.2")) == ["h.0.mlp.2", "h.1.mlp.2"]
        model["h"][0] = torch.compile(model["h"][0], backend="eager")
        assert list(select(model, "*.mlp.2")) == ["h.0.mlp.2", "h.1.mlp.2"]
        assert find(model, "h.0.mlp.2") is model["h"][0]._orig_mod.mlp[2]

    @pytest.mark.parametrize("wanted", ["h.0.mlp.3", "h.7.mlp.2", "*.mlp.c_proj"])
    def test_an_unknown_name_lists_the_nearest(self, model, wanted):
        with pytest.raises(ProjectionError, match=r"nearest names are .*h\.\*\.mlp\.[02]"):
            select(model, wanted)
        with pytest.raises(ProjectionError, match="the nearest names are"):
            find(model, wanted)

    def test_a_pattern_is_never_read_by_find(self, model):
        with pytest.raises(ProjectionError, match="no projection of ModuleDict matches"):
            find(model, "*.mlp.2")

    def test_other_refusals(self, model):
        with pytest.raises(ProjectionError, match="LayerNorm is not a projection"):
            select(model, "h.0.norm")
        with pytest.raises(ProjectionError, match="a predicate gets"):
            select(model, lambda name, module: False)
        with pytest.raises(ProjectionError, match="no projections"):
            select(nn.ReLU(), "x")
        with pytest.raises(ProjectionError, match="under parent 'nowhere'"):
            select(model, "*.mlp.2", parent="nowhere")

    @pytest.mark.parametrize("wanted", ["experts.down_proj", "*.down_proj"])
    def test_fused_experts_are_refused_with_a_remedy(self, model, wanted):
        with pytest.raises(ProjectionError, match=r"3-dimensional parameter of fused.*Edit a"):
            select(model, wanted)
