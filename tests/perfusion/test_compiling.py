"""Concepts in denoisers that torch.compile has compiled, before or while they are in."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from rankedit_recipes.diffusion.parts import Parts
from rankedit_recipes.perfusion.applying.apply import apply, load, unload
from rankedit_recipes.perfusion.applying.locking import _exchanged_copy

from tests.diffusion import pipelines
from tests.perfusion.concepts import random_concept
from tests.perfusion.test_families import picture

BEAN, ELSEWHERE, MUG, BOTH = (
    "a photo of a <bean>",
    "a <bean> on grass",
    "a photo of a <mug>",
    "a <bean> next to a <mug>",
)


def concepts(pipe):
    return random_concept(pipe), random_concept(pipe, "<mug>", "teddy bear", seed=1)


@pytest.mark.slow
def test_locks_and_concepts_change_under_compiled_code():
    pipe = pipelines.stable_diffusion()
    bean, mug = concepts(pipe)
    wanted = {}
    for lock in ("local", "global"):
        with apply(pipe, bean, lock=lock, bias=0.3):
            wanted |= {(lock, prompt): picture(pipe, prompt) for prompt in (BEAN, ELSEWHERE)}
        with apply(pipe, mug, lock=lock, bias=0.3):
            wanted[lock, MUG] = picture(pipe, MUG)
        with apply(pipe, [bean, mug], lock=lock, bias=0.3):
            wanted[lock, BOTH] = picture(pipe, BOTH)
    plain = picture(pipe, "a cat")
    assert not np.allclose(wanted["local", BEAN], wanted["global", BEAN], atol=1e-3)

    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    pipe.unet = torch.compile(pipe.unet, backend=counter, fullgraph=True)

    def same(prompt, lock=""):
        expected = wanted[lock, prompt] if lock else plain
        np.testing.assert_allclose(picture(pipe, prompt), expected, atol=1e-4)

    same("a cat")
    # A lock that comes after code was compiled for the local one must not be overlooked.
    with apply(pipe, bean, lock="local", bias=0.3):
        same(BEAN, "local")
    with apply(pipe, bean, lock="global", bias=0.3) as applied:
        same(BEAN, "global")
        frames = counter.frame_count
        same(ELSEWHERE, "global")
        applied.set(bias=0.9)
        assert not np.allclose(picture(pipe, BEAN), wanted["global", BEAN], atol=1e-4)
        applied.set(bias=0.3)
        same(BEAN, "global")
    with apply(pipe, mug, lock="global", bias=0.3):
        same(MUG, "global")
    # Other prompts, settings, and another concept in its place run the code that is there.
    assert counter.frame_count == frames
    with apply(pipe, bean, lock="global", bias=0.3):
        load(pipe, mug, bias=0.3)
        same(BOTH, "global")
        unload(pipe, "<mug>")
        same(BEAN, "global")
    with apply(pipe, bean, lock="local", bias=0.3):
        same(BEAN, "local")
    same("a cat")


def test_a_locked_pipeline_is_copied_and_its_layers_come_back():
    pipe = pipelines.stable_diffusion()
    bean, _ = concepts(pipe)
    name = Parts(pipe).targets.keys[0]
    layer = Parts(pipe).targets.modules(pipe.unet)[name]
    with apply(pipe, bean, lock="global"):
        assert type(layer).__name__ == "LockedEditedLinear"
        twin = copy.deepcopy(pipe.unet)
        assert type(twin.get_submodule(name)).__name__ == "EditedLinear"
        assert type(layer).__name__ == "LockedEditedLinear"
    assert type(layer) is torch.nn.Linear
    assert not layer._forward_pre_hooks


def test_the_operator_of_the_lock_is_one_that_torch_accepts():
    read = torch.randn(2, 3)
    torch.library.opcheck(_exchanged_copy, (read, -1))
    assert torch.equal(_exchanged_copy(read, -1), read)
