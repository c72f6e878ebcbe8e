"""What the documentation promises of interruptions, plans, precision and the dead zone."""

from __future__ import annotations

import json
import signal

import numpy as np
import pytest
import torch
from rankedit_recipes import perfusion, sandbox
from rankedit_recipes.diffusion.parts import Parts
from rankedit_recipes.diffusion.statistics import metric_of, second_moment
from rankedit_recipes.perfusion.commands import tasks
from rankedit_recipes.perfusion.concept import Concept
from rankedit_recipes.perfusion.errors import PerfusionError
from rankedit_recipes.perfusion.learning import stepping, training
from rankedit_recipes.perfusion.learning.config import Config
from rankedit_recipes.perfusion.learning.photos import load_photos
from rankedit_recipes.perfusion.naming import Naming
from rankedit_recipes.perfusion.prompts import origin_encoding

import rankedit as rk
from tests.diffusion import pipelines
from tests.diffusion.pipelines import CAPTIONS
from tests.perfusion.concepts import random_concept
from tests.perfusion.test_learning import photos, same, taught


@pytest.fixture(scope="module")
def pipe():
    return pipelines.stable_diffusion()


@pytest.fixture(scope="module")
def moment(pipe):
    return second_moment(pipe, CAPTIONS, progress=False)


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_finishes_the_step_and_keeps_the_newest_state(pipe, moment, tmp_path, monkeypatch):
    whole = taught(pipe, moment, checkpoint_every=100)
    real = stepping.Stepper.step

    def interrupted(self, step):
        if step == 1:
            signal.raise_signal(signal.SIGINT)
        return real(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(stepping.Stepper, "step", interrupted)
        with pytest.raises(KeyboardInterrupt, match="make the same call again to go on from"):
            taught(pipe, moment, run=tmp_path, checkpoint_every=100)
    # The step that was being worked on is in the checkpoint, though none was due.
    assert rk.load(tmp_path / training.CHECKPOINT).metadata["step"] == "2"
    assert type(pipe.unet.get_submodule(Parts(pipe).targets.keys[0])) is torch.nn.Linear
    steps = []
    monkeypatch.setattr(
        stepping.Stepper, "step", lambda self, step: steps.append(step) or real(self, step)
    )
    same(whole, taught(pipe, moment, run=tmp_path, checkpoint_every=100), rtol=0, atol=0)
    assert steps == [2, 3]
    assert len(json.loads((tmp_path / training.HISTORY).read_text())["losses"]) == 4


@pytest.mark.parametrize("lock", ["local", "trained"])
def test_the_plan_says_what_comes_true(pipe, moment, tmp_path, lock):
    for index, photo in enumerate(photos(2)):
        photo.save(tmp_path / f"{index}.png")
    config = Config(steps=1, batch=2, lock=lock, templates=("a {}",))
    lines = list(tasks.plan(pipe, tasks.LearnTask(load_photos(tmp_path), "<bean>", "cat", config)))
    learned = taught(pipe, moment, steps=1, batch=2, lock=lock, templates=("a {}",))
    shown = {line.split(":")[0].strip() for line in lines if line.startswith("  ")}
    assert shown == set(learned.targets)
    for name, target in learned.targets.items():
        assert f"  {name}: 32 to {len(target)}" in lines
    learned.save(tmp_path / "c.safetensors")
    size = (tmp_path / "c.safetensors").stat().st_size / 1024
    said = next(line for line in lines if line.startswith("concept file"))
    assert float(said.split("about ")[1].split()[0]) == pytest.approx(size, abs=1.0, rel=0.25)
    assert any(line.startswith("memory: ") for line in lines)
    assert any(line.startswith("time: about ") and "1 steps" in line for line in lines)
    assert "2 photos, 0 with masks; <bean> is a cat" in lines


def test_half_precision_weights_are_refused_for_learning_and_used_for_pictures(pipe):
    half = pipelines.stable_diffusion().to(torch.float16)
    with pytest.raises(PerfusionError, match=r"weights are float16.*load the pipeline in bfloat16"):
        taught(half, CAPTIONS)
    settings = {"num_inference_steps": 2, "height": 16, "width": 16, "output_type": "np"}

    def picture(prompt):
        return half(prompt, generator=torch.Generator().manual_seed(0), **settings).images

    before = picture("a cat")
    with perfusion.apply(half, random_concept(pipe, base="", statistics="")):
        assert np.isfinite(picture("a <bean>")).all()
    assert np.array_equal(picture("a cat"), before)


def test_bfloat16_weights_learn(moment):
    pipe = pipelines.stable_diffusion().to(torch.bfloat16)
    concept = taught(pipe, CAPTIONS, steps=2)
    assert all(bool(torch.isfinite(target).all()) for target in concept.targets.values())
    assert concept.targets[Parts(pipe).targets.values[0]].dtype == torch.float32


# ------------------------------------------------------------------------ the dead zone


@pytest.fixture(scope="module")
def world():
    """The sandbox with a concept on its key for cats, whose values are those of another model."""
    pipe = sandbox.pipeline()
    captions = [f"a photo of a {a} next to a {b}" for a in ("cat", "tree", "cup", "red car")
                for b in ("house", "blue fish", "star on the beach", "boat at night")]  # fmt: skip
    metric = metric_of(second_moment(pipe, captions, progress=False))
    key = origin_encoding(Parts(pipe), Naming("<bean>", "cat"), ("a photo of a {}",))
    targets, generator = Parts(pipe).targets, torch.Generator().manual_seed(0)
    modules = targets.modules(Parts(pipe).denoiser.module)
    values = {
        name: torch.randn(rk.Projection(modules[name]).out_features, generator=generator)
        for name in targets.values
    }
    row = pipe.text_encoder.get_input_embeddings().weight[pipe.tokenizer.get_vocab()["cat"]]
    concept = Concept("<bean>", "cat", key, metric.solve(key[None])[0].float(), values,
                      [row.detach().clone()], statistics=metric.fingerprint)  # fmt: skip
    return pipe, concept


def drawn(pipe, prompts):
    sampling = perfusion.Sampling(steps=3, guidance=4.0)
    pictures = perfusion.generate(pipe, prompts, range(len(prompts)), sampling)
    return np.stack([np.asarray(picture) for picture in pictures])


@pytest.mark.parametrize("normalised", [False, True])
def test_the_dead_zone_gives_the_base_models_pictures_bit_for_bit(world, normalised):
    pipe, concept = world
    without = ["a photo of a tree on the grass", "a red cup next to a house", "a boat at night"]
    base = drawn(pipe, without)
    with perfusion.apply(pipe, concept, floor=0.5, normalised=normalised):
        # Not only where all is dead: the same batch may hold the concept beside them.
        inside = drawn(pipe, [*without, "a photo of a <bean>"])
        found = perfusion.explain(pipe, without[0], show=False)
        own = perfusion.explain(pipe, "a photo of a <bean>", show=False)
        alone = drawn(pipe, without)
    assert float(found.similarity["values"].max()) < 0.5
    assert float(found.opening["values"].abs().max()) == 0
    assert float(own.opening["values"].max()) > 0.5
    assert np.array_equal(alone, base)
    assert np.abs(inside[:3].astype(int) - base).max() <= 1  # another batch size rounds otherwise
    with perfusion.apply(pipe, concept, normalised=normalised):
        assert not np.array_equal(drawn(pipe, without), base)
    assert np.array_equal(drawn(pipe, without), base)
