"""Every method on a tiny pipeline: it learns, leaves a file, acts, and goes without a trace."""

from __future__ import annotations

import contextlib
import functools

import numpy as np
import pytest
import torch
from baselines import METHODS, CategoryWord, CustomDiffusion
from baselines.lora import loaded
from personalisation import ablations, methods, training
from personalisation.methods import Artefact, Settings, Subject, trained
from personalisation.perfusions import Perfusion
from personalisation.world import Plan
from PIL import Image
from rankedit_recipes import perfusion
from rankedit_recipes.diffusion.parts import Parts
from rankedit_recipes.perfusion.learning.config import Config
from rankedit_recipes.perfusion.learning.learner import Learner
from rankedit_recipes.perfusion.naming import Naming
from safetensors.torch import load_file

import rankedit as rk
from tests.diffusion import pipelines
from tests.diffusion.pipelines import CAPTIONS

SETTINGS = Settings(rate=5e-3, steps=(1, 3), batch=2, priors=2)
CAT = Naming("<bean>", "cat")
ONE = perfusion.Sampling(steps=1, size=16)


@functools.cache
def pipe():
    return pipelines.stable_diffusion()


@functools.cache
def moment():
    return perfusion.second_moment(pipe(), CAPTIONS, progress=False)


def subject(name="bean", category="cat", rare="my"):
    rng = np.random.default_rng(len(name))
    images = [Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)) for _ in range(2)]
    mask = Image.new("L", (16, 16))
    mask.paste(255, (4, 4, 12, 12))
    photos = tuple(perfusion.Photo(str(i), image, mask) for i, image in enumerate(images))
    return Subject(name, category, photos, rare)


def method(name):
    return Perfusion(moment()) if name == "Perfusion" else METHODS[name]


def drawn(phrase):
    texts = [f"a photo of a {phrase}", "a photo of a cup on the grass"]
    return [np.asarray(p) for p in perfusion.generate(pipe(), texts, [1, 2], ONE)]


def weights():
    return {
        f"{part}.{name}": tensor.clone()
        for part in ("unet", "text_encoder")
        for name, tensor in getattr(pipe(), part).state_dict().items()
    }


@pytest.fixture(scope="module", autouse=True)
def _small_priors():
    # The tiny pipeline draws 16 pixels; the study's own draws its usual size.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.perfusion, "Sampling", lambda **_: ONE)
        yield


@pytest.fixture(scope="module", params=["Perfusion", *METHODS])
def learned(request, tmp_path_factory):
    before = weights()
    folder = tmp_path_factory.mktemp("artefacts")
    made = trained(method(request.param), pipe(), subject(), SETTINGS, folder)
    return method(request.param), made, before, folder


def test_training_leaves_files_and_the_pipeline_as_it_was(learned):
    own, made, before, _ = learned
    wanted = [3] if own.name == "Perfusion" else [1, 3]
    assert [artefact.step for artefact in made] == wanted
    assert all(artefact.bytes == artefact.file.stat().st_size > 0 for artefact in made)
    after = weights()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert not any(
        p.requires_grad != q for p, q in zip(pipe().unet.parameters(), _flags(), strict=True)
    )


@functools.cache
def _flags():
    return tuple(p.requires_grad for p in pipelines.stable_diffusion().unet.parameters())


def test_more_steps_make_another_file(learned):
    _, made, _, _ = learned
    if len(made) == 1:
        pytest.skip("one state is kept: the gate does the rest")
    first, last = (load_file(artefact.file) for artefact in made)
    assert first.keys() == last.keys()
    assert any(not torch.equal(first[name], last[name]) for name in first)
    assert {tensor.dtype for tensor in last.values()} == {torch.float16}


def test_applying_changes_pictures_and_restores_them_to_the_bit(learned):
    own, made, before, _ = learned
    bare = drawn("cat")
    phrase = own.phrase(subject())
    with own.apply(pipe(), made[-1], own.scales[-1]):
        changed = drawn(phrase)
    assert any((a != b).any() for a, b in zip(bare, changed, strict=True))
    assert all((a == b).all() for a, b in zip(bare, drawn("cat"), strict=True))
    after = weights()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_an_error_while_applied_restores_the_pipeline(learned):
    own, made, _, _ = learned
    bare = drawn("cat")
    with contextlib.suppress(KeyboardInterrupt), own.apply(pipe(), made[-1], own.usual):
        raise KeyboardInterrupt
    assert all((a == b).all() for a, b in zip(bare, drawn("cat"), strict=True))


