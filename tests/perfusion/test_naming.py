"""A word before the category, and keys that are locked at the coarse levels only."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from rankedit_recipes import perfusion
from rankedit_recipes.diffusion.errors import PipelineError
from rankedit_recipes.diffusion.parts import Parts
from rankedit_recipes.diffusion.statistics import second_moment
from rankedit_recipes.diffusion.words import embedding_of
from rankedit_recipes.perfusion.commands import opening, pictures
from rankedit_recipes.perfusion.concept import Concept
from rankedit_recipes.perfusion.errors import PerfusionError
from rankedit_recipes.perfusion.naming import Naming
from rankedit_recipes.perfusion.prompts import origin_encoding

import rankedit as rk
from tests.diffusion import pipelines
from tests.diffusion.pipelines import CAPTIONS
from tests.perfusion.concepts import random_concept

DRAWN = {"num_inference_steps": 2, "height": 16, "width": 16, "output_type": "np"}


@pytest.fixture(scope="module")
def pipe():
    return pipelines.stable_diffusion()


def taught(pipe, photos=1, **settings) -> Concept:
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, 255, (photos, 20, 24, 3), dtype=np.uint8)
    config = perfusion.Config(**({"steps": 2, "batch": 2} | settings))
    return perfusion.learn(
        pipe, [Image.fromarray(p) for p in drawn], placeholder="<bean>", category="cat",
        config=config, statistics=second_moment(pipe, CAPTIONS, progress=False), progress=False,
    )  # fmt: skip


def picture(pipe, prompt):
    return pipe(prompt, generator=torch.Generator().manual_seed(0), **DRAWN).images


def outputs(pipe, naming, templates) -> dict:
    """What the bare projections give at the word that a concept stands for, float64."""
    found = Parts(pipe).targets
    modules = found.modules(Parts(pipe).denoiser.module)
    key = origin_encoding(Parts(pipe), naming, templates)[None]
    with torch.no_grad():
        return {name: rk.linear_output(module, key).double() for name, module in modules.items()}


def test_an_adjective_begins_as_its_word_where_that_word_stands(pipe):
    naming = Naming("<bean>", "cat", "red")
    concept = taught(pipe, adjective="red", templates=("a {} on the beach",), steps=1)
    start = origin_encoding(Parts(pipe), naming, ("a {} on the beach",))
    ids = list(pipe.tokenizer("a red cat on the beach").input_ids)
    place = ids.index(pipe.tokenizer.get_vocab().get("red</w>", pipe.tokenizer("red").input_ids[1]))
    there = Parts(pipe).text.encode(["a red cat on the beach"]).embeds[0, place]
    torch.testing.assert_close(start, there, rtol=0, atol=1e-6)
    assert float((concept.key - start).norm()) < 0.05 * float(start.norm())
    assert (concept.phrase, concept.category, concept.adjective) == ("<bean> cat", "cat", "red")
    row = embedding_of(pipe.text_encoder, pipe.tokenizer("red").input_ids[-2])
    moved = float((concept.embeddings[0] - row).abs().max())
    assert 0 < moved < 0.5 * float(row.abs().max())


def test_an_adjective_is_kept_in_the_file_and_locks_to_its_word(pipe, tmp_path):
    concept = random_concept(pipe, adjective="red")
    concept.save(tmp_path / "c.safetensors")
    loaded = Concept.load(tmp_path / "c.safetensors")
    assert loaded.naming == concept.naming
    there, category = (
        outputs(pipe, naming, concept.templates)
        for naming in (concept.naming, Naming("<bean>", "cat"))
    )
    with perfusion.apply(pipe, concept) as applied:
        for name in Parts(pipe).targets.keys:
            locked = applied.edits[name].targets
            torch.testing.assert_close(locked, there[name].to(locked), rtol=1e-5, atol=1e-5)
            apart = float((locked - category[name]).norm())
            assert apart > 0.01 * float(category[name].norm())


def test_the_global_lock_puts_the_adjective_back(pipe):
    # With the gate shut and the row of the word it stands for, the prompt is the plain one.
    row = embedding_of(pipe.text_encoder, pipe.tokenizer("red").input_ids[-2])
    concept = replace(random_concept(pipe, adjective="red"), embeddings=[row])
    with perfusion.apply(pipe, concept, lock="global", floor=2.0):
        inside = picture(pipe, "a photo of a <bean> cat")
    np.testing.assert_allclose(inside, picture(pipe, "a photo of a red cat"), atol=1e-4)


def test_the_finest_level_is_found_by_running_the_model(pipe):
    found = Parts(pipe).targets
    assert set(found.finest) == {name for name in found.keys if "mid_block" not in name}
    assert 0 < len(found.finest) < len(found.keys)


def test_the_coarse_lock_learns_the_finest_level_only(pipe):
    concept = taught(pipe, lock="coarse", adjective="red")
    found = Parts(pipe).targets
    pairs = dict(zip(found.keys, found.values, strict=True))
    finest = {*found.finest, *(pairs[key] for key in found.finest)}
    assert set(concept.targets) == finest
    assert 0 < len(finest) < len(found.keys) + len(found.values)
    locked = outputs(pipe, concept.naming, concept.templates)
    with perfusion.apply(pipe, concept) as applied:
        for name, there in locked.items():
            distance = float((applied.edits[name].targets - there).norm())
            assert (distance < 1e-4 * float(there.norm())) == (name not in finest)


def test_a_lock_that_is_asked_for_holds_learned_keys_too(pipe):
    concept = taught(pipe, lock="trained", adjective="red")
    locked = outputs(pipe, concept.naming, concept.templates)
    with perfusion.apply(pipe, concept, lock="local") as applied:
        for name in Parts(pipe).targets.keys:
            assert name in concept.targets
            there = locked[name]
            held = applied.edits[name].targets
            torch.testing.assert_close(held, there.to(held), rtol=1e-5, atol=1e-5)


def test_a_prompt_that_leaves_the_category_out_is_warned_of():
    phrases = {"<bean>": "<bean> cat", "<mug>": "<mug>"}
    with pytest.warns(rk.RankeditWarning, match="say '<bean> cat' in 'a <bean> and a <mug>'"):
        pictures.check_prompts(["a <bean> and a <mug>"], phrases)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pictures.check_prompts(["a <bean> cat and a <mug>"], phrases)


def test_the_sandbox_has_settings_of_its_own(tmp_path):
    assert opening.open_config(None, "sandbox") == opening.SANDBOX_CONFIG
    assert opening.open_config(None, "some/model") == perfusion.Config()
    file = tmp_path / "own.toml"
    file.write_text('lock = "global"\n')
    assert opening.open_config(file, "sandbox") == replace(opening.SANDBOX_CONFIG, lock="global")
    assert opening.open_config(file, "some/model") == perfusion.Config(lock="global")


def test_a_model_of_one_level_has_no_coarse_lock():
    with pytest.raises(PerfusionError, match=r"in one resolution; choose the lock 'local'"):
        taught(pipelines.pixart(), lock="coarse")


def test_an_adjective_of_the_templates_own_words_is_refused(pipe):
    with pytest.raises(PerfusionError, match=r"'my' stands in the template 'a picture of my"):
        taught(pipe, adjective="my")


@pytest.mark.parametrize("lock", ["coarse", "trained", "loose"])
def test_only_locks_that_hold_every_key_can_be_asked_for(pipe, lock):
    with pytest.raises(PerfusionError, match="lock must be 'local', 'global' or None"):
        perfusion.apply(pipe, random_concept(pipe), lock=lock)


def test_two_adjectives_are_told_apart_and_merged(pipe):
    bean, mug = (
        replace(random_concept(pipe, word, kind, seed=seed, adjective="red"), lock="local")
        for seed, (word, kind) in enumerate((("<bean>", "cat"), ("<mug>", "cup")))
    )
    with perfusion.apply(pipe, [bean, mug]) as applied:
        assert applied.phrases == {"<bean>": "<bean> cat", "<mug>": "<mug> cup"}
        assert applied.lock == "local"
        told = perfusion.explain(pipe, "a <bean> cat and a <mug> cup", show=False)
        assert told.similarity["values"].shape[1] == 2


def test_an_adjective_that_the_model_does_not_know_is_refused():
    world = pipelines.pixart()
    with pytest.raises(PipelineError, match="the adjective must be a word or two"):
        taught(world, adjective="qwxz")


# ------------------------------------------------------------------------ the dead zone


@pytest.mark.parametrize("lock", ["coarse", "local"])
def test_what_one_photo_taught_is_held_back_more_under_the_coarse_lock(pipe, lock):
    usual = perfusion.PRESETS[lock].bias
    one, two = (taught(pipe, photos=n, lock=lock, adjective="red").bias for n in (1, 2))
    assert two == usual
    assert (one > usual) if lock == "coarse" else (one == usual)


def test_the_coarse_lock_has_a_dead_zone_and_the_file_keeps_it(pipe, tmp_path):
    concept = taught(pipe, lock="coarse", adjective="red")
    assert concept.floor == perfusion.PRESETS["coarse"].floor > 0
    assert taught(pipe).floor is perfusion.PRESETS["local"].floor is None
    concept.save(tmp_path / "bean.safetensors")
    kept = Concept.load(tmp_path / "bean.safetensors")
    assert kept.floor == concept.floor
    with perfusion.apply(pipe, kept):
        own = perfusion.explain(pipe, "a red <bean> cat on the grass", show=False)
    similarity, opening = own.similarity["values"][:, 0], own.opening["values"][:, 0]
    dead = similarity < concept.floor
    assert dead.any()
    assert not dead.all()
    assert float(opening[dead].abs().max()) == 0
    assert float(opening[~dead].abs().min()) > 0


@pytest.mark.parametrize(
    ("floors", "asked", "expected"),
    [
        ((0.6, 0.4), {}, 0.4),
        ((0.6, None), {}, None),
        ((None, None), {}, None),
        ((0.6, 0.4), {"floor": None}, None),
        ((0.6, None), {"floor": 0.7}, 0.7),
        ((0.6, 0.4), {"lock": "global"}, 0.4),
        ((0.6, 0.4), {"lock": "global", "floor": 0.2}, 0.2),
    ],
)
def test_concepts_share_the_lowest_of_their_dead_zones(pipe, floors, asked, expected):
    made = [
        replace(random_concept(pipe, word, kind, seed=seed), floor=floor)
        for seed, (word, kind, floor) in enumerate(
            zip(("<bean>", "<mug>"), ("cat", "cup"), floors, strict=True)
        )
    ]
    with perfusion.apply(pipe, made, **asked) as applied:
        assert {edit.floor for edit in applied.edits.values()} == {expected}
