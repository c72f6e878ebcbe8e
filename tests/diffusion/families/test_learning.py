"""Families on which a concept is learned: all weights random, the pipeline's own forward."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
import torch
from PIL import Image
from rankedit_recipes.diffusion.errors import PipelineError
from rankedit_recipes.diffusion.generating import Sampling, generate
from rankedit_recipes.diffusion.parts import Parts
from rankedit_recipes.diffusion.statistics import second_moment
from rankedit_recipes.diffusion.text import word_tokens
from rankedit_recipes.diffusion.words import embedding_of
from rankedit_recipes.perfusion.applying.apply import apply
from rankedit_recipes.perfusion.learning.config import Config
from rankedit_recipes.perfusion.learning.photos import Photo
from rankedit_recipes.perfusion.learning.planning import LearnTask, plan
from rankedit_recipes.perfusion.learning.training import learn

import rankedit as rk
from tests.diffusion import pipelines
from tests.diffusion.families import tiny
from tests.diffusion.pipelines import CAPTIONS
from tests.perfusion.concepts import random_concept

TEMPLATES = ("a photo of a {}", "a picture of my {}")
FAMILIES = ["wan", "ltx", "latte"]
PROMPT, OTHER = "a photo of a zbean", "the dog on the grass"
CONFIG = Config(steps=2, batch=2, templates=TEMPLATES, size=64)


def photo():
    generator = np.random.default_rng(0)
    return Image.fromarray(generator.integers(0, 255, (64, 64, 3), dtype=np.uint8))


def picture(pipe, prompt):
    result = pipe(
        prompt, negative_prompt="the grass", height=64, width=64, num_inference_steps=2,
        output_type="np", generator=torch.Generator().manual_seed(3), **tiny.one_frame(pipe),
    )  # fmt: skip
    return np.asarray(next(iter(result.values())))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_concept_is_learned_and_changes_the_picture_only_with_its_word(name):
    pipe = getattr(tiny, name)()
    before = picture(pipe, OTHER)
    weights = {n: t.clone() for n, t in Parts(pipe).denoiser.plain.state_dict().items()}
    moment = second_moment(pipe, CAPTIONS[::5], progress=False)
    concept = learn(
        pipe, [photo()], placeholder="zbean", category="cat", statistics=moment, config=CONFIG,
        progress=False,
    )  # fmt: skip
    check_learned(pipe, concept)
    with apply(pipe, concept, floor=0.8, strength=30.0):
        assert np.array_equal(picture(pipe, OTHER), before)
        inside = picture(pipe, PROMPT)
    with apply(pipe, concept, strength=0.0):
        assert not np.array_equal(picture(pipe, PROMPT), inside)
    assert np.isfinite(inside).all()
    # Latte cuts prompts by their neighbours in the batch: the lock does not know them, and says so.
    if name != "latte":
        with apply(pipe, concept, lock="global", floor=0.8, strength=0.0):
            # A prompt that the lock did not see would raise its warning here.
            assert not np.array_equal(picture(pipe, PROMPT), inside)
    made = generate(pipe, [OTHER], [0], Sampling(steps=1, size=64))
    assert [image.size for image in made] == [(64, 64)]
    task = LearnTask([Photo("bean.png", photo())], "zbean", "cat", CONFIG)
    assert any("nothing was written" in line for line in plan(pipe, task))
    assert np.array_equal(picture(pipe, OTHER), before)
    after = Parts(pipe).denoiser.plain.state_dict()
    assert all(torch.equal(tensor, after[n]) for n, tensor in weights.items())


def check_learned(pipe, concept):
    """The values and the word have moved from where learning starts: at the category's."""
    parts = Parts(pipe)
    assert set(concept.targets) == set(parts.targets.values)
    for name, value in concept.targets.items():
        with torch.no_grad():
            start = rk.linear_output(parts.projections[name], concept.key[None])[0]
        assert float((value - start).norm()) > 0.01 * float(start.norm())
    for (_, encoder, tokenizer), row in zip(parts.text.encoders, concept.embeddings, strict=True):
        start = embedding_of(encoder, word_tokens(tokenizer, "cat")[-1])
        assert float((row - start).norm()) > 1e-3 * float(start.norm())


def test_words_that_are_cleaned_away_are_told_of():
    pipe = pipelines.pixart()
    concept = random_concept(pipe)

    class Cleaning(type(pipe)):
        def _text_preprocessing(self, text, clean_caption=False):
            return [re.sub("<.*?>", "", one) for one in ([text] if isinstance(text, str) else text)]

    pipe.__class__ = Cleaning
    with (
        pytest.warns(rk.RankeditWarning, match=r"takes <bean> out of prompts.*without brackets"),
        apply(pipe, concept),
    ):
        pass
    with apply(pipe, concept.renamed("zbean")) as applied:
        assert applied.triggers == ("zbean",)
    with pytest.raises(PipelineError, match=r"clean captions take words in brackets out"):
        learn(
            pipe, [photo()], placeholder="<bean>", category="cat", statistics=CAPTIONS[::5],
            config=dataclasses.replace(CONFIG, size=16), progress=False,
        )  # fmt: skip
