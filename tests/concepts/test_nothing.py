"""What erasing to nothing means: the mean of the words nearby, in the word's place, and beyond."""

import dataclasses

import pytest
import torch
from rankedit_recipes import concepts
from rankedit_recipes.concepts.contexts import nearest_words
from rankedit_recipes.concepts.methods.own import named
from rankedit_recipes.concepts.reading import read_prompts, read_request
from rankedit_recipes.diffusion.parts import Parts

from tests.diffusion import pipelines


@pytest.fixture(scope="module")
def parts():
    return Parts(pipelines.stable_diffusion().to(torch.float64))


def settings(**changed):
    return dataclasses.replace(named("covariance"), tokens="all", **changed)


def vectors(parts, prompt):
    return read_prompts(parts, [prompt], [""])[0].vectors


@pytest.mark.parametrize("beyond", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("context", ["a {}", "a {} dog"])
def test_guides_are_the_mean_of_the_neighbours_in_place_and_so_much_further(parts, beyond, context):
    request = concepts.erase("cat", contexts=(context,))
    rows = read_request(parts, request, settings(neighbours=3, beyond=beyond))
    near = nearest_words(parts.text, "cat", 3, without=["cat"])
    assert len(near) == 3
    mean = torch.stack([vectors(parts, context.format(word)) for word in near]).mean(0)
    keys = vectors(parts, context.format("cat"))
    torch.testing.assert_close(rows.keys, keys)
    torch.testing.assert_close(rows.guides, mean + beyond * (mean - keys))


def test_a_phrase_keeps_its_length_so_that_what_follows_stays_in_place(parts):
    request = concepts.erase("blue cat", contexts=("a {} dog",))
    rows = read_request(parts, request, settings(neighbours=1, beyond=0.0))
    known = ["blue", "cat"]
    [first], [second] = (nearest_words(parts.text, w, 1, without=known) for w in known)
    torch.testing.assert_close(rows.guides, vectors(parts, f"a {first} {second} dog"))


def test_synonyms_are_no_neighbours_and_a_given_goal_is_kept(parts):
    near = nearest_words(parts.text, "cat", 2)
    request = concepts.erase("cat", near[0], contexts=("a {}",))
    rows = read_request(parts, request, settings(neighbours=1, beyond=0.0))
    known = sorted({"cat", near[0]})
    [goal] = nearest_words(parts.text, "cat", 1, without=known)
    length = len(vectors(parts, "a cat"))
    torch.testing.assert_close(rows.guides[:length], vectors(parts, f"a {goal}"))
    given = concepts.erase("cat", to="dog", contexts=("a {}",))
    rows = read_request(parts, given, settings(neighbours=3, beyond=0.5))
    torch.testing.assert_close(rows.guides, vectors(parts, "a dog"))


def test_published_methods_mean_the_prompt_without_the_word():
    others = [s for name, s in concepts.METHODS.items() if name != "covariance"]
    assert all((s.neighbours, s.beyond) == (0, 0.0) for s in others)


def test_forms_of_a_word_are_left_out(parts):
    words = nearest_words(parts.text, "cat", 5)
    first = words[0]
    left = nearest_words(parts.text, "cat", 5, without=[first[:2]])
    assert all(not word.startswith(first[:2]) for word in left)


def test_without_a_known_neighbour_a_goal_is_asked_for(parts, monkeypatch):
    monkeypatch.setattr("rankedit_recipes.concepts.reading.nearest_words", lambda *_, **__: [])
    with pytest.raises(concepts.ConceptsError, match=r"no word near 'cat' .* give to='...'"):
        read_request(parts, concepts.erase("cat"), settings(neighbours=3))
