"""New words in a pipeline: where they stand, and that nothing of them stays."""

from __future__ import annotations

import pytest
import torch
from rankedit_recipes.diffusion.errors import PipelineError
from rankedit_recipes.diffusion.parts import Parts
from rankedit_recipes.diffusion.words import NewWords, check_known, check_trigger, embedding_layers

from tests.diffusion import pipelines


@pytest.fixture(scope="module")
def pipe():
    return pipelines.stable_diffusion()


def test_new_words_stand_where_they_should_and_leave_no_trace(pipe):
    row = torch.randn(32, requires_grad=True)
    before = Parts(pipe).text.encode(["a cat on grass"]).embeds
    tokenizer, layer = pipe.tokenizer, embedding_layers(pipe.text_encoder)[0]
    state = list(pipe.text_encoder.state_dict())
    words = NewWords(Parts(pipe).text, {"<bean>": [row]})
    texts = Parts(pipe).text
    assert texts.positions(texts.encode(["a <bean>, my <bean>"]), "<bean>")[0] == [2, 5]
    inside = Parts(pipe).text.encode(["a <bean> on grass"]).embeds
    inside.square().sum().backward()
    assert float(row.grad.norm()) > 0
    assert torch.equal(Parts(pipe).text.encode(["a cat on grass"]).embeds, before)
    assert list(pipe.text_encoder.state_dict()) == state
    words.remove()
    assert pipe.tokenizer is tokenizer
    assert type(layer) is torch.nn.Embedding
    assert torch.equal(Parts(pipe).text.encode(["a cat on grass"]).embeds, before)


def test_new_words_under_offloading():
    accelerate = pytest.importorskip("accelerate")
    pipe = pipelines.stable_diffusion()
    row = torch.randn(32)
    words = NewWords(Parts(pipe).text, {"<bean>": [row]})
    expected = Parts(pipe).text.encode(["a <bean>"]).embeds.detach()
    words.remove()
    for part in (pipe.text_encoder, pipe.vae, pipe.unet):
        accelerate.cpu_offload(part, execution_device="cpu")
    before = Parts(pipe).text.encode(["a cat"]).embeds
    words = NewWords(Parts(pipe).text, {"<bean>": [row]})
    torch.testing.assert_close(Parts(pipe).text.encode(["a <bean>"]).embeds, expected)
    words.remove()
    assert torch.equal(Parts(pipe).text.encode(["a cat"]).embeds, before)


def test_a_new_word_does_not_become_the_end_of_the_text():
    # The pooled output of old configurations is taken at the highest token number.
    pipe = pipelines.stable_diffusion_xl()
    plain = Parts(pipe).text.encode(["a cat on grass"]).pooled
    rows = [torch.zeros(32), torch.zeros(64)]
    words = NewWords(Parts(pipe).text, {"<bean>": rows})
    assert torch.equal(Parts(pipe).text.encode(["a cat on grass"]).pooled, plain)
    ends = [
        Parts(pipe).text.encode([f"a <bean> on {place}"]).pooled for place in ("grass", "beach")
    ]
    words.remove()
    assert not torch.equal(*ends)  # a pooled word would not see what follows it
    assert pipe.text_encoder_2.config.eos_token_id == 2


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("", "one word without spaces"),
        ("my bean", "one word without spaces"),
        ("cat", "already a word"),
        ("a", "already a word"),
        ("<|endoftext|>", "already a word"),
    ],
)
def test_words_that_cannot_be_new_are_refused(pipe, word, message):
    with pytest.raises(PipelineError, match=message):
        check_trigger(Parts(pipe).text, word)


def test_categories_that_a_model_has_no_words_for_are_refused(pipe):
    check_known(Parts(pipe).text, "teddy bear")
    with pytest.raises(PipelineError, match=r"a word or two that the model knows.*got ' '"):
        check_known(Parts(pipe).text, " ")
    with pytest.raises(PipelineError, match=r"got 'red hamster'.*does not know \['hamster'\]"):
        check_known(Parts(pipelines.pixart()).text, "red hamster")


def test_words_are_not_found_inside_others(pipe):
    words = NewWords(Parts(pipe).text, {"zzcat1": [torch.zeros(32)]})
    try:
        texts = Parts(pipe).text
        assert texts.positions(texts.encode(["a zzcat1 zzcat10"]), "zzcat1")[0] == [2]
    finally:
        words.remove()
    with pytest.raises(PipelineError, match=r"embeddings of widths \[5\].*have \[32\]"):
        NewWords(Parts(pipe).text, {"<bean>": [torch.zeros(5)]})
