"""The concept file, and the settings of learning."""

from __future__ import annotations

import dataclasses
import io

import pytest
import torch
from PIL import Image
from rankedit_recipes.perfusion.concept import Concept
from rankedit_recipes.perfusion.errors import PerfusionError
from rankedit_recipes.perfusion.learning.config import Config
from rankedit_recipes.perfusion.prompts import filled

import rankedit as rk
from tests.diffusion import pipelines
from tests.perfusion.concepts import random_concept


@pytest.fixture(scope="module")
def pipe():
    return pipelines.stable_diffusion()


def test_a_concept_survives_its_file(pipe, tmp_path):
    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "PNG")
    concept = dataclasses.replace(
        random_concept(pipe), notes={"model": "tiny"}, preview=picture.getvalue()
    )
    concept.save(tmp_path / "c.safetensors")
    loaded = Concept.load(tmp_path / "c.safetensors")
    for name in ("trigger", "category", "lock", "bias", "temperature", "templates", "statistics",
                 "base", "sketch", "notes", "preview"):  # fmt: skip
        assert getattr(loaded, name) == getattr(concept, name), name
    for ours, theirs in [(loaded.key, concept.key), (loaded.image, concept.image)]:
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    loaded.save(tmp_path / "again.safetensors")
    files = [(tmp_path / f"{name}.safetensors").read_bytes() for name in ("c", "again")]
    assert files[0] == files[1]


def test_a_damaged_sketch_is_refused(pipe, tmp_path):
    dataclasses.replace(random_concept(pipe), sketch="x").save(tmp_path / "c.safetensors")
    with pytest.raises(PerfusionError, match=r"c\.safetensors' has a damaged sketch"):
        Concept.load(tmp_path / "c.safetensors")


def test_files_of_other_kinds_are_refused(tmp_path):
    rk.save(rk.LowRank(torch.ones(2, 1), torch.ones(1, 2)), tmp_path / "edit.safetensors")
    with pytest.raises(PerfusionError, match=r"no concept file; `rankedit info .* says what it"):
        Concept.load(tmp_path / "edit.safetensors")
    texts = {"perfusion": "9", "trigger": "<bean>", "category": "cat"}
    rk.save({"embedding.0": torch.ones(2)}, tmp_path / "new.safetensors", metadata=texts)
    with pytest.raises(PerfusionError, match=r"version 1: its version is '9', it lacks \['lock'\]"):
        Concept.load(tmp_path / "new.safetensors")
    with pytest.raises(PerfusionError, match="templates must be prompts"):
        filled(["a photo"], "cat")


def test_a_file_of_two_concepts_is_refused_rather_than_halved(tmp_path):
    keys, gate = torch.eye(2), rk.Sigmoid(0.7, 0.15)
    both = rk.GatedEdit.from_images(keys, torch.ones(2, 3), keys, gate)
    texts = {"perfusion": "1", "trigger": "<bean>", "category": "cat", "lock": "local"}
    rk.save({"a": both}, tmp_path / "both.safetensors", metadata=texts)
    with pytest.raises(PerfusionError, match=r"has 2 keys.*holds one concept"):
        Concept.load(tmp_path / "both.safetensors")


def _sized(tmp_path, blocks, width, embeddings):
    """Size of the file of a model with cross-attention at these names and widths."""
    generator = torch.Generator().manual_seed(0)

    def normal(size):
        return torch.randn(size, generator=generator)

    values = {f"{name}.transformer_blocks.{i}.attn2.to_v": normal(size)
              for name, depth, size in blocks for i in range(depth)}  # fmt: skip
    key = normal(width)
    concept = Concept("<bean>", "cat", key, 2 * key + 0.1 * normal(width), values,
                      [normal(size) for size in embeddings], statistics="0" * 16, base="0" * 16,
                      notes={"model": "UNet2DConditionModel", "photos": "5, 0123456789abcdef",
                             "step": "400", "config": "0123456789abcdef"})  # fmt: skip
    concept.save(tmp_path / "c.safetensors")
    return (tmp_path / "c.safetensors").stat().st_size


def test_sizes_of_concept_files(tmp_path):
    sizes = (320, 640, 1280)
    down = [(f"down_blocks.{b}.attentions.{a}", 1, sizes[b]) for b in range(3) for a in range(2)]
    up = [(f"up_blocks.{b}.attentions.{a}", 1, sizes[3 - b]) for b in (1, 2, 3) for a in range(3)]
    middle = [("mid_block.attentions.0", 1, 1280)]
    assert _sized(tmp_path, [*down, *up, *middle], 768, [768]) <= 32_768
    down = [(f"down_blocks.{b}.attentions.{a}", d, s) for b, d, s in ((1, 2, 640), (2, 10, 1280))
            for a in range(2)]  # fmt: skip
    up = [(f"up_blocks.{b}.attentions.{a}", d, s) for b, d, s in ((0, 10, 1280), (1, 2, 640))
          for a in range(3)]  # fmt: skip
    middle = [("mid_block.attentions.0", 10, 1280)]
    assert _sized(tmp_path, [*down, *up, *middle], 2048, [768, 1280]) <= 200_000


def test_rates_fall_to_zero_at_the_end():
    config = Config(steps=10, decay=0.5)
    assert [config.rate_at(step) for step in (0, 5, 6, 9)] == [1.0, 1.0, 0.8, 0.2]
    assert Config(steps=10, decay=0.0).rate_at(9) == 1.0
    with pytest.raises(PerfusionError, match=r"decay must be in \[0, 1\], got 2"):
        Config(decay=2.0)
