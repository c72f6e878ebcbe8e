"""The study of what is promised draws with the concepts that it asks about."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from personalisation.promises import Promises
from personalisation.prompts import Prompt
from personalisation.world import Plan, World
from rankedit_recipes.perfusion.commands.opening import SANDBOX_CONFIG
from rankedit_recipes.perfusion.locks import PRESETS

from tests.perfusion.concepts import random_concept


@pytest.mark.parametrize("half", [False, True])
def test_concepts_are_in_the_pipeline_that_draws(tmp_path, monkeypatch, half):
    monkeypatch.setattr("personalisation.world.sandbox_captions", lambda: ["a photo of a cat"])
    world = World(tmp_path, Plan(sampling=1, half=half))
    promises = Promises(world, SANDBOX_CONFIG)
    concept = random_concept(world.pipe)
    asked = [(Prompt("a photo of a {} on the grass", "grass"), 1)]
    bare = promises._drawn([], asked, "cat")
    assert torch.equal(bare, promises._drawn([], asked, "cat"))
    assert not torch.equal(bare, promises._drawn([concept], asked, "cat", floor=None))
    assert torch.equal(bare, promises._drawn([], asked, "cat"))


def test_answers_of_other_presets_have_another_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("personalisation.world.sandbox_captions", lambda: ["a photo of a cat"])
    world = World(tmp_path, Plan(sampling=1))
    first = Promises(world, SANDBOX_CONFIG).folder
    assert Promises(world, SANDBOX_CONFIG).folder == first
    assert Promises(world, replace(SANDBOX_CONFIG, steps=7)).folder != first
    changed = PRESETS["coarse"]._replace(bias_of_one_photo=0.8)
    monkeypatch.setitem(PRESETS, "coarse", changed)
    assert Promises(world, SANDBOX_CONFIG).folder != first
