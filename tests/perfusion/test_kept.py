"""What may not be done to a denoiser while concepts are in: fusing, and other LoRAs."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from rankedit_recipes.perfusion.applying.apply import apply, unload
from rankedit_recipes.perfusion.errors import PerfusionError

import rankedit as rk
from tests.diffusion import pipelines
from tests.perfusion.concepts import random_concept
from tests.perfusion.test_pipelines import picture


@pytest.mark.parametrize("lock", ["local", "global"])
def test_projections_are_not_fused_while_concepts_are_in(lock):
    pipe = pipelines.stable_diffusion()
    pipe.set_progress_bar_config(disable=True)
    concept = random_concept(pipe)
    with apply(pipe, concept, lock=lock):
        before = picture(pipe, "a <bean>")
        for fuse in (
            lambda: pipe.fuse_qkv_projections(vae=False),
            lambda: pipe.unet.fuse_qkv_projections(),
            lambda: copy.deepcopy(pipe).unet.fuse_qkv_projections(),
        ):
            with pytest.raises(PerfusionError, match=r"fused while <bean>.*perfusion\.unload"):
                fuse()
        assert np.array_equal(picture(pipe, "a <bean>"), before)
        unload(pipe)
        plain = picture(pipe, "a cat")
        pipe.fuse_qkv_projections(vae=False)
        assert np.allclose(picture(pipe, "a cat"), plain, atol=1e-4)
        # The other order says so too.
        with pytest.raises(rk.AttachError, match="unfuse_qkv_projections"):
            apply(pipe, concept, lock=lock)
        pipe.unfuse_qkv_projections(vae=False)


@pytest.fixture
def lora(tmp_path):
    """A LoRA of every projection of a denoiser, strong enough to be seen."""
    donor = pipelines.stable_diffusion().unet
    names = [n for n, m in donor.named_modules() if n.endswith(("to_k", "to_v"))]
    torch.manual_seed(3)
    edits = {}
    for name in names:
        out, width = donor.get_submodule(name).weight.shape
        edits[name] = rk.LowRank(torch.randn(out, 2) * 0.2, torch.randn(2, width) * 0.2)
    path = tmp_path / "pytorch_lora_weights.safetensors"
    rk.to_lora(edits, path, layout=rk.DIFFUSERS, component="unet")
    return str(tmp_path)


def drawn(pipe):
    return picture(pipe, "a <bean>")


@pytest.mark.parametrize("lock", ["local", "global"])
def test_loras_are_not_changed_while_concepts_are_in(lora, lock):
    pipe = pipelines.stable_diffusion()
    pipe.set_progress_bar_config(disable=True)
    concept = random_concept(pipe)
    with apply(pipe, concept, lock=lock):
        without = drawn(pipe)
        with pytest.raises(PerfusionError, match=r"LoRAs .*while <bean>.*perfusion\.unload"):
            pipe.load_lora_weights(lora, adapter_name="l")
        assert np.array_equal(drawn(pipe), without)
    pipe.load_lora_weights(lora, adapter_name="l")
    with apply(pipe, concept, lock=lock):
        with_it = drawn(pipe)
        assert not np.allclose(with_it, without, atol=1e-2)
        for change in (
            pipe.unload_lora_weights,
            pipe.disable_lora,
            pipe.enable_lora,
            lambda: pipe.set_adapters(["l"], [0.5]),
            lambda: pipe.delete_adapters("l"),
            lambda: pipe.unet.disable_adapters(),
            lambda: pipe.unet.set_adapter("l"),
        ):
            with pytest.raises(PerfusionError, match="LoRAs of the denoiser"):
                change()
            assert np.array_equal(drawn(pipe), with_it)
    # Out again, everything can be changed, and what was there without one is there again.
    pipe.set_adapters(["l"], [0.5])
    pipe.unload_lora_weights()
    with apply(pipe, concept, lock=lock):
        assert np.array_equal(drawn(pipe), without)
