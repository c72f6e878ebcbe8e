"""The second stage of training: what it hides, and that it learns."""

import json

import torch
from rankedit_recipes.sandbox import facts
from rankedit_recipes.sandbox.facts.loading import WEIGHTS
from rankedit_recipes.sandbox.facts.settling import Settling, settle, settling_rows


def test_names_hide_all_but_their_last_token():
    tokenizer = facts.load_tokenizer()
    tokens, _, mask = settling_rows(tokenizer, Settling(hidden=1.0), 0)
    names = {name for kind in facts.world().subjects.values() for name in kind}
    hidden = (mask[:, 0] < -1).tril(-1)
    assert bool(hidden.any())
    for row in range(len(tokens)):
        for column in hidden[row].any(0).nonzero()[:, 0].tolist():
            # What is hidden is a part of a name, and hidden from everything behind that name.
            first = int(hidden[row, :, column].nonzero()[0])
            said = tokenizer.decode(tokens[row, max(0, column - 3) : first])
            assert any(name in said for name in names), said
            assert bool(hidden[row, first:, column].all())


def test_nothing_is_hidden_if_nothing_is_asked_for():
    _, _, mask = settling_rows(facts.load_tokenizer(), Settling(hidden=0.0), 0)
    assert not bool((mask < -1).tril(-1).any())
    assert bool((mask[..., 0, 1:] < -1).all())


def test_rows_depend_on_the_step_only():
    tokenizer = facts.load_tokenizer()
    first, again, other = (settling_rows(tokenizer, Settling(), step) for step in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


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
