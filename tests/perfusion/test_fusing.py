"""Fused projections, which diffusers makes of those that have the edits."""

from __future__ import annotations

import copy

import numpy as np
import pytest
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
