"""The study of a real model, on a tiny one: every unit kept, facts that are what they say."""

import json
import sys
import tomllib
from collections import Counter
from pathlib import Path

import pytest
import torch
from rankedit_recipes import language
from rankedit_recipes.language.evaluating.answering import answered, begins_with
from rankedit_recipes.language.evaluating.scores import Scores

from tests.language import models
from tests.language_evaluation.toys import table_model, tokenizer

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from editing.rows import Row, Rows
from real import editor, ground, page, study

BENCHMARKS = Path(study.__file__).parent.parent
PLAN = study.Plan(("memit", "alphaedit"), single=2, sizes=(3,), stream=2, more=300)
RECORDS = [
    {"prompt": "{} is in", "subject": f"Di{name}", "target": "tin", "true_target": "pan",
     "relation": relation, "paraphrases": [f"see Di{name} in", f"Di{name}, in"],
     "neighbours": ["Dion is in", "Dian is in"], "neighbour_answers": ["san", "ton"]}
    for name, relation in (("a", "x"), ("e", "x"), ("o", "y"))
]  # fmt: skip
TEXTS = ["Dion is in a pan, so is Dian and the rest of it."] * 20
ROWS = {
    "capability-unedited", "batch-memit-003", "batch-alphaedit-003", "batch-memit-300-003",
    "batch-alphaedit-300-003", "batch-unedited-003", "batch-prompt-003", "batch-fine-tuning-003",
    "stream-memit", "stream-alphaedit",
    *(f"single-{name}-{i:03}" for i in range(2)
      for name in ("unedited", "memit", "alphaedit", "prompt", "fine-tuning")),
}  # fmt: skip


def world(kept):
    return ground.Ground(
        models.family("llama")[0], models.tokenizer(), [language.case_of(r) for r in RECORDS],
        texts=TEXTS, held_out=TEXTS[:4], cloze=[("Dion is", "in")], kept=kept, tokens=200,
        measured=(20, 20, 20),
    )  # fmt: skip


def run(kept):
    rows = Rows(kept / "rows", (made := world(kept)).digest)
    study.Study(editor.Editor(made), rows, PLAN).run()
    return rows.found


