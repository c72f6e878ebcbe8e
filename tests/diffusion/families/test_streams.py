"""Where text enters denoisers: keys, values, rows and what these depend on, for any family."""

from __future__ import annotations

import re

import pytest
import torch
from rankedit_recipes.diffusion.errors import PipelineError
from rankedit_recipes.diffusion.parts import Parts
from torch import nn

from tests.diffusion import pipelines
from tests.diffusion.families import joint, tiny

X, XT, XPT = {"text"}, {"text", "time"}, {"text", "pooled", "time"}
XTI, ALL = XT | {"picture"}, XPT | {"picture"}
ADDED = "transformer_blocks.{}.attn.add_{}_proj"
# By family, what its source says: keys and values of each attention that reads the text, on which
# rows of how many, and what they depend on.
EXPECTED = {
    "stable_diffusion_3": [(ADDED, 0, "all", XPT), (ADDED, 1, "all", ALL)],
    "flux": [
        (ADDED, 0, "all", XPT),
        (ADDED, 1, "all", ALL),
        ("single_transformer_blocks.{}.attn.to_{}", 0, "first", ALL),
    ],
    "flux_2": [
        (ADDED, 0, "all", XT),
        (ADDED, 1, "all", XTI),
        ("single_transformer_blocks.{}.attn.to_qkv_mlp_proj[{}]", 0, "first", XTI),
        ("single_transformer_blocks.{}.attn.to_qkv_mlp_proj[{}]", 1, "first", XTI),
    ],
    "qwen_image": [(ADDED, 0, "all", XT), (ADDED, 1, "all", XTI)],
    "qwen_image_2_1": [
        ("transformer_blocks.{}.attn.to_{}", 0, "first", X),
        ("transformer_blocks.{}.attn.to_{}", 1, "first", X),
    ],
    "z_image": [
        ("context_refiner.{}.attention.to_{}", 0, "first", X),
        ("layers.{}.attention.to_{}", 0, "later", XT),
    ],
    "lumina_2": [
        ("context_refiner.{}.attn.to_{}", 0, "all", X),
        # Its norm is scaled by the time, before the projections.
        ("layers.{}.attn.to_{}", 0, "first", XT),
    ],
    "chroma": [
        (ADDED, 0, "all", XT),
        (ADDED, 1, "all", XTI),
        ("single_transformer_blocks.{}.attn.to_{}", 0, "first", XTI),
    ],
    "aura_flow": [  # behind eight registers
        ("joint_" + ADDED, 0, "later", XT),
        ("joint_" + ADDED, 1, "later", XTI),
        ("single_transformer_blocks.{}.attn.to_{}", 0, "later", XTI),
    ],
    "cogview4": [
        ("transformer_blocks.{}.attn1.to_{}", 0, "first", XT),
        ("transformer_blocks.{}.attn1.to_{}", 1, "first", XTI),
    ],
    "hidream": [
        ("double_stream_blocks.{}.block.attn1.to_{}_t", 0, "all", XPT),
        ("double_stream_blocks.{}.block.attn1.to_{}_t", 1, "all", ALL),
        ("single_stream_blocks.{}.block.attn1.to_{}", 0, "later", ALL),
    ],
    "hunyuan_image": [
        ("context_embedder.token_refiner.refiner_blocks.{}.attn.to_{}", 0, "all", X),
        (ADDED, 0, "all", XT),
        (ADDED, 1, "all", XTI),
        ("single_transformer_blocks.{}.attn.to_{}", 0, "later", XTI),
    ],
    "prx": [
        ("blocks.{}.attention.txt_kv_proj[{}]", 0, "all", X),
        ("blocks.{}.attention.txt_kv_proj[{}]", 1, "all", X),
    ],
    "nucleus": [(ADDED, 0, "all", X), (ADDED, 1, "all", X)],
    "kandinsky_5": [
        ("text_transformer_blocks.{}.self_attention.to_{}", 0, "all", XPT),
        ("visual_transformer_blocks.{}.cross_attention.to_{}", 0, "all", XPT),
        ("visual_transformer_blocks.{}.cross_attention.to_{}", 1, "all", XPT),
    ],
    "wan": [("blocks.{}.attn2.to_{}", 0, "all", X), ("blocks.{}.attn2.to_{}", 1, "all", X)],
    "cogvideox": [
        ("transformer_blocks.{}.attn1.to_{}", 0, "first", XT),
        ("transformer_blocks.{}.attn1.to_{}", 1, "first", XTI),
    ],
    "pixart": [("transformer_blocks.{}.attn2.to_{}", i, "all", X) for i in (0, 1)],
    "hunyuan_dit": [("blocks.{}.attn2.to_{}", i, "first", X) for i in (0, 1)],
}
FUSED = {"flux_2": ("16:32", "32:48"), "prx": ("0:16", "16:32")}
KANDINSKY = ("key", "value")
# Its four encoders take half a minute.
LONG = pytest.mark.slow


