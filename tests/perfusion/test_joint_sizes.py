"""Files of concepts for joint attention at full size, on a device without memory."""

from __future__ import annotations

import re

import diffusers as df
import pytest
import torch
from rankedit_recipes.diffusion.parts import Parts
from rankedit_recipes.perfusion.joint.concept import JointConcept

from tests.diffusion import pipelines
from tests.diffusion.families import tiny

# As published: SD3-medium by its checkpoint's configuration, Flux.1 by the class's defaults.
SD3_MEDIUM = {
    "num_layers": 24, "num_attention_heads": 24, "attention_head_dim": 64,
    "caption_projection_dim": 1536, "joint_attention_dim": 4096, "pooled_projection_dim": 2048,
}  # fmt: skip
SIZES = [
    (pipelines.stable_diffusion_3, df.SD3Transformer2DModel, SD3_MEDIUM, 24, 300e3),
    (tiny.flux, df.FluxTransformer2DModel, {}, 57, 1.5e6),
]


def full_size(small, large):
    """Places of a large network that are named as those of a small one, and their widths."""
    modules, found = dict(large.named_modules()), {"values": {}, "keys": {}}
    for reader in Parts(small).readers:
        for kind, place in (("values", reader.value), ("keys", reader.key)):
            pattern = re.sub(r"\d+", r"\\d+", re.escape(place))
            named = [name for name in modules if re.fullmatch(pattern, name)]
            found[kind] |= {name: modules[name].out_features for name in named}
    return found


@pytest.mark.parametrize(("make", "kind", "config", "blocks", "limit"), SIZES)
def test_values_with_four_knots_stay_small(make, kind, config, blocks, limit, tmp_path):
    with torch.device("meta"):
        large = kind(**config)
    # Random, for files keep equal tensors once.
    tables = {
        part: {name: torch.randn(4, width) for name, width in widths.items()}
        for part, widths in full_size(make(), large).items()
    }
    assert len(tables["values"]) == len(tables["keys"]) == blocks
    file = tmp_path / "bean.safetensors"
    JointConcept("<bean>", "cat", tables["values"]).save(file)
    values = file.stat().st_size
    assert values <= limit
    # Keys take as much again: with them both are over the limit.
    JointConcept("<bean>", "cat", **tables).save(file)
    assert limit < file.stat().st_size <= 2 * values