@pytest.mark.filterwarnings("ignore::rankedit.RankeditWarning")
def test_a_run_that_was_stopped_goes_on_and_a_whole_one_computes_nothing(tmp_path, monkeypatch):
    real, count = study.evaluate, []

    def stopping(*args, **options):
        count.append(1)
        if len(count) == 6:
            raise KeyboardInterrupt
        return real(*args, **options)

    monkeypatch.setattr(study, "evaluate", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    assert len(list((tmp_path / "rows").iterdir())) == 6  # five that evaluate, and the capability
    found = run(tmp_path)
    # Each once, but for the one that was stopped: 10 single rows, 3 batches beside 4 of methods.
    assert len(count) == 10 + 3 + 4 + 1
    assert set(found) == ROWS
    searched = {file: file.stat().st_mtime_ns for file in tmp_path.glob("shifts-*")}
    # The values are those of the statistics: two methods, two sizes of them.
    assert len(searched) == 4

    def no(*_, **__):
        raise AssertionError("computed again")

    for name in ("engine", "facts", "tuned"):
        monkeypatch.setattr(editor.Editor, name, no)
    monkeypatch.setattr(study, "evaluate", no)
    again = run(tmp_path)
    # The seconds that a row took tell it from one that was computed anew.
    assert {k: r.numbers for k, r in again.items()} == {k: r.numbers for k, r in found.items()}
    assert float(found["stream-memit"].numbers["difference to a batch"]) < 1e-9
    page.write(found, PLAN, tmp_path / "out", None, {"model": "tiny"})
    told = json.loads((tmp_path / "out/results.json").read_text())
    assert set(told["rows"]) == ROWS
    assert set(page.tables(found, PLAN)) >= {"One edit at a time", "A batch of 3",
                                             "What the model can still do"}  # fmt: skip


def scores(**values):
    samples = {name.replace("_", " "): torch.tensor([v]).double() for name, v in values.items()}
    return Scores(("a",), ("x",), samples)


def test_what_is_wanted_is_compared_and_what_is_missing_is_named():
    plan = study.Plan(("memit",), single=2, sizes=(50,))
    rows = {
        "single-unedited-000": Row("", {"1": scores(neighbourhood=0.9)}),
        "single-memit-000": Row(
            "", {"1": scores(efficacy=1.0, neighbourhood=0.88, free_generation=0.5, locality=0.003)}
        ),
    }
    lines = {row[0]: row[1:] for row in page.tables(rows, plan)["Against what is wanted"].rows}
    assert lines == {
        "MEMIT, one: efficacy": ("100.0", "≥ 100.0", "reached"),
        "MEMIT, one: free generation": ("50.0", "≥ 90.0", "missed"),
        "MEMIT, one: neighbourhood": ("88.0", "≥ 87.0", "reached"),
        "MEMIT, one: locality": ("3.0", "≤ 2.0", "missed"),
    }
    missing = dict(page.tables(rows, plan)["Not computed yet"].rows)
    assert missing["MEMIT, one at a time"] == "1 facts"
    assert missing["batch of 50"] == "MEMIT, fine-tuning, breadth first"


def test_the_documentation_gets_the_tables_between_its_marks(tmp_path):
    document = tmp_path / "language.md"
    document.write_text(f"# Title\n{page.MARKS[0]}old\n{page.MARKS[1]}After\n")
    rows = {"single-memit-000": Row("", {"1": scores(efficacy=1.0)})}
    page.write(rows, PLAN, tmp_path, document, {"model": "tiny"})
    text = document.read_text()
    assert "old" not in text
    assert "| MEMIT (1) | 100.0" in text
    assert text.endswith(f"model: tiny.\n\n{page.MARKS[1]}After\n")
    document.write_text("no marks")
    with pytest.raises(ValueError, match="put them in"):
        page.write(rows, PLAN, tmp_path, document, {})


def test_the_perplexity_of_a_model_that_knows_nothing_is_the_size_of_its_vocabulary():
    tok = tokenizer()
    found = ground.perplexity(table_model(tok, {}), tok, ["anna plays the piano"] * 9, 10)
    assert found == pytest.approx(len(tok), rel=1e-5)
    # After "the" the piano is certain by half: exp of the mean of three losses.
    half = ground.perplexity(table_model(tok, {"the": {"piano": 0.5}}), tok, ["the piano"], 1)
    assert half == pytest.approx(2, rel=1e-5)


def test_texts_that_are_too_few_for_the_statistics_are_refused():
    with pytest.raises(ValueError, match="100 tokens are asked for, the texts have 2"):
        ground.taken(tokenizer(), ["anna plays"], 100)
    assert ground.taken(tokenizer(), ["anna plays"] * 9, 3) == ["anna plays"] * 2


def test_an_answer_is_the_whole_target_and_nothing_before_it():
    assert begins_with(" the Rome of", "rome")
    assert not begins_with("Romeo", "Rome")
    assert not begins_with("In Rome", "Rome")
    tok = tokenizer()
    model = table_model(tok, {"the": {"piano": 0.9}, "piano": {"of": 0.9}, "in": {"paris": 0.9}})
    asked = ["anna plays the", "anna plays the", "ben lives in"]
    assert answered(model, tok, asked, ["piano", "violin", "paris"]) == [True, False, True]


def test_a_fact_in_the_prompt_stands_before_everything_that_is_asked():
    case, other = [language.case_of(record) for record in RECORDS[:2]]
    (told,) = editor.prompted([case], [case, other])
    before = "Imagine that this is true: Dia is in tin. Die is in tin. So "
    assert told.request.text == f"{before}Dia is in"
    assert told.request.prompt.count("{}") == 1
    assert told.paraphrases == (f"{before}see Dia in", f"{before}Dia, in")
    assert told.answered == ((f"{before}Dion is in", "san"), (f"{before}Dian is in", "ton"))


def test_the_first_facts_are_of_as_many_relations_as_there_are():
    cases = [language.case_of(record) for record in RECORDS]
    order = [case.request.relation for case in ground.interleaved(cases)]
    assert set(order[:2]) == {"x", "y"}
    assert Counter(order) == {"x": 2, "y": 1}
    (cut,) = [ground.cut(case) for case in cases[:1]]
    assert cut.answered == cases[0].answered


def test_the_facts_that_ship_are_of_the_kind_that_the_study_promises():
    cases = language.read_cases(BENCHMARKS / "real/facts.jsonl")
    assert len(cases) >= 250
    assert len({case.request.relation for case in cases}) >= 12
    assert len({case.request.label for case in cases}) == len(cases)
    told = tomllib.loads((BENCHMARKS / "real/relations.toml").read_text(encoding="utf-8"))
    written = {
        name: {(text.replace("{}", s), o) for text in kind["phrasings"] for s, o in kind["facts"]}
        for name, kind in told.items()
    }
    for case in cases:
        assert len(case.paraphrases) >= 2
        assert len(case.neighbours) >= 5
        assert case.request.target != case.true_target
        facts = written[case.request.relation]
        assert (case.request.text, case.true_target) in facts
        # A neighbour is a fact of the same relation with another object, asked in the same way.
        assert set(case.answered) <= facts - {(case.request.text, case.true_target)}
        assert not {answer for _, answer in case.answered} & {
            case.true_target,
            case.request.target,
        }


def test_the_cloze_has_200_sentences_each_once():
    sentences = ground.cloze()
    assert len(sentences) == 200
    assert len({text for text, _ in sentences}) == 200
    assert all(text.strip() and word.strip() and "{" not in text for text, word in sentences)
