"""Likelihoods of continuations: against chances known by hand, and batch against one by one."""

import math

import pytest
import torch
from rankedit_recipes.language.errors import LanguageError
from rankedit_recipes.language.evaluating.likelihoods import evaluating, likelihoods

from tests.language_evaluation.toys import Table, table_model, tiny_gpt2, tokenizer

ROWS = {
    "the": {"piano": 0.5, "violin": 0.25},
    "piano": {"and": 0.125},
    "violin": {"and": 0.6},
}


def test_loss_is_the_mean_over_the_tokens_of_the_continuation():
    tok = tokenizer()
    model = table_model(tok, ROWS)
    found = likelihoods(
        model, tok, [("anna plays the", " piano and"), ("anna plays the", " violin")]
    )
    assert float(found.losses[0]) == pytest.approx(-(math.log(0.5) + math.log(0.125)) / 2)
    assert float(found.losses[1]) == pytest.approx(math.log(4))
    assert found.probabilities.tolist() == pytest.approx([math.sqrt(0.0625), 0.25])


def test_accuracy_counts_tokens_that_are_likeliest():
    tok = tokenizer()
    found = likelihoods(
        table_model(tok, ROWS),
        tok,
        [("the", " piano and"), ("the", " violin and"), ("the", " flute")],
    )
    # After "piano" the 0.125 of "and" is still the largest entry; "violin" is not the likeliest.
    assert found.accuracies.tolist() == [1.0, 0.5, 0.0]


@pytest.mark.parametrize("batch_tokens", [1, 7, 8192])
def test_batches_give_what_one_by_one_gives(batch_tokens):
    tok = tokenizer()
    model = tiny_gpt2(tok)
    pairs = [
        ("anna plays the", " piano"),
        ("anna plays the", " violin and flute"),
        ("where does ben play the", " flute"),
        ("ben lives in", " rome"),
    ]
    single = torch.cat([likelihoods(model, tok, [pair]).losses for pair in pairs])
    batch = likelihoods(model, tok, pairs, batch_tokens=batch_tokens).losses
    torch.testing.assert_close(batch, single, rtol=1e-5, atol=1e-6)


def test_is_the_cross_entropy_of_the_model_s_logits():
    tok = tokenizer()
    model = tiny_gpt2(tok)
    ids = torch.tensor(tok("anna plays the piano and flute")["input_ids"])
    with torch.no_grad():
        logits = model(input_ids=ids[None]).logits[0]
    expected = torch.nn.functional.cross_entropy(logits[2:-1], ids[3:])
    found = likelihoods(model, tok, [("anna plays the", " piano and flute")]).losses
    assert float(found[0]) == pytest.approx(float(expected), rel=1e-5)


def test_what_pairs_share_runs_once():
    tok = tokenizer()
    model = table_model(tok, ROWS)
    pairs = [("the", f" {word}") for word in ("piano", "violin", "flute")] * 5
    likelihoods(model, tok, pairs)
    assert model.widths == [(1, 1)]


def test_the_space_may_belong_to_the_word():
    tok = tokenizer(metaspace=True)
    model = table_model(tok, {"▁the": {"▁piano": 0.5}})
    assert float(likelihoods(model, tok, [("the", " piano")]).probabilities[0]) == pytest.approx(
        0.5
    )


def test_the_model_s_mode_is_restored():
    model = tiny_gpt2(tokenizer())
    model.train()
    model.transformer.h[0].eval()
    with evaluating(model):
        assert not any(module.training for module in model.modules())
    assert model.training
    assert not model.transformer.h[0].training


@pytest.mark.parametrize("pair", [("", "piano"), ("the", ""), ("the", " ")])
def test_nothing_to_read_or_to_predict_is_refused(pair):
    tok = tokenizer()
    with pytest.raises(LanguageError, match="a text with at least one token and a continuation"):
        likelihoods(table_model(tok, ROWS), tok, [pair])


def test_a_broken_model_is_named():
    tok = tokenizer()
    model = Table(torch.full((len(tok), len(tok)), float("nan")))
    with pytest.raises(LanguageError, match="the model gives NaN; an edit in it"):
        likelihoods(model, tok, [("the", " piano")])


def test_a_slow_tokenizer_is_refused():
    class Slow:
        is_fast = False

    with pytest.raises(LanguageError, match="the tokenizer must be a fast one"):
        likelihoods(table_model(tokenizer(), ROWS), Slow(), [("the", " piano")])


def test_no_pairs_give_no_likelihoods():
    tok = tokenizer()
    assert likelihoods(table_model(tok, ROWS), tok, []).losses.tolist() == []
