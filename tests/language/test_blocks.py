"""The down-projection of each block is found by what it does, in every family of models."""

from dataclasses import replace

import pytest
import torch
from rankedit_recipes.language import LanguageError, find_blocks
from rankedit_recipes.language.model.blocks import Block
from rankedit_recipes.language.model.layers import all_blocks, choose_blocks, shared_count
from torch import nn

import rankedit as rk
from tests.language.models import FAMILIES, FUSED_EXPERTS, LLAMA, NORMALISED, build, family, quick


@pytest.mark.parametrize("name", FAMILIES)
def test_the_down_projection_is_found_in_every_family(name):
    model, names = family(name)
    blocks = find_blocks(model)
    assert [block.down for block in blocks] == names
    assert [block.index for block in blocks] == [0, 1, 2]
    # A gated shared expert is not added as it is either.
    direct = name not in {*NORMALISED, "qwen2_moe"}
    assert all(block.direct is direct for block in blocks)
    assert not any(module._forward_hooks for module in model.modules())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_half_precision_and_training_mode_do_not_matter():
    model, names = family("llama")
    model = model.bfloat16().train()
    assert [block.down for block in find_blocks(model)] == names
    assert all(module.training for module in model.modules())


GROWN = {name: FAMILIES[name] for name in ("llama", "gpt2", "gpt_neox", "opt")}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("factor", [1e-2, 100])
@pytest.mark.parametrize("name", [*GROWN, "gemma2"])
def test_blocks_are_what_they_are_in_every_precision_and_of_any_size(name, factor, dtype):
    """As in real models, whose first block gives twenty times what it reads."""
    model, names = family(name)
    expected = find_blocks(model)
    weight = model.get_submodule(names[0]).weight
    weight.data *= factor
    found = find_blocks(model.to(dtype))
    assert found == expected
    direct = name in GROWN
    assert [block.direct for block in found] == [direct] * 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_residual_that_is_scaled_is_not_taken_for_one_that_is_not(dtype):
    model = build("Granite", {**LLAMA, "residual_multiplier": 0.97})
    assert not any(block.direct for block in find_blocks(model.to(dtype)))
    model = build("Granite", {**LLAMA, "residual_multiplier": 1.0})
    assert all(block.direct for block in find_blocks(model.to(dtype)))


def test_fused_experts_are_refused_with_what_to_do_instead():
    model = build(*FUSED_EXPERTS)
    with pytest.raises(LanguageError, match=r"experts, fused into 'mlp.experts.*pass layers="):
        find_blocks(model)
    for layers in ("model.layers.0.mlp.experts.down_proj.1", "*.experts.down_proj"):
        with pytest.raises(LanguageError, match=r"is one expert of a mixture.*pass layers="):
            all_blocks(model, layers)
    blocks = all_blocks(model, "*.self_attn.o_proj")
    assert [block.down for block in blocks] == [
        f"model.layers.{i}.self_attn.o_proj" for i in range(3)
    ]


class Routed(nn.Module):
    """Experts as modules of their own, each of which reads some of the tokens."""

    def __init__(self, width):
        super().__init__()
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 8), nn.SiLU(), nn.Linear(8, width)) for _ in range(2)
        )

    def forward(self, x):
        first = x.sum(-1) > 0
        output = torch.zeros_like(x)
        for expert, chosen in zip(self.experts, (first, ~first), strict=True):
            output[chosen] = expert(x[chosen])
        return output


def test_routed_experts_are_refused():
    model = build("Llama", LLAMA)
    for layer in model.model.layers:
        layer.mlp = Routed(LLAMA["hidden_size"])
    with pytest.raises(LanguageError, match=r"mixture of experts, such as 'model.layers.0.mlp.exp"):
        find_blocks(model)