def test_scales_are_a_way_from_the_base_model(learned):
    own, made, _, _ = learned
    if own.name == "Perfusion":
        pytest.skip("its scale is the gate's bias")
    phrase = own.phrase(subject())
    pictures = []
    for scale in (0.0, 0.5, 1.0):
        with own.apply(pipe(), made[-1], scale):
            pictures.append(np.stack(drawn(phrase)).astype(float))
    nothing, half, whole = pictures
    assert 0 < np.abs(half - nothing).mean() < np.abs(whole - nothing).mean()


def test_the_search_judges_as_many_settings_of_each_method(learned):
    own, made, _, _ = learned
    kept = len(Plan().steps) if len(made) > 1 else 1  # of Perfusion one state, at many biases
    assert set(own.searched) <= set(own.scales)
    assert kept * len(own.searched) == 6


def test_a_training_that_is_there_is_read_and_not_repeated(learned, monkeypatch):
    own, made, _, folder = learned
    monkeypatch.setattr(own, "train", _fails, raising=False)
    again = trained(own, pipe(), subject(), SETTINGS, folder)
    assert again == made
    notes = (folder / "training.json").read_text()
    assert '"seconds"' in notes
    assert '"rate": 0.005' in notes


def _fails(*_):
    raise AssertionError("trained again")


def test_the_same_seed_gives_the_same_file(tmp_path):
    own = METHODS["textual inversion"]
    files = []
    for name in ("a", "b"):
        torch.rand(1)  # global randomness must not matter
        files.append(trained(own, pipe(), subject(), SETTINGS, tmp_path / name)[-1].file)
    assert files[0].read_bytes() == files[1].read_bytes()
    other = Settings(rate=5e-3, steps=(1, 3), batch=2, priors=2, seed=1)
    made = trained(own, pipe(), subject(), other, tmp_path / "c")[-1]
    assert made.file.read_bytes() != files[0].read_bytes()


def test_masks_matter_only_when_asked_for(tmp_path):
    own = METHODS["textual inversion"]
    bare = Settings(rate=5e-3, steps=(2,), batch=2)
    masked = Settings(rate=5e-3, steps=(2,), batch=2, masked=True)
    first = trained(own, pipe(), subject(), bare, tmp_path / "a")[-1]
    second = trained(own, pipe(), subject(), masked, tmp_path / "b")[-1]
    assert first.file.read_bytes() != second.file.read_bytes()


def test_two_loras_add_up_and_leave_one_by_one(tmp_path):
    own = METHODS["DreamBooth-LoRA, rank 4"]
    one = trained(own, pipe(), subject(), SETTINGS, tmp_path / "a")[-1]
    two = trained(own, pipe(), subject("mug", "cup", "two"), SETTINGS, tmp_path / "b")[-1]
    bare = drawn("cat")
    with own.apply(pipe(), one, 1.0):
        alone = drawn("cat")
        with own.apply(pipe(), two, 1.0):
            both = drawn("cat")
        assert all((a == b).all() for a, b in zip(alone, drawn("cat"), strict=True))
    assert any((a != b).any() for a, b in zip(alone, both, strict=True))
    assert all((a == b).all() for a, b in zip(bare, drawn("cat"), strict=True))


def test_a_lora_that_cannot_be_loaded_leaves_nothing(tmp_path):
    bare = weights()
    with (
        pytest.raises(Exception, match=r"."),
        loaded(pipe().unet, {"x.lora_A.weight": torch.ones(1, 1)}, "bad", 1.0),
    ):
        pass
    assert weights().keys() == bare.keys()


@pytest.fixture(scope="module")
def customs(tmp_path_factory):
    own = CustomDiffusion()
    folder = tmp_path_factory.mktemp("custom")
    settings = Settings(rate=0.05, steps=(4,), batch=2, priors=2)
    return own, [
        trained(own, pipe(), each, settings, folder / each.name)[-1]
        for each in (subject(), subject("mug", "cup", "two"))
    ]


