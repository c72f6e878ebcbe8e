"""Learning: what moves and what does not, and that interruptions change nothing."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from rankedit_recipes.diffusion.errors import PipelineError
from rankedit_recipes.diffusion.generating import Sampling
from rankedit_recipes.diffusion.noising import noise_scheduler, target_of
from rankedit_recipes.diffusion.parts import Parts
from rankedit_recipes.diffusion.scoring import Scores
from rankedit_recipes.diffusion.statistics import metric_of, second_moment
from rankedit_recipes.diffusion.words import NewWords
from rankedit_recipes.perfusion.applying.applied import in_use
from rankedit_recipes.perfusion.applying.apply import active, apply
from rankedit_recipes.perfusion.concept import Concept
from rankedit_recipes.perfusion.errors import PerfusionError
from rankedit_recipes.perfusion.learning import stepping, training
from rankedit_recipes.perfusion.learning.config import Config
from rankedit_recipes.perfusion.learning.learner import Learner
from rankedit_recipes.perfusion.learning.loss import masked_loss, snr_weights
from rankedit_recipes.perfusion.learning.training import learn
from rankedit_recipes.perfusion.learning.validation import Validation
from rankedit_recipes.perfusion.locks import PRESETS
from rankedit_recipes.perfusion.naming import Naming
from rankedit_recipes.perfusion.prompts import origin_encoding, word_encoding

import rankedit as rk
from tests.diffusion import pipelines
from tests.diffusion.pipelines import CAPTIONS
from tests.perfusion.concepts import TEMPLATES, random_concept

SMALL = {"steps": 4, "batch": 4, "templates": TEMPLATES, "checkpoint_every": 1}


def photos(count=3):
    rng = np.random.default_rng(0)
    return [
        Image.fromarray(rng.integers(0, 255, (20, 24, 3), dtype=np.uint8)) for _ in range(count)
    ]


@pytest.fixture(scope="module")
def pipe():
    return pipelines.stable_diffusion()


@pytest.fixture(scope="module")
def moment(pipe):
    return second_moment(pipe, CAPTIONS, progress=False)


def taught(pipe, moment, run=None, validation=None, category="cat", **settings):
    return learn(
        pipe,
        photos(),
        placeholder="<bean>",
        category=category,
        statistics=moment,
        config=Config(**(SMALL | settings)),
        validation=validation,
        run=run,
        progress=False,
    )


@pytest.fixture(scope="module")
def plain(pipe, moment, tmp_path_factory):
    return taught(pipe, moment, run=tmp_path_factory.mktemp("plain"))


def same(first: Concept, second: Concept, **tolerance) -> None:
    for name, target in first.targets.items():
        torch.testing.assert_close(second.targets[name], target, **tolerance)
    torch.testing.assert_close(second.key, first.key, **tolerance)
    torch.testing.assert_close(second.embeddings[0], first.embeddings[0], **tolerance)


def test_values_and_the_word_move_and_nothing_else(pipe, moment, plain):
    state = {k: v.clone() for k, v in pipe.unet.state_dict().items()}
    flags = [p.requires_grad for p in pipe.unet.parameters()]
    concept = taught(pipe, moment)
    assert all(torch.equal(v, state[k]) for k, v in pipe.unet.state_dict().items())
    assert flags == [p.requires_grad for p in pipe.unet.parameters()]
    assert set(concept.targets) == set(Parts(pipe).targets.values)
    start = Learner(Parts(pipe), Naming("<bean>", "cat"), metric_of(moment), Config(**SMALL))
    for name, target in start.targets.items():
        # Adam's first steps are as long as the rate: 4 steps of 5 % of the root mean square.
        start_value = target.detach()[0]
        distance = (concept.targets[name] - start_value).abs().max()
        moved = distance / start_value.square().mean().sqrt()
        assert 0.01 < float(moved) < 0.21
    category = origin_encoding(Parts(pipe), Naming("<bean>", "cat"), TEMPLATES)
    assert 0 < float((concept.key - category).norm()) < 0.1 * float(category.norm())


def test_the_same_seed_gives_the_same_file(pipe, moment, plain, tmp_path):
    again = taught(pipe, moment, run=tmp_path)
    plain.save(tmp_path / "first.safetensors")
    written = (tmp_path / training.CONCEPT).read_bytes()
    assert (tmp_path / "first.safetensors").read_bytes() == written
    again.save(tmp_path / "second.safetensors")
    assert (tmp_path / "second.safetensors").read_bytes() == written
    other = taught(pipe, moment, seed=1)
    assert not torch.equal(other.key, plain.key)


@pytest.mark.parametrize("key_gradient", [False, True])
def test_concepts_leave_attention_sinks_alone(pipe, moment, key_gradient):
    # As text encoders without a last norm have them, whose first token is hundreds of times longer.
    direction = torch.randn(1, moment.dim, generator=torch.Generator().manual_seed(0))
    sinks = 300 * float(moment.matrix.trace()) ** 0.5 * torch.nn.functional.normalize(direction)
    sinking = rk.SecondMoment(moment.dim).merge_(moment).update(sinks.repeat(20, 1))
    assert sinking.extremes.count == 20
    concept = taught(pipe, sinking, steps=2, key_gradient=key_gradient)
    metric = metric_of(sinking)
    # Concepts keep key and image in half precision.
    plain, guarded = (m.solve(concept.key[None])[0].float() for m in (metric, metric.guarded))
    assert float((concept.image - guarded).norm()) < 1e-2 * float(guarded.norm())
    assert float((plain - guarded).norm()) > 5e-2 * float(guarded.norm())
    learner = Learner(
        Parts(pipe), Naming("<bean>", "cat"), metric, Config(**SMALL, key_gradient=key_gradient)
    )
    image = learner.image(concept.key[None])[0]
    torch.testing.assert_close(image, guarded, rtol=1e-3, atol=1e-3)
    assert float((sinks @ image).abs()) < 2e-2 * float((sinks @ plain).abs())


@pytest.mark.parametrize("setting", [{"accumulate": 4}, {"checkpointing": True}])
def test_accumulation_and_checkpointing_change_nothing(pipe, moment, plain, setting):
    # The key's average must move once for a step, however often the forward pass runs.
    same(plain, taught(pipe, moment, **setting), rtol=2e-3, atol=2e-4)


def test_trained_keys_are_in_the_concept(pipe, moment):
    concept = taught(pipe, moment, lock="trained")
    targets = Parts(pipe).targets
    assert set(concept.targets) == {*targets.keys, *targets.values}


def test_gradients_through_the_key_change_what_is_learned(pipe, moment, plain):
    concept = taught(pipe, moment, key_gradient=True)
    assert not torch.equal(concept.embeddings[0], plain.embeddings[0])
    assert bool(torch.isfinite(concept.key).all())


def test_the_gradient_through_the_key_is_that_of_the_equations(pipe, moment):
    learner = Learner(
        Parts(pipe), Naming("<bean>", "cat"), metric_of(moment), Config(**SMALL, key_gradient=True)
    )
    name = Parts(pipe).targets.values[0]
    layer = Parts(pipe).projections[name]
    inverse = learner.image(torch.eye(learner.key.shape[1])).double()
    x = torch.randn(5, learner.key.shape[1], generator=torch.Generator().manual_seed(0))
    key = learner.key.clone().requires_grad_()
    with rk.attach(layer, learner.edits(key)[name]):
        layer(x).square().sum().backward()

    exact = key.detach().double().requires_grad_()
    energy = (exact @ inverse @ exact.T).squeeze()
    similarity = (x.double() @ inverse @ exact.T) / energy
    gate = torch.sigmoid((similarity - 0.75) / 0.1)
    weight = layer.weight.double()
    y = (x.double() - similarity * exact) @ weight.T + gate * learner.targets[name].double()
    y.square().sum().backward()
    torch.testing.assert_close(key.grad.double(), exact.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("contexts", [(), ("a red cup and a {}", "a cup and a {}")])
def test_the_kept_key_is_the_mean_over_templates_and_contexts(pipe, moment, tmp_path, contexts):
    concept = taught(pipe, moment, contexts=contexts, run=tmp_path)
    followed = rk.load(tmp_path / training.CHECKPOINT)["now.key"]
    words = NewWords(Parts(pipe).text, {"<bean>": concept.embeddings})
    prompts = [text.replace("{}", "<bean>") for text in (*TEMPLATES, *contexts)]
    read = torch.stack([word_encoding(Parts(pipe), "<bean>", [prompt]) for prompt in prompts])
    words.remove()
    wanted = read.double().mean(0) if contexts else followed.double()
    torch.testing.assert_close(concept.key.double(), wanted, rtol=2e-3, atol=2e-3)
    image = metric_of(moment).solve(wanted[None])[0]
    torch.testing.assert_close(
        concept.image.double(), image, rtol=1e-2, atol=1e-2 * float(image.abs().max())
    )


@pytest.mark.parametrize(
    "setting",
    [{"steps": 1.5}, {"batch": True}, {"seed": "0"}, {"flip": "no"}, {"templates": "a {}"},
     {"contexts": "on a {}"}, {"bias": "0.5"}, {"vectors": 2.0}],
)  # fmt: skip
def test_settings_of_another_type_are_refused(setting):
    with pytest.raises(PerfusionError, match=rf"Config: {next(iter(setting))} must be of type"):
        Config(**setting)


def test_a_context_without_the_word_is_refused(pipe, moment):
    with pytest.raises(PerfusionError, match=r"contexts must be prompts with \{\} .* 'a red cup'"):
        Config(contexts=("a red cup",))
    long = "very " * 200 + "big {}"
    with (
        mock.patch.object(stepping.Stepper, "step", side_effect=AssertionError),
        pytest.raises(PipelineError, match="<bean>"),
    ):
        taught(pipe, moment, contexts=(long,))


def test_a_pipeline_with_concepts_is_refused_and_left_alone(pipe, moment):
    refusal = pytest.raises(PerfusionError, match=r"concepts are already in .*\(<mug>\).*take")
    with apply(pipe, random_concept(pipe, "<mug>", "cup")), refusal:
        taught(pipe, moment)
    taught(pipe, moment, steps=1)


def test_a_state_is_judged_as_it_will_be_used(pipe, moment, monkeypatch):
    seen = []
    plain = training.generate

    def generate(*arguments):
        applied = active(pipe)
        floors = {edit.floor for edit in applied.edits.values()}
        seen.append((applied.settings["<bean>"], floors, applied.concepts["<bean>"].key))
        return plain(*arguments)

    monkeypatch.setattr(training, "generate", generate)
    judge = Validation(lambda *_: Scores(0.5, 0.5), ("a photo of a {}",), Sampling(1, size=16))
    settings = {"lock": "coarse", "adjective": "red", "contexts": ("a cup and a {}",), "steps": 1}
    kept = taught(pipe, moment, validation=judge, validate_every=1, **settings)
    ((used, floors, key),) = seen
    assert (used.bias, used.temperature) == (kept.bias, kept.temperature)
    assert floors == {kept.floor} == {PRESETS["coarse"].floor}
    torch.testing.assert_close(key, kept.key, rtol=2e-3, atol=2e-3)
    assert pipe not in in_use


@pytest.mark.parametrize("stop", [1, 3])
def test_a_training_that_was_killed_goes_on_to_the_same_file(pipe, moment, plain, tmp_path, stop):
    class Killed(Exception):
        pass

    real = stepping.Stepper.step

    def dying(self, step):
        if step == stop:
            raise Killed
        return real(self, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stepping.Stepper, "step", dying)
        with pytest.raises(Killed):
            taught(pipe, moment, run=tmp_path)
    same(plain, taught(pipe, moment, run=tmp_path), rtol=0, atol=0)
    with pytest.raises(PerfusionError, match=r"of another training: seed was 0, is 5\. Give what"):
        taught(pipe, moment, run=tmp_path, seed=5)
    with pytest.raises(PerfusionError, match=r"steps was \d+, is 77; lock was .*, is \"global\""):
        taught(pipe, moment, run=tmp_path, steps=77, lock="global")


def test_the_best_validated_state_is_kept(pipe, moment, tmp_path):
    asked = []

    def scorer(pictures, prompts, given):
        asked.append(prompts)
        assert len(pictures) == len(prompts) == 2
        assert len(given) == 3
        return Scores(picture=1.0 if len(asked) == 2 else 0.5, text=0.5)

    judge = Validation(scorer, ("a photo of a {}", "a {} on grass"), Sampling(steps=1, size=16))
    best = taught(pipe, moment, validation=judge, validate_every=1, run=tmp_path)
    assert len(asked) == 4
    assert asked[0] == ["a photo of a cat", "a cat on grass"]
    assert best.notes["step"] == "2"
    same(best, taught(pipe, moment, steps=2), rtol=0, atol=0)
    asked.clear()
    taught(pipe, moment, validation=judge, validate_every=1, patience=1)
    assert len(asked) == 3  # the second was best, the third was not better


def test_a_loss_that_is_not_finite_stops_the_training(pipe, moment, monkeypatch):
    monkeypatch.setattr(
        stepping, "masked_loss", lambda *_: torch.tensor(math.nan, requires_grad=True)
    )
    with pytest.raises(PerfusionError, match="loss of step 0 is nan"):
        taught(pipe, moment)


def test_other_families_learn(tmp_path):
    for make in (pipelines.stable_diffusion_xl, pipelines.pixart):
        pipe = make()
        concept = taught(pipe, second_moment(pipe, CAPTIONS, progress=False), steps=2)
        assert len(concept.embeddings) == (2 if hasattr(pipe, "text_encoder_2") else 1)


def test_multi_token_categories_and_one_photo(pipe, moment):
    concept = learn(
        pipe, photos(1), placeholder="<bear>", category="teddy bear", statistics=CAPTIONS,
        config=Config(**SMALL), progress=False,
    )  # fmt: skip
    assert concept.category == "teddy bear"


@pytest.mark.parametrize("reduction", ["weighted", "mean", "squared"])
def test_masked_losses_by_hand(reduction):
    error = torch.tensor([1.0, 2.0]).reshape(1, 1, 1, 2)
    mask = torch.tensor([1.0, 0.5]).reshape(1, 1, 1, 2)
    got = masked_loss(error, torch.zeros_like(error), mask, torch.tensor([2.0]), reduction)
    by_hand = {"weighted": (1 + 2) / 1.5, "mean": (1 + 2) / 2, "squared": (1 + 1) / 2}
    assert float(got) == pytest.approx(2 * by_hand[reduction])


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_targets_and_min_snr_weights(pipe, kind):
    scheduler = noise_scheduler(pipe)
    scheduler.register_to_config(prediction_type=kind)
    latents, noise, times = torch.ones(2, 1, 1, 1), torch.zeros(2, 1, 1, 1), torch.tensor([1, 900])
    signal = scheduler.alphas_cumprod[times]
    wanted = {
        "epsilon": noise, "sample": latents,
        "v_prediction": -(1 - signal).sqrt().reshape(2, 1, 1, 1),
    }[kind]  # fmt: skip
    torch.testing.assert_close(target_of(scheduler, latents, noise, times), wanted)
    snr = signal / (1 - signal)
    over = {"epsilon": snr, "sample": torch.ones(2), "v_prediction": snr + 1}[kind]
    torch.testing.assert_close(snr_weights(scheduler, times, 5.0), snr.clamp_max(5) / over)
    assert snr_weights(scheduler, times, 0.0).tolist() == [1, 1]


def test_configurations_are_checked_and_survive_a_file(tmp_path):
    config = Config(steps=7, templates=("a {}",), flip=False, value_rate=0.1)
    (tmp_path / "c.toml").write_text(config.to_toml())
    assert Config.from_toml(tmp_path / "c.toml") == config
    for text, message in {
        "stepz = 3": "unknown setting 'stepz'",
        "steps = 'x'": "steps must be of type int",
        "steps = 0": "steps must be at least 1",
        "batch = 3\naccumulate = 2": "multiple of accumulate",
        "templates = ['a {} | b']": r"a template must not have '\|'",
        "lock = 'loose'": "lock must be one of local, global, coarse, trained",
        "value_rate = -1": "value_rate must be positive",
        "key_momentum = 2.0": r"key_momentum must be in \[0, 1\]",
        "steps": "is no TOML file",
    }.items():
        (tmp_path / "bad.toml").write_text(text)
        with pytest.raises(PerfusionError, match=message):
            Config.from_toml(tmp_path / "bad.toml")
    with pytest.raises(PerfusionError, match="cannot be read"):
        Config.from_toml(tmp_path / "none.toml")


_CHILD = """
import sys; sys.path[:0] = {path!r}
from tests.diffusion import pipelines
from tests.perfusion.test_learning import taught
from tests.perfusion.concepts import CAPTIONS
pipe = pipelines.stable_diffusion()
taught(pipe, CAPTIONS, run={run!r}, steps=12)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kills", [20])
def test_kill_9_at_random_moments(pipe, moment, tmp_path, kills):
    whole = taught(pipe, CAPTIONS, run=tmp_path / "whole", steps=12)
    root = str(Path(__file__).parents[2])
    code = _CHILD.format(path=[root], run=str(tmp_path / "killed"))
    rng = np.random.default_rng(0)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for _ in range(kills):
        child = subprocess.Popen([sys.executable, "-c", code], env=environment)
        file = tmp_path / "killed" / training.CHECKPOINT
        before = file.stat().st_mtime_ns if file.exists() else 0
        while child.poll() is None and (not file.exists() or file.stat().st_mtime_ns == before):
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.2))
        child.send_signal(signal.SIGKILL)
        child.wait()
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    same(whole, Concept.load(tmp_path / "killed" / training.CONCEPT), rtol=0, atol=0)
