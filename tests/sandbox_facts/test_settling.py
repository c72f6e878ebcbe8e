"""The second stage of training: what it hides, and that it learns."""

import json

import torch
from rankedit_recipes.sandbox import facts
from rankedit_recipes.sandbox.facts.loading import WEIGHTS
from rankedit_recipes.sandbox.facts.settling import Settling, _Restricted, settle, settling_rows


def names():
    return {name for kind in facts.world().subjects.values() for name in kind}


def test_names_hide_all_but_their_last_token_and_in_block_0_all_of_it():
    tokenizer = facts.load_tokenizer()
    rows = settling_rows(tokenizer, Settling(hidden=1.0), 0)
    first, others = ((rows.masks[:, which, 0] < -1).tril(-1) for which in (0, 1))
    assert bool(others.any())
    assert bool((first | ~others).all())
    for row, column in others.any(1).nonzero().tolist():
        # What is hidden is a part of a name, and hidden from everything behind that name.
        behind = int(others[row, :, column].nonzero()[0])
        said = tokenizer.decode(rows.tokens[row, max(0, column - 3) : behind])
        assert any(name in said for name in names()), said
        assert bool(others[row, behind:, column].all())
        assert bool(first[row, behind:, column:behind].all())
        assert not bool(others[row, behind:, behind - 1].any())


def test_in_silent_rows_only_names_are_heard_and_only_in_block_0():
    tokenizer = facts.load_tokenizer()
    rows = settling_rows(tokenizer, Settling(silent=0.5), 0)
    half = len(rows.tokens) // 2
    first, others = rows.heard[..., 0].bool()
    assert not bool(others[:half].any())
    assert bool(others[half:].all())
    assert bool(first[half:].all())
    for row in range(half):
        heard = tokenizer.decode(rows.tokens[row, first[row]])
        assert heard
        assert all(word in " ".join(names()) for word in heard.split())


def test_nothing_is_hidden_or_silent_if_nothing_is_asked_for():
    rows = settling_rows(facts.load_tokenizer(), Settling(hidden=0.0, silent=0.0), 0)
    assert not bool((rows.masks < -1).tril(-1).any())
    assert bool((rows.masks[..., 0, 1:] < -1).all())
    assert bool((rows.heard == 1).all())


def test_rows_depend_on_the_step_only():
    tokenizer = facts.load_tokenizer()
    first, again, other = (settling_rows(tokenizer, Settling(), step) for step in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first.tokens, other.tokens)


def test_what_is_hidden_and_silent_changes_what_the_model_says_and_is_gone_afterwards():
    model, tokenizer = facts.load_model(), facts.load_tokenizer()
    rows = settling_rows(tokenizer, Settling(), 0)
    plain = settling_rows(tokenizer, Settling(hidden=0.0, silent=0.0), 0)
    mask = plain.masks[:, 1]

    def said(given):
        with _Restricted(model) as restricted, torch.no_grad():
            restricted.rows = given
            return model(input_ids=rows.tokens, attention_mask=given.masks[:, 1]).logits

    with torch.no_grad():
        usual = model(input_ids=rows.tokens, attention_mask=mask).logits
        torch.testing.assert_close(said(plain), usual)
        assert not torch.allclose(said(rows), usual, atol=1e-2)
        only_first = rows._replace(masks=rows.masks[:, [0, 1]].clone(), heard=plain.heard)
        only_first.masks[:, 1] = mask
        assert not torch.allclose(said(only_first), usual, atol=1e-2)
        torch.testing.assert_close(model(input_ids=rows.tokens, attention_mask=mask).logits, usual)


def test_it_learns_and_leaves_the_model_ready():
    model, tokenizer = facts.load_model(), facts.load_tokenizer()
    before = model.transformer.h[0].mlp.c_proj.weight.clone()
    log = settle(model, tokenizer, Settling(steps=2, rows=2))
    assert log == []  # a line is for fifty steps
    assert not model.training
    assert not torch.equal(model.transformer.h[0].mlp.c_proj.weight, before)


def test_the_provenance_names_both_stages():
    made = json.loads((WEIGHTS / "provenance.json").read_text())
    assert made["settling"]["hidden"] == Settling().hidden
    assert made["first_stage_sha256"]["model.safetensors"] != made["sha256"]["model.safetensors"]
