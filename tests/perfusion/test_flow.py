"""Flow matching: times and targets as diffusers has them, and a concept that is learned with it."""

from __future__ import annotations

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from rankedit_recipes.diffusion.errors import PipelineError
from rankedit_recipes.diffusion.flow import FlowMatching
from rankedit_recipes.diffusion.freezing import frozen
from rankedit_recipes.diffusion.noising import noise_scheduler, target_of, told_times
from rankedit_recipes.diffusion.parts import Parts
from rankedit_recipes.diffusion.statistics import metric_of, second_moment
from rankedit_recipes.diffusion.words import NewWords
from rankedit_recipes.perfusion.learning.config import Config
from rankedit_recipes.perfusion.learning.data import cached_latents
from rankedit_recipes.perfusion.learning.learner import Learner
from rankedit_recipes.perfusion.learning.loss import snr_weights
from rankedit_recipes.perfusion.learning.photos import load_photos
from rankedit_recipes.perfusion.learning.stepping import Stepper
from rankedit_recipes.perfusion.learning.training import learn
from rankedit_recipes.perfusion.naming import Naming

from tests.diffusion import pipelines
from tests.diffusion.pipelines import CAPTIONS
from tests.perfusion.concepts import TEMPLATES
from tests.perfusion.test_learning import photos


@pytest.fixture(scope="module")
def sana():
    return pipelines.sana()


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_times_and_noise_are_those_of_diffusers(shift):
    theirs = FlowMatchEulerDiscreteScheduler(shift=shift)
    ours = FlowMatching(theirs.config)
    index = torch.tensor([0, 17, 999])
    told = ours.told(index)
    torch.testing.assert_close(told, theirs.timesteps.flip(0)[index])
    generator = torch.Generator().manual_seed(0)
    latents, noise = (torch.randn(3, 2, 4, 4, generator=generator) for _ in range(2))
    known = theirs.timesteps.flip(0)[index]
    expected = theirs.scale_noise(latents, known, noise)
    torch.testing.assert_close(ours.add_noise(latents, noise, index), expected)


def test_solvers_with_flow_times_have_the_same_path(sana):
    solver = DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    euler = FlowMatching(sana.scheduler.config)
    torch.testing.assert_close(FlowMatching(solver.config).levels, euler.levels)
    dynamic = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    assert float(FlowMatching(dynamic.config).levels[499]) == 0.5


def test_the_target_is_the_slope_of_the_path(sana):
    process = noise_scheduler(sana)
    latents, noise = torch.ones(2, 1, 1, 1), 3 * torch.ones(2, 1, 1, 1)
    times = torch.tensor([100, 800])
    near = [process.add_noise(latents, noise, t) for t in (times, times + 1)]
    step = (process.levels[times + 1] - process.levels[times]).reshape(2, 1, 1, 1)
    slope = (near[1] - near[0]) / step
    torch.testing.assert_close(slope, target_of(process, latents, noise, times), atol=1e-3, rtol=0)
    assert float(told_times(process, times)[0]) == pytest.approx(1000 * float(process.levels[100]))
    level = process.levels[times]
    wanted = ((1 - level) / level).square().clamp_max(5) * level.square()
    torch.testing.assert_close(snr_weights(process, times, 5.0), wanted)


def test_a_scheduler_of_another_kind_is_refused(sana):
    other = pipelines.stable_diffusion()
    other.scheduler.register_to_config(prediction_type="something")
    with pytest.raises(PipelineError, match="with prediction 'something' is not supported"):
        noise_scheduler(other)


def test_learning_lowers_the_loss_of_a_batch(sana):
    config = Config(batch=2, templates=TEMPLATES, value_rate=0.3, size=64)
    data = cached_latents(Parts(sana), load_photos(photos(2)), 64)
    moment = second_moment(sana, CAPTIONS[:16], progress=False)
    naming = Naming("<bean>", "cat")
    learner = Learner(Parts(sana), naming, metric_of(moment), config)
    with frozen(Parts(sana), checkpointing=False):
        words = NewWords(Parts(sana).text, {"<bean>": learner.rows})
        stepper = Stepper(Parts(sana), learner, data, naming, config)
        # What is drawn is a function of the step: the same batch every time.
        losses = [stepper.step(0) for _ in range(12)]
        stepper.detach()
        words.remove()
    assert losses[-1] < 0.99 * losses[0]
    assert all(later < earlier for earlier, later in zip(losses, losses[3:], strict=False))


def test_a_concept_of_sana_is_kept_and_resumed(sana, tmp_path):
    settings = {"placeholder": "<bean>", "category": "cat", "statistics": CAPTIONS[:16]}
    config = Config(steps=2, batch=2, templates=TEMPLATES, size=64, checkpoint_every=1)
    first = learn(sana, photos(1), config=config, run=tmp_path / "a", progress=False, **settings)
    again = learn(sana, photos(1), config=config, run=tmp_path / "b", progress=False, **settings)
    assert torch.equal(first.key, again.key)
    files = [(tmp_path / name / "concept.safetensors").read_bytes() for name in "ab"]
    assert files[0] == files[1]