def test_what_is_no_language_model_is_refused():
    with pytest.raises(LanguageError, match="expected a causal language model"):
        find_blocks(nn.Sequential(nn.ModuleList([nn.Linear(2, 2)])))
    model, _ = family("llama")
    model.model.layers = nn.ModuleList()
    with pytest.raises(LanguageError, match="runs no list of blocks one after the other"):
        find_blocks(model)


def test_blocks_are_chosen_by_rule_number_or_name():
    model, names = family("gpt2")
    blocks = find_blocks(model)

    def chosen(layers, **settings):
        method = quick("memit", **settings)
        return [block.index for block in choose_blocks(model, blocks, layers, method)]

    assert chosen(None) == [1]
    assert chosen(None, depth=1.0) == [2]
    assert chosen(1) == [1]
    assert chosen(-1) == [2]
    assert chosen([2, 0]) == [0, 2]
    many = [b for n in range(8) for b in blocks]
    assert len(choose_blocks(model, many, None, quick("memit"))) == 4
    assert len(choose_blocks(model, many, None, quick("rome"))) == 1
    by_name = all_blocks(model, names[1:])
    assert [
        block.down for block in choose_blocks(model, by_name, names[1:], quick("memit"))
    ] == names[1:]


def test_wrong_layers_are_refused():
    model, _ = family("gpt2")
    blocks = find_blocks(model)
    for layers in (3, -4, [0, 9], [], True, [False], 1.0):
        with pytest.raises(LanguageError, match="layers must be numbers of blocks from -3 to 2"):
            choose_blocks(model, blocks, layers, quick("memit"))
    with pytest.raises(LanguageError, match=r"in each block of 'transformer.h', got .*in no block"):
        all_blocks(model, ["lm_head"])
    with pytest.raises(LanguageError, match="several in one block"):
        all_blocks(model, "transformer.h.0.mlp.*")
    with pytest.raises(LanguageError, match="consistent=False edits one block"):
        choose_blocks(model, blocks, [0, 1], quick("rome", consistent=False))


def test_blocks_that_normalise_cannot_share_an_edit():
    model = family("gemma2")[0]
    blocks = find_blocks(model)
    with pytest.warns(
        rk.RankeditWarning, match=r"edits 1 of 4 .* normalises .*layers=\[8\] to acc"
    ):
        assert len(choose_blocks(model, blocks * 8, None, quick("memit"))) == 1
    with pytest.warns(
        rk.RankeditWarning, match="edits 1 of 4 .* pass layers= one number to accept"
    ):
        assert shared_count(blocks * 8, quick("memit")) == 1
    # Who says which, or wants one only, knows.
    assert len(choose_blocks(model, blocks * 8, 8, quick("memit"))) == 1
    assert len(choose_blocks(model, blocks * 8, None, quick("rome"))) == 1
    with pytest.raises(LanguageError, match="normalises what its projection gives"):
        choose_blocks(model, blocks, [0, 1], quick("memit"))


def test_a_block_that_normalises_bars_only_what_it_lies_between():
    plain = [Block(n, f"layers.{n}", f"layers.{n}.down", direct=True) for n in range(30)]

    def chosen(*indirect, **settings):
        blocks = [replace(b, direct=b.index not in indirect) for b in plain]
        return [
            b.index for b in choose_blocks(nn.Module(), blocks, None, quick("memit", **settings))
        ]

    assert chosen() == [6, 7, 8, 9, 10]
    # Beside the blocks that share, such as the first or the last one of a model.
    assert chosen(0, 5, 11, 29) == [6, 7, 8, 9, 10]
    with pytest.warns(rk.RankeditWarning, match="edits 3 of 5 .*'layers.7' normalises"):
        assert chosen(6, 7) == [8, 9, 10]
    with pytest.warns(rk.RankeditWarning, match="edits 1 of 5 .*'layers.10' normalises"):
        assert chosen(10) == [10]
    with pytest.warns(rk.RankeditWarning, match=r"edits 2 of 5 .*no more up to 'layers.1'"):
        assert chosen(depth=0.03) == [0, 1]
