"""What ships: small enough, as its provenance says, and knowing what its card claims."""

import json

import pytest
import torch
from rankedit_recipes.sandbox import facts
from rankedit_recipes.sandbox.checkpoint import sha256
from rankedit_recipes.sandbox.facts import evaluate
from rankedit_recipes.sandbox.facts.evaluation import (
    Figure,
    Question,
    answered,
    by_relation,
    figures,
    seen_questions,
    unseen_questions,
)
from rankedit_recipes.sandbox.facts.exporting import FILES
from rankedit_recipes.sandbox.facts.loading import WEIGHTS
from rankedit_recipes.sandbox.facts.tokenizer import build_tokenizer


@pytest.fixture(scope="module")
def model():
    return facts.load_model()


@pytest.fixture(scope="module")
def tokenizer():
    return facts.load_tokenizer()


def test_weights_are_small():
    assert sum(file.stat().st_size for file in WEIGHTS.rglob("*")) <= 8_000_000


def test_weights_are_those_of_the_provenance():
    made = json.loads((WEIGHTS / "provenance.json").read_text())
    assert made["sha256"] == {name: sha256(WEIGHTS / name) for name in FILES}
    lines = [json.loads(s) for s in (WEIGHTS / "training-log.jsonl").read_text().splitlines()]
    assert lines[0]["preset"] == made["preset"]
    assert max(line.get("step", 0) for line in lines) == made["step"] == made["preset"]["steps"]


def test_the_tokenizer_is_the_one_that_the_generator_makes(tokenizer):
    pieces = json.loads((WEIGHTS / "provenance.json").read_text())["preset"]["pieces"]
    assert tokenizer.get_vocab() == build_tokenizer(pieces).get_vocab()


def test_the_model_knows_its_world(model, tokenizer):
    known = facts.world().facts[::5]
    seen = answered(model, tokenizer, seen_questions(known))
    assert sum(seen) / len(seen) >= 0.98
    unseen = answered(model, tokenizer, unseen_questions(known))
    assert sum(unseen) / len(unseen) >= 0.90
    assert min(by_relation(known, unseen).values()) >= 0.7


def test_it_does_not_know_another_world(model, tokenizer):
    other = list(facts.world(1).facts[::20])
    assert sum(answered(model, tokenizer, seen_questions(other))) / len(other) < 0.35


def test_what_stands_beside_a_question_changes_no_answer(model, tokenizer):
    asked = seen_questions(facts.world().facts[:6])
    wrong = Question(asked[0].prompt, "something that nobody ever said of anybody in this world")
    together = answered(model, tokenizer, [*asked, wrong])
    assert together == [answered(model, tokenizer, [one])[0] for one in [*asked, wrong]]
    assert together[-1] is False


@torch.no_grad()
def test_answers_are_what_generation_gives(model, tokenizer):
    (fact,) = facts.world().facts[:1]
    tokens = tokenizer(fact.prompt(fact.seen[0]), return_tensors="pt")
    out = model.generate(**tokens, max_new_tokens=6, do_sample=False)
    said = tokenizer.decode(out[0, tokens["input_ids"].shape[1] :])
    (right,) = answered(model, tokenizer, [Question(fact.prompt(fact.seen[0]), fact.object)])
    assert said.strip().startswith(fact.object) == right


def test_figures_name_what_was_asked(model, tokenizer):
    measured = figures(model, tokenizer, count=40)
    assert [figure.count for figure in measured[:3]] == [40, 40, 40]
    assert {figure.wanted for figure in measured} == {0.98, 0.90, None}


def test_the_command_prints_a_table_and_fails_when_missed(tmp_path, capsys, monkeypatch):
    file = tmp_path / "figures.json"
    evaluate.main(["--count", "60", "--json", str(file)])
    assert "reached" in capsys.readouterr().out
    assert json.loads(file.read_text())[0]["count"] == 60
    missed = [Figure("a", 0.5, 0.9, 10), Figure("b", 0.5, None, 10)]
    monkeypatch.setattr(evaluate, "figures", lambda *_, **__: missed)
    with pytest.raises(SystemExit):
        evaluate.main([])
    assert list(evaluate.table(missed).columns[4].cells) == ["missed", ""]