def pipeline(name):
    return next(getattr(m, name) for m in (joint, tiny, pipelines) if hasattr(m, name))()


def place(reader):
    if not reader.shared:
        return "all"
    return "first" if reader.rows[0] == 0 else "later"


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.filterwarnings("ignore:.*LoraLoaderMixin")
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=LONG) if n == "hidream" else n for n in EXPECTED]
)
def test_what_reads_the_text(name):
    pipe = pipeline(name)
    before, drawn = dict(vars(pipe)), torch.get_rng_state()
    parts = Parts(pipe)
    found = parts.readers
    two = FUSED.get(name, KANDINSKY if name == "kandinsky_5" else ("k", "v"))
    expected = []
    for pattern, number, where, changes in EXPECTED[name]:
        fused = two if "[" in pattern or name == "kandinsky_5" else ("k", "v")
        expected.append((*(pattern.format(number, part) for part in fused), where, changes))
    assert [(r.key, r.value, place(r), set(r.changes)) for r in found] == expected
    assert vars(pipe) == before
    assert torch.equal(torch.get_rng_state(), drawn)
    assert parts.readers is found  # searched for once
    hooks = [m for m in parts.denoiser.plain.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert not hooks


@pytest.mark.parametrize(
    ("name", "entrances"),
    [
        # The text of the second encoder stands behind that of the first, which is seen twice.
        pytest.param(
            "hidream", {(): (0,), ("encoder_hidden_states_llama3",): (20, 44)}, marks=LONG
        ),
        ("hunyuan_dit", {(): (0,), ("encoder_hidden_states_t5",): (77,)}),
        ("aura_flow", {(): (8,)}),
        ("z_image", {(2,): (0,)}),
    ],
)
@pytest.mark.filterwarnings("ignore:.*LoraLoaderMixin")
def test_rows_in_which_tokens_stand(name, entrances):
    assert dict(Parts(pipeline(name)).readers[0].entrances) == entrances


@pytest.mark.parametrize("name", ["flux", "stable_diffusion_3"])
def test_fused_projections_are_found_by_their_columns(name):
    pipe = pipeline(name)
    apart = Parts(pipe).readers
    pipe.transformer.fuse_qkv_projections()
    together = Parts(pipeline(name))
    together.pipe.transformer.fuse_qkv_projections()
    found = together.readers
    assert len(found) == len(apart)
    width = 32 if name == "flux" else 16
    assert re.fullmatch(rf".*to_added_qkv\[{width}:{2 * width}\]", found[0].key)
    assert re.fullmatch(rf".*to_added_qkv\[{2 * width}:{3 * width}\]", found[0].value)
    assert [r.rows for r in found] == [r.rows for r in apart]


def test_a_denoiser_whose_attention_reads_no_text_is_refused():
    pipe = tiny.flux()
    pipe.transformer.transformer_blocks = nn.ModuleList()
    pipe.transformer.single_transformer_blocks = nn.ModuleList()
    with pytest.raises(PipelineError, match="no attention of FluxTransformer2DModel was found"):
        _ = Parts(pipe).readers


def test_two_denoisers_in_turn_are_refused():
    pipe = tiny.wan(transformer_2=tiny.wan().transformer, boundary_ratio=0.5)
    with pytest.raises(PipelineError, match="two networks in turn"):
        _ = Parts(pipe).readers
