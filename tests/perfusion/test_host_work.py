"""What a step of learning and an edited forward ask of the host: the loss, and nothing else."""

import numpy as np
import pytest
import torch
from PIL import Image
from rankedit_recipes import perfusion
from rankedit_recipes.diffusion.freezing import frozen
from rankedit_recipes.diffusion.parts import Parts
from rankedit_recipes.diffusion.statistics import second_moment
from rankedit_recipes.diffusion.words import NewWords
from rankedit_recipes.perfusion.learning.config import Config
from rankedit_recipes.perfusion.learning.data import cached_latents
from rankedit_recipes.perfusion.learning.learner import Learner
from rankedit_recipes.perfusion.learning.stepping import Stepper
from rankedit_recipes.perfusion.naming import Naming
from torch import nn

import rankedit as rk
from tests.diffusion import pipelines
from tests.host_work import Looks

WORD = "<it>"


def stepping(config, act):
    """What a step looks at, after two that were not watched."""
    pipe = pipelines.stable_diffusion()
    rng = np.random.default_rng(0)
    photo = Image.fromarray(rng.integers(0, 255, (64, 64, 3), np.uint8))
    with frozen(Parts(pipe), checkpointing=False):
        parts, naming = Parts(pipe), Naming(WORD, "cat", None)
        data = cached_latents(parts, [perfusion.Photo("0", photo)], parts.denoiser.picture_size(0))
        moment = second_moment(pipe, ["a cat on a mat", "the dog"], progress=False)
        learner = Learner(parts, naming, perfusion.metric_of(moment), config)
        words = NewWords(parts.text, {WORD: learner.rows})
        stepper = Stepper(parts, learner, data, naming, config)
        try:
            for number in (0, 1):
                stepper.step(number)
            with Looks() as looks:
                act(stepper)
        finally:
            stepper.detach()
            words.remove()
    return looks.found


def test_a_step_of_learning_looks_at_its_loss_and_its_key():
    config = Config(batch=2, templates=("a {}", "the {}"), precision="float32")
    found = stepping(config, lambda stepper: stepper.step(2))
    ours = [each for each in found if "local_scalar" in each]
    # The key is checked where the metric solves for it, on the metric's device.
    assert sorted(ours) == [
        "shapes.py: aten._local_scalar_dense.default",
        "stepping.py: aten._local_scalar_dense.default",
    ]
    # Which prompts were drawn is known on the CPU, where they were drawn.
    assert {each for each in found if each not in ours} <= {"stepping.py: aten._unique2.default"}


def test_accumulating_looks_at_the_loss_of_each_part():
    config = Config(batch=4, accumulate=2, templates=("a {}",), precision="float32")
    found = stepping(config, lambda stepper: stepper.step(2))
    assert sum("local_scalar" in each for each in found) == 3


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("kind", ["static", "gated"])
@pytest.mark.parametrize("rows", [1, 7])
def test_an_edited_forward_looks_at_nothing(kind, grad, rows):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4))
    edit = rk.LowRank(torch.randn(4, 2), torch.randn(2, 6))
    if kind == "gated":
        edit = rk.GatedEdit(torch.randn(2, 6), torch.randn(2, 4), rk.Metric.identity(6), floor=0.1)
    x = torch.randn(rows, 6)
    with rk.attach(model, {"0": edit}) as attachment, torch.set_grad_enabled(grad):
        model(x)
        for strength in (1.0, 0.5):
            attachment.set(strength=strength)
            with Looks() as looks:
                model(x)
            assert looks.found == []


def test_a_look_is_found():
    with Looks() as looks:
        bool((torch.ones(2) > 0).all())
        torch.ones(2).nonzero()
    assert [each.partition(": ")[2] for each in looks.found] == [
        "aten._local_scalar_dense.default",
        "aten.nonzero.default",
    ]
