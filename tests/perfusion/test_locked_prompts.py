"""Which prompts the global lock reads in the place of those that were given."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from rankedit_recipes.diffusion.parts import Parts
from rankedit_recipes.diffusion.vectors import in_place_of
from rankedit_recipes.perfusion.applying.applied import in_use
from rankedit_recipes.perfusion.applying.apply import apply

import rankedit as rk
from tests.diffusion import pipelines
from tests.perfusion.concepts import random_concept


@pytest.fixture
def pipe():
    made = pipelines.stable_diffusion()
    made.tokenizer = copy.deepcopy(made.tokenizer)  # all tests share one
    return made


@pytest.mark.parametrize(
    ("prompt", "category"),
    [("a zz-a and a zz", "a cup and a cat"), ("a zz, zz-a", "a cat, cup")],
)
def test_the_global_lock_tells_words_from_words_that_begin_like_them(pipe, prompt, category):
    concepts = [random_concept(pipe, "zz"), random_concept(pipe, "zz-a", "cup", 1)]
    with apply(pipe, concepts, lock="global"):
        keys = in_use[pipe].key_reads(Parts(pipe).text.encode([prompt]).embeds)
    torch.testing.assert_close(keys, Parts(pipe).text.encode([category]).embeds)


@pytest.mark.parametrize("prompt", ["zz-ab", "azz-a", "zz-a_1 azz"])
def test_a_longer_word_hides_a_shorter_one_as_for_tokenizers(pipe, prompt):
    words = {"zz": "cat", "zz-a": "cup"}
    with apply(pipe, [random_concept(pipe, "zz"), random_concept(pipe, "zz-a", "cup", 1)]):
        texts = Parts(pipe).text
        found = [texts.positions(texts.encode([prompt]), word)[0] for word in words]
    assert found == [[], []]
    assert in_place_of(words, prompt) == prompt


@pytest.mark.parametrize(
    ("negative", "category"),
    [("a <bean>", "a cat"), (["a red <bean> on grass"], ["a red cat on grass"])],
)
@pytest.mark.parametrize("pictures", [1, 2])
def test_the_global_lock_holds_negative_prompts_too(pipe, negative, category, pictures):
    prompt = "a dog" if isinstance(negative, str) else ["a dog"]
    given = {
        "device": "cpu",
        "num_images_per_prompt": pictures,
        "do_classifier_free_guidance": True,
    }
    own = pipe.encode_prompt(prompt, negative_prompt=category, **given)[1]
    with apply(pipe, random_concept(pipe), lock="global"):
        read = pipe.encode_prompt(prompt, negative_prompt=negative, **given)[1]
        keys = in_use[pipe].key_reads(read)
    torch.testing.assert_close(keys, own)
    assert float((read - own).detach().norm()) > 0.01 * float(own.detach().norm())


def test_the_global_lock_holds_negative_prompts_beside_embeddings(pipe):
    own = Parts(pipe).text.encode(["a cat"]).embeds
    with apply(pipe, random_concept(pipe), lock="global"):
        read = pipe.encode_prompt(
            None, "cpu", 1, True, "a <bean>", prompt_embeds=torch.randn_like(own)
        )[1]
        keys = in_use[pipe].key_reads(read)
    torch.testing.assert_close(keys, own)


def test_further_negative_prompts_of_xl_are_locked():
    pipe = pipelines.stable_diffusion_xl()
    more = {"device": "cpu", "num_images_per_prompt": 1, "do_classifier_free_guidance": True}
    own = pipe.encode_prompt("a dog", negative_prompt="a cat", negative_prompt_2="a cat", **more)[1]
    with apply(pipe, random_concept(pipe), lock="global"):
        read = pipe.encode_prompt(
            "a dog", negative_prompt="a <bean>", negative_prompt_2="a <bean>", **more
        )[1]
        keys = in_use[pipe].key_reads(read)
    torch.testing.assert_close(keys, own)


@pytest.mark.parametrize("lock", ["local", "global"])
def test_two_pictures_of_a_prompt_of_a_plain_call(pipe, lock):
    with apply(pipe, random_concept(pipe), lock=lock):
        one, two = (
            pipe.encode_prompt(["a <bean>", "a dog"], "cpu", pictures, False)[0]
            for pictures in (1, 2)
        )
        keys = [in_use[pipe].key_reads(read) for read in (one, two)]
    torch.testing.assert_close(keys[0].repeat_interleave(2, 0), keys[1])


WEIGHTS = {
    "word raised": lambda w, at: w.index_fill(0, torch.tensor(at), 1.5),
    "word lowered": lambda w, at: w.index_fill(0, torch.tensor(at), 0.3),
    "word gone": lambda w, at: w.index_fill(0, torch.tensor(at), 0.0),
    "all": lambda w, _: 0.8 * w,
    "each": lambda w, _: w + torch.rand(len(w), generator=torch.Generator().manual_seed(0)),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("category", ["cat", "photo of a cat"])
@pytest.mark.parametrize("kind", WEIGHTS)
def test_prompt_weighting_is_locked_with_its_weights(pipe, kind, category):
    with apply(pipe, random_concept(pipe, category=category), lock="global"):
        texts = Parts(pipe).text
        encoded = texts.encode(["a red <bean> and a dog"])
        known = in_use[pipe].key_reads(encoded.embeds)[0]
        weights = WEIGHTS[kind](torch.ones(len(known)), texts.positions(encoded, "<bean>")[0])
        given = weights[:, None] * encoded.embeds
        keys = in_use[pipe].key_reads(given)[0]
    torch.testing.assert_close(keys, weights[:, None] * known)
    assert not torch.allclose(known, encoded.embeds[0], atol=1e-2)


@pytest.mark.parametrize("strength", [0.8, 1.0, 1.3])
def test_embeddings_of_another_pipeline_are_told_of(pipe, strength):
    """What only that one encoded, as where it alone has the word, and this one never saw."""
    other, concept = copy.deepcopy(pipe), random_concept(pipe)
    foreign = Parts(other).text.encode(["a photo of a cup"]).embeds.clone()
    with apply(pipe, concept, lock="global"):
        with warnings.catch_warnings():
            warnings.simplefilter("error", rk.RankeditWarning)
            assert torch.equal(in_use[pipe].key_reads(foreign), foreign)  # has no word of a concept
        foreign[0, 5] = strength * concept.key
        with pytest.warns(rk.RankeditWarning, match=r"whose encoding this pipeline's .* not give"):
            in_use[pipe].key_reads(foreign)