def test_merged_weights_give_each_concept_what_its_own_weights_give(customs):
    own, made = customs
    modules = Parts(pipe()).targets.modules(pipe().unet)
    name = next(iter(modules))
    with own.merged(pipe(), made, moment()):
        for artefact in made:
            keys = own._keys(pipe(), artefact.subject)
            tuned = load_file(artefact.file)[name].float()
            bare = modules[name].weight.detach()
            wrong = (modules[name](keys) - keys @ tuned.T).norm()
            assert wrong < 0.2 * (keys @ (tuned - bare).T).norm()


def test_merged_weights_go_without_a_trace(customs):
    own, made = customs
    before, bare = weights(), drawn("cat")
    with own.merged(pipe(), made, moment()):
        assert any((a != b).any() for a, b in zip(bare, drawn("<bean> cat"), strict=True))
    assert all(torch.equal(after, before[name]) for name, after in weights().items())


def test_joint_training_knows_both_words(tmp_path):
    own = CustomDiffusion()
    subjects = [subject(), subject("mug", "cup", "two")]
    made = own.train_jointly(pipe(), subjects, SETTINGS, tmp_path)[-1]
    with own.apply(pipe(), made, 1.0):
        tokens = pipe().tokenizer("a photo of a <bean> and a <mug>").input_ids
    assert len([t for t in tokens if t >= len(pipe().tokenizer)]) == 2
    stranger = Artefact(subject("oak", "cup"), made.file, made.step)
    with (
        pytest.raises(KeyError, match="the file knows the words"),
        own.apply(pipe(), stranger, 1.0),
    ):
        pass


def test_the_category_word_changes_nothing(tmp_path):
    own = CategoryWord()
    made = trained(own, pipe(), subject(), SETTINGS, tmp_path)[-1]
    bare = drawn("cat")
    with own.apply(pipe(), made, 1.0):
        assert all((a == b).all() for a, b in zip(bare, drawn("cat"), strict=True))
    assert made.bytes == 0


def test_the_recipe_gets_the_studys_settings():
    config = Perfusion(moment(), config=Config(bias=0.6)).configured(SETTINGS)
    assert (config.steps, config.batch, config.bias) == (3, 2, 0.6)
    assert (config.value_rate, config.embedding_rate) == (5e-3, 1e-3)
    assert not config.flip


# ---------------------------------------------------------------------------- ablations


def test_values_from_zero_start_at_zero_with_the_rates_of_the_category():
    metric = perfusion.metric_of(moment())
    zero = ablations.ZeroValues(Parts(pipe()), CAT, metric, Config())
    usual = Learner(Parts(pipe()), CAT, metric, Config())
    assert all(float(t.detach().abs().max()) == 0 for t in zero.targets.values())
    rates = [[g["lr"] for g in learner.optimiser.param_groups] for learner in (zero, usual)]
    assert rates[0] == rates[1]


def test_an_ungated_learner_makes_plain_rank_one_edits():
    metric = perfusion.metric_of(moment())
    edits = ablations.Ungated(Parts(pipe()), CAT, metric, Config()).edits()
    assert {type(edit.gate) for edit in edits.values()} == {rk.Identity}


@pytest.mark.slow
def test_ablations_differ_from_the_method_itself(tmp_path):
    every = ablations.ablations(
        moment(), CAPTIONS, lambda texts: perfusion.second_moment(pipe(), texts, progress=False)
    )
    # Before anything is learned an ungated edit is none: the target is what the layer gives anyway.
    far = Settings(rate=0.5, steps=(3,), batch=2)
    plain = trained(every["as it is"].method, pipe(), subject(), far, tmp_path / "plain")[-1]
    for name in ("gate off (ROME)", "values from zero", "mask off", "covariance = identity"):
        one = every[name]
        made = trained(one.method, pipe(), one.given(subject()), far, tmp_path / name)[-1]
        assert made.file.read_bytes() != plain.file.read_bytes()
        bare = drawn("cat")
        with one.method.apply(pipe(), made, one.method.scales[-1]):
            assert any((a != b).any() for a, b in zip(bare, drawn("<bean>"), strict=True))
        assert all((a == b).all() for a, b in zip(bare, drawn("cat"), strict=True))


def test_cost_is_measured():
    with methods.measured() as cost:
        held = torch.ones(30_000_000)
        assert float(held[-1]) == 1.0
        del held
    assert cost.seconds > 0
    assert cost.megabytes == 0 or cost.megabytes > 90
