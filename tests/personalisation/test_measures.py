"""Prompts and judging, on pictures whose truth is drawn."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import torch
from personalisation.measures import DEFINITIONS, Judges, real_photos
from personalisation.prompts import crossed, off_prompts, prompts_for, truth
from personalisation.tables import COST_FIGURES, OFF_FIGURES, PICTURE_FIGURES
from personalisation.world import Plan
from rankedit_recipes import sandbox
from rankedit_recipes.sandbox.images.tokenizer import build_tokenizer
from rankedit_recipes.sandbox.images.vocabulary import CATEGORIES


@pytest.fixture(scope="module")
def judges():
    return Judges()


@pytest.fixture(scope="module")
def bean():
    return sandbox.concept("bean")


def test_prompts_are_balanced_known_words_and_never_of_the_own_category():
    for category in CATEGORIES:
        prompts = prompts_for(category, 24)
        assert len({prompt.text for prompt in prompts}) == 24
        assert max(Counter(prompt.scene for prompt in prompts).values()) == 4
        pairs = [prompt for prompt in prompts if prompt.other]
        assert len(pairs) == 16
        assert set(Counter(prompt.relation for prompt in pairs).values()) == {4}
        assert category not in {prompt.other for prompt in pairs}
        assert len({prompt.other for prompt in pairs}) == 9
        tokenizer = build_tokenizer()
        for prompt in [*prompts, *off_prompts(category, 12)]:
            text = prompt.text.format(category)
            assert tokenizer.unk_token_id not in tokenizer(text).input_ids, text
            assert prompt.other in prompt.text


def test_prompts_are_a_prefix_of_more_prompts():
    assert prompts_for("cat", 24)[:7] == prompts_for("cat", 7)


def test_prompts_without_the_concept_do_not_name_its_category():
    assert all("cat" not in prompt.text.split() for prompt in off_prompts("cat", 30))


def test_every_prompt_meets_every_seed_and_no_picture_shares_one():
    prompts = prompts_for("cat", 5)
    pairs = crossed(prompts, 3, first=100)
    assert [prompt for prompt, _ in pairs[:3]] == [prompts[0]] * 3
    assert len({seed for _, seed in pairs}) == 15


def test_every_figure_has_a_definition():
    assert {*PICTURE_FIGURES, *OFF_FIGURES, *COST_FIGURES} <= set(DEFINITIONS)


def test_drawn_truth_obeys_its_prompts_and_has_the_identity(judges, bean):
    prompts = prompts_for("cat", 24)
    marks = judges.marks(bean, truth(bean, prompts, seed=0), prompts)
    for name in ("scene", "other", "colour", "relation", "category", "text"):
        told = [mark for mark in marks[name] if mark is not None]
        assert sum(told) / len(told) >= 0.95, name
    assert sum(marks["identity"]) / 24 > 0.8


def test_marks_are_none_where_the_prompt_asks_for_nothing(judges, bean):
    prompts = prompts_for("cat", 3)
    marks = judges.marks(bean, truth(bean, prompts, seed=0), prompts)
    for name in ("other", "colour", "relation"):
        assert [mark is None for mark in marks[name]] == [True, False, False]
    assert marks["text"][0] == marks["scene"][0]


def test_photos_that_ignore_the_prompt_have_the_identity_and_not_the_text(judges, bean):
    prompts = prompts_for("cat", 24)
    marks = judges.marks(bean, real_photos(bean, 24, seed=9), prompts)
    assert sum(marks["identity"]) / 24 == pytest.approx(1, abs=0.15)
    assert sum(marks["text"]) / 24 < 0.4


def test_identity_is_zero_for_random_skins_and_one_for_other_photos(judges, bean):
    own = judges.identity(bean, real_photos(bean, 8, seed=8))
    assert sum(own) / 8 == pytest.approx(1, abs=1e-5)
    strangers = [sandbox.concept(9000 + index, category="cat") for index in range(8)]
    others = torch.cat([real_photos(stranger, 2, seed=8) for stranger in strangers])
    assert sum(judges.identity(bean, others)) / 16 == pytest.approx(0, abs=1e-5)


def test_the_wrong_scene_costs_exactly_its_share(judges, bean):
    prompts = prompts_for("cat", 12)
    pixels = truth(bean, prompts, seed=0)
    right = judges.marks(bean, pixels, prompts)
    moved = judges.marks(bean, pixels.roll(1, 0), prompts)
    assert sum(moved["scene"]) < sum(right["scene"]) / 2


def test_diversity_is_zero_for_copies_and_more_for_other_scenes(judges, bean):
    photos = real_photos(bean, 4, seed=3)
    assert judges.diversity(photos[:1].repeat(4, 1, 1, 1), 4) == pytest.approx([0], abs=1e-5)
    assert judges.diversity(photos, 4)[0] > 0.05
    with pytest.raises(ValueError, match="not groups of 3 seeds"):
        judges.diversity(photos, 3)


def test_two_concepts_are_each_nearest_to_themselves(judges, bean):
    mug, teacup = sandbox.concept("mug"), sandbox.concept("teacup")
    among = [bean, mug, teacup, sandbox.concept("whiskers")]
    drawn = torch.stack([torch.tensor(_pixels(p)) for p in sandbox.together(bean, mug, 8)])
    found = judges.nearest((bean, mug), among, drawn)
    assert sum(found["both_right"]) >= 6
    swapped = judges.nearest((bean, teacup), among, drawn)
    assert sum(swapped["both_right"]) == 0
    assert sum(found["worse_identity"]) < sum(found["identity"])


def _pixels(photo):
    import numpy as np

    return np.asarray(photo.image).copy()


def test_plans_are_changed_by_words():
    plan = Plan().changed(["concepts=3", "steps=10,20", "every_scale=0", "ablation_scales=0.5"])
    assert (plan.concepts, plan.steps, plan.every_scale) == (3, (10, 20), False)
    assert plan.ablation_scales == (0.5,)
    with pytest.raises(ValueError, match="expected NAME=VALUE with one of"):
        Plan().changed(["concept=3"])
    assert json.dumps(plan.steps) == "[10, 20]"
