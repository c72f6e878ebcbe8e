"""Pipelines whose parts are changed or shared while new words are in."""

from __future__ import annotations

import copy

import pytest
import torch
from rankedit_recipes.diffusion.errors import PipelineError
from rankedit_recipes.diffusion.parts import Parts
from rankedit_recipes.diffusion.words import NewWords, embedding_width

from tests.diffusion import pipelines


@pytest.fixture
def pipe():
    made = pipelines.stable_diffusion()
    made.tokenizer = copy.deepcopy(made.tokenizer)  # all tests share one; these add words
    return made


def words(pipe, count=()):
    texts = Parts(pipe).text
    width = embedding_width(texts.encoders[0].model)
    return NewWords(texts, {"<bean>": [torch.ones(*count, width)]})


@pytest.mark.parametrize("removed", [(), ("<sunny>",), (["<sunny>"],)])
def test_no_words_are_taken_away_while_concepts_are_in(pipe, removed):
    width = embedding_width(pipe.text_encoder)
    pipe.load_textual_inversion({"<sunny>": torch.ones(1, width)})
    size, layer = len(pipe.tokenizer), pipe.text_encoder.get_input_embeddings()
    added = words(pipe)
    with pytest.raises(PipelineError, match=r"taken away while <bean>.*unload_textual_inversion"):
        pipe.unload_textual_inversion(*removed)
    added.remove()
    assert len(pipe.tokenizer) == size
    assert pipe.text_encoder.get_input_embeddings() is layer
    pipe.unload_textual_inversion(*removed)
    assert len(pipe.tokenizer) == size - 1


@pytest.mark.parametrize("count", [(), (3,)])
def test_pipelines_of_the_same_parts_are_clean_afterwards(pipe, count):
    added = words(pipe, count)
    other = type(pipe)(**pipe.components, requires_safety_checker=False)
    added.remove()
    assert type(other.tokenizer) is type(pipe.tokenizer)
    assert len(other.tokenizer) == len(pipe.tokenizer)
    texts = Parts(other).text
    with torch.no_grad():
        given, wanted = (Parts(p).text.encode(["a <bean>"]).embeds for p in (other, pipe))
    assert torch.equal(given, wanted)
    again = words(other, count)
    assert texts.positions(texts.encode(["a <bean>"]), "<bean>") == [[1 + max(count, default=1)]]
    again.remove()
