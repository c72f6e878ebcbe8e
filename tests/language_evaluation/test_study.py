"""The study's rows, baselines and page: found again after a stop, and leaving no trace."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rankedit_recipes import language
from rankedit_recipes.language.evaluating.evaluation import evaluate
from rankedit_recipes.language.evaluating.likelihoods import likelihoods
from rankedit_recipes.language.requests import Case, Request

from tests.language_evaluation.toys import tiny_gpt2, tokenizer

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from editing import direct, page, study
from editing.baselines import fine_tuned, lora_tuned
from editing.direct import facts_of, reverted
from editing.rows import Row, Rows
from editing.settings import TUNED
from editing.sharing import distinct
from rankedit_recipes.language.searching.spreading import Facts

REQUESTS = [Request("{} plays the", "anna", "violin"), Request("{} lives in", "ben", "rome and")]
DOWN = "transformer.h.0.mlp.c_proj"
CASE = Case(REQUESTS[0], "piano", ("anna's instrument is",), ("ben plays the",))


def losses(model, tok):
    return likelihoods(model, tok, [(r.text, r.continuation) for r in REQUESTS]).losses


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize(
    ("tuned", "options"),
    [(fine_tuned, {"rate": 0.05}), (fine_tuned, {"rate": 0.05, "limit": 0.05}), (lora_tuned, {})],
)
def test_baselines_learn_and_leave_no_trace(tuned, options):
    tok = tokenizer()
    model = tiny_gpt2(tok)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    unedited = losses(model, tok)
    with tuned(model, tok, REQUESTS, [DOWN], **options) as steps:
        assert steps == 25
        assert bool((losses(model, tok) < unedited).all())
        weight = model.transformer.h[0].mlp.c_proj
        if "limit" in options:
            change = (weight.weight - before[f"{DOWN}.weight"]).abs().max()
            assert float(change) == pytest.approx(options["limit"], rel=1e-4)
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(tensor, before[n]) for n, tensor in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def scores():
    tok = tokenizer()
    return evaluate(tiny_gpt2(tok), tok, [CASE, CASE], progress=False)


def test_rows_are_computed_once_and_found_again(tmp_path):
    computed = []

    def compute():
        computed.append(1)
        return Row("", {"1": scores()}, {"layers": [0]})

    first = Rows(tmp_path, "digest")("single-x", compute, {"steps": 3})
    again = Rows(tmp_path, "digest")("single-x", compute, {"steps": 3})
    assert len(computed) == 1
    assert again.last["efficacy"] == first.last["efficacy"]
    assert again.numbers["layers"] == [0]
    Rows(tmp_path, "digest")("single-x", compute, {"steps": 4})
    Rows(tmp_path, "other")("single-x", compute, {"steps": 4})
    assert len(computed) == 3
    assert Rows(tmp_path, "digest", ("batch",))("single-y", compute) is None
    assert len(computed) == 3


def test_reverted_cases_ask_for_the_old_answer():
    (case,) = reverted([CASE])
    assert (case.request.target, case.true_target) == ("piano", "violin")
    assert case.request.label == CASE.request.label


def test_the_block_is_where_facts_outside_of_the_study_are_found(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "MANY", 1)
    tok = tokenizer()
    model = tiny_gpt2(tok)
    cases = [Case(REQUESTS[1], "paris"), CASE]
    world = SimpleNamespace(
        model=model, tokenizer=tok, cases=cases, blocks=language.find_blocks(model)
    )
    made = study.Study(world, Rows(tmp_path, "digest", ("other",)), TUNED)
    settings, block = made.settings("encore")
    (fact,) = reverted([CASE])
    assert [block] == language.locate(model, tok, [fact.request], progress=False)
    assert made.rows.found["trace"].numbers["facts"] == 1
    # ENCORE stops its search early, which makes its values its own.
    assert settings.first_for == 2
    assert made.settings("memit")[0].first_for == 0
    assert {"single-encore", "batch-encore"} <= {
        f"{kind}-{method}" for kind in ("single", "batch") for method in study.STUDIED
    }


def test_neighbours_that_are_edited_too_do_not_count(monkeypatch):
    tok = tokenizer()
    model = tiny_gpt2(tok)
    world = SimpleNamespace(model=model, tokenizer=tok, cases=[], unrelated=None)
    editor = direct.Editor(world)
    ben = Case(Request("{} plays the", "ben", "flute"), "piano", neighbours=("ben and of",))
    assert "neighbourhood" in editor.scores([CASE]).figures
    assert "neighbourhood" in editor.scores([CASE, ben], []).figures
    apart = editor.scores([CASE, ben])
    assert apart.samples["neighbourhood"].isnan().tolist() == [True, False]
    assert bool(editor.scores([CASE], [CASE, ben]).samples["neighbourhood"].isnan().all())


def test_facts_are_taken_apart():
    facts = Facts(tuple(REQUESTS), {"x": torch.eye(2)}, {"x": torch.ones(2, 3)}, {})
    part = facts_of(facts, [1])
    assert part.requests == (REQUESTS[1],)
    assert part.keys["x"].tolist() == [[0, 1]]


def test_distinct_last_words():
    cases = [Case(Request("{} is", name, "x")) for name in ("a b", "c b", "a c")]
    assert [case.request.subject for case in distinct(cases)] == ["a b", "a c"]


def test_the_page_and_the_documentation_get_the_tables(tmp_path):
    document = tmp_path / "language.md"
    document.write_text(f"# Title\n{page.MARKS[0]}old\n{page.MARKS[1]}After\n")
    numbers = {"effects": {"mlp": [[math.nan, 0.0, 0.5, 0.0, 0.0, 0.0]] * 2}, "clean": 0.9,
               "disturbed": 0.1, "facts": 3}  # fmt: skip
    rows = {
        "single-unedited": Row("", {"0": scores()}),
        "single-rome-10%": Row("", {"1": scores()}),
        "trace": Row("", {}, numbers),
        "stream-memit": Row("", {"10": scores(), "20": scores()}),
    }
    page.write(rows, tmp_path / "out", document, {"seed": "0"})
    text = document.read_text()
    assert "old" not in text
    assert text.startswith("# Title\n")
    assert text.endswith("After\n")
    assert "| ROME, 10% of the statistics |" in text
    assert "MEMIT on a ledger, 20 edits" in text
    made = sorted(file.name for file in (tmp_path / "out").iterdir())
    assert made == ["index.html", "results.json", "stream.png", "trace.png"]
