"""A method of one's own from its page to the command line and to a row of the benchmark's table."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rankedit_recipes import language
from rankedit_recipes.language.commands import cli
from rankedit_recipes.language.commands.configuring import from_toml
from rankedit_recipes.language.editing import Engine, settings_of
from rankedit_recipes.language.evaluating.locality import Unrelated
from rankedit_recipes.language.reading import case_of
from rankedit_recipes.language.requests import Case, Request
from rankedit_recipes.sandbox import facts
from typer.testing import CliRunner

import rankedit as rk
from tests.language_evaluation.toys import tiny_gpt2, tokenizer
from tests.problems import relative

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from editing import direct, own, page, study
from editing.rows import Rows
from editing.settings import TUNED

pytestmark = pytest.mark.filterwarnings("ignore::rankedit.RankeditWarning")
ROOT = Path(__file__).resolve().parents[2]
METHOD = "budgeted:half"
NAME = "budgeted:budgeted(share=0.5)"


@pytest.fixture
def written(tmp_path, monkeypatch):
    """The page's file in the current folder, as a reader has it."""
    text = (ROOT / "docs/new-method.md").read_text()
    (code,) = re.findall(r"`budgeted\.py`:\n\n```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "budgeted.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "budgeted", raising=False)
    yield tmp_path
    sys.modules.pop("budgeted", None)


def run(*arguments, fails=None):
    result = CliRunner().invoke(cli.app, [str(a) for a in arguments])
    if fails is not None:
        assert isinstance(result.exception, rk.RankeditError), result.output
        assert re.search(fails, str(result.exception)), result.exception
        return ""
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def test_the_page_s_file_edits_the_sandbox_s_model_from_the_command_line(written):
    model, tok = facts.load_model().eval(), facts.load_tokenizer()
    statistics = language.collect_statistics(
        model, tok, islice(facts.corpus(1), 60), layers=[0], progress=False
    )
    statistics.save(written / "stats.safetensors", model)
    common = ("--count", 3, "--layers", 0, "--statistics", "stats.safetensors", "--set", "steps=3",
              "--set", "contexts=[4]")  # fmt: skip
    said = run("edit", "--method", METHOD, *common, "--out", "half.safetensors")
    assert f"3 facts by {NAME}; objective" in said
    file = rk.load("half.safetensors")
    assert file.metadata["language"] == NAME
    assert list(sys.path).count(str(written)) == 0

    settings = language.METHODS["memit"]
    requests = [case_of(record).request for record in facts.cases(3)]
    base = from_toml(_config(written, "memit"))
    engine = Engine.build(model, tok, base, statistics, layers=[0], progress=False)
    asked, _ = engine.facts(requests)
    ((name, keys),) = asked.keys.items()
    layer = model.get_submodule(name)
    values = rk.linear_output(layer, keys) + asked.lacking[name]
    metric = settings.shared_by(1).metric(statistics[name])
    expected = sys.modules["budgeted"].half(layer, keys, values, metric)
    assert relative(file[name].delta(), expected.delta()) < 1e-2  # written in half precision
    assert relative(file[name].delta(), engine.solved(asked)[name].delta()) > 0.1

    run("edit", "--method", METHOD, *common, "--stream", "facts", "--out", "s.safetensors")
    assert relative(rk.load("s.safetensors")[name].delta(), expected.delta()) < 1e-2
    assert f"3 facts by {NAME}" in run("list", "facts")
    label = requests[0].label
    undo = ("undo", "facts", label, "--statistics", "stats.safetensors", "--out", "u.safetensors")
    run(*undo, fails="files hold no code; give what solves again, by --method budgeted")
    assert "facts: 2 facts" in run(*undo, "--method", METHOD)
    assert rk.load("u.safetensors")[name].rank >= 2
    assert rk.load("u.safetensors").metadata["language"] == NAME


def _config(folder, method):
    file = folder / f"{method.partition(':')[0]}.toml"
    file.write_text(f'method = "{method}"\nsteps = 3\ncontexts = [4]\n')
    return file


def test_a_file_of_settings_may_name_it(written):
    file = _config(written, METHOD)
    shown = run("edit", "--config", file, "--print-config")
    assert f'method = "{NAME}"' in shown
    assert "steps = 3" in shown
    assert "function" not in shown
    assert run("edit", "--config", file, "--method", METHOD, "--print-config") == shown
    run(
        "edit",
        "--count",
        1,
        "--config",
        file,
        "--method",
        "budgeted:budgeted",
        fails="differ; give one of them",
    )
    run(
        "edit",
        "--count",
        1,
        "--config",
        file,
        "--method",
        "memit",
        fails="--method memit and .* differ; give",
    )
    run(
        "edit",
        "--count",
        1,
        "--method",
        "budgeted:quarter",
        fails="'budgeted' has no 'quarter'; it has .*half",
    )
    run(
        "edit",
        "--count",
        1,
        "--method",
        "nowhere:f",
        fails="cannot be imported: .* 'nowhere.py' in this folder",
    )
    run(
        "edit",
        "--count",
        1,
        "--method",
        METHOD,
        "--set",
        "softness=1",
        fails="softness 1.0 would be ignored",
    )


def test_a_stream_is_not_edited_by_another_method_than_it_has(tmp_path):
    tok = tokenizer()
    tiny_gpt2(tok, layers=3).save_pretrained(tmp_path / "model")
    tok.save_pretrained(tmp_path / "model")
    for name, subject in (("first", "anna"), ("second", "ben")):
        fact = {"prompt": "{} plays the", "subject": subject, "target": "violin"}
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(fact) + "\n")
    (tmp_path / "text.txt").write_text("anna plays the piano and ben lives in rome\n" * 40)
    stats = tmp_path / "stats.safetensors"
    run("stats", tmp_path / "text.txt", "--model", tmp_path / "model", "--out", stats)
    common = ("--model", tmp_path / "model", "--statistics", stats, "--stream", tmp_path / "s",
              "--out", tmp_path / "e.safetensors")  # fmt: skip
    few = ("--set", "steps=3", "--set", "contexts=[4]")
    run("edit", tmp_path / "first.jsonl", *common, *few, "--method", "alphaedit", "--layers", "2")
    second = ("edit", tmp_path / "second.jsonl", *common, "--overwrite")
    run(*second, "--method", "memit", fails="by the method alphaedit, got memit; give the same")
    run(*second, "--set", "steps=9", fails="by the method alphaedit, got memit")
    run(*second, "--layers", "0", fails=r"edits in \['.*2.mlp.*'\], got \['.*0.mlp.*'\]")
    # What nobody asks for is the stream's: its method, its steps and its block.
    said = run(*second, "--dry-run")
    assert "1 request by alphaedit" in said
    assert "transformer.h.2.mlp.c_proj" in said
    assert "2 facts" in run(*second)
    assert rk.load(tmp_path / "e.safetensors").metadata["language"] == "alphaedit"


# ---------------------------------------------------------------------------- the benchmark

SUBJECTS = ("anna", "ben", "anna and ben", "who", "ben of rome", "city")


def world(model, tok):
    """What the study needs of the world of facts, in small."""
    texts = ["anna plays the piano and ben lives in rome .", "who plays what and where ?"] * 20
    found = language.collect_statistics(model, tok, texts, progress=False)
    unrelated = Unrelated(model, tok, ["where does who play the flute"], tokens=8)
    cases = [
        Case(Request("{} plays the", subject, "violin"), "piano", (f"what does {subject} play",))
        for subject in SUBJECTS
    ]
    return SimpleNamespace(
        model=model, tokenizer=tok, cases=cases, blocks=language.find_blocks(model),
        digest="small", unrelated=unrelated, few_unrelated=unrelated,
        statistics=lambda _share=1.0: found,
    )  # fmt: skip


GENTLE = '''
from rankedit_recipes import language


class Gentle(language.Settings):
    """Half of what MEMIT solves."""

    def solve(self, layer, keys, values, metric):
        return 0.5 * super().solve(layer, keys, values, metric)


gentle = Gentle(**{**language.METHODS["memit"].to_dict(), "method": "gentle", "contexts": (4,),
                   "steps": 3})
'''


def small_study(folder, monkeypatch, *methods):
    for module in (study, direct):
        monkeypatch.setattr(module, "MANY", 4)
    monkeypatch.setattr(direct, "KEPT", folder)
    for name, value in {"SINGLE": 2, "BATCH": 2, "AT": (2, 4), "TRACED": 2}.items():
        monkeypatch.setattr(study, name, value)
    tok = tokenizer()
    quick = {name: {**part, "steps": 3, "contexts": (4,)} for name, part in TUNED.items()}
    rows = Rows(folder / "rows", "digest", tuple(f"{k}-{m}" for k in ("single", "batch", "stream")
                                                 for m in ("memit", *methods)))  # fmt: skip
    return study.Study(world(tiny_gpt2(tok), tok), rows, quick, methods)


@pytest.mark.parametrize("method", [METHOD, "gentle_method:gentle"])
def test_a_method_of_one_s_own_has_a_row_with_its_own_numbers(written, monkeypatch, method):
    (written / "gentle_method.py").write_text(GENTLE)
    made = small_study(written, monkeypatch, method)
    solved = []
    original = Engine.solved

    def watched(engine, asked):
        solved.append((engine, asked, original(engine, asked)))
        return solved[-1][2]

    monkeypatch.setattr(Engine, "solved", watched)
    made.singles()
    made.batches()
    made.streams()
    assert {f"{kind}-{method}" for kind in ("single", "batch", "stream")} <= set(made.rows.found)
    assert made.rows.found[f"stream-{method}"].numbers["difference to never added"] < 1e-12

    settings, _ = made.settings(method)
    function = settings_of(method).solve
    mine = [entry for entry in solved if entry[0].settings.method == settings.method]
    assert [len(asked) for _, asked, _ in mine] == [1, 1, 4]
    for engine, asked, edits in mine:
        ((name, metric),) = engine.metrics.items()
        layer = engine.model.get_submodule(name)
        values = rk.linear_output(layer, asked.keys[name]) + asked.lacking[name]
        wanted = function(layer, asked.keys[name], values, metric)
        assert relative(edits[name].delta(), wanted.delta()) < 1e-5
        full = rk.solve_edit(layer, asked.keys[name], values, metric)
        assert relative(edits[name].delta(), full.delta()) > 0.1

    tables = page.tables(made.rows.found)
    for title in ("One edit at a time", "A batch"):
        assert {"MEMIT", method} <= {row[0] for row in tables[title].rows}
    ends = [row[0] for row in tables["A stream of batches of ten, at its end"].rows]
    assert f"{method} on a ledger, 4 edits" in ends
    undone = [row[0] for row in tables["After undoing half of the stream"].rows]
    assert f"{method}: facts that stay, after" in undone
    assert f"{method}, ledger" in page.curves(made.rows.found)
    page.write(made.rows.found, written / "page", None, {"seed": "0"})
    assert method in (written / "page" / "index.html").read_text()


@pytest.mark.slow
def test_the_script_prints_the_tables_and_changes_nothing_else(written, monkeypatch, capsys):
    made = small_study(written, monkeypatch)
    spec = importlib.util.spec_from_file_location("script", ROOT / "benchmarks/language.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setattr(script.world, "KEPT", written / "kept")
    monkeypatch.setattr(script.world.World, "open", lambda _folder: made.world)
    monkeypatch.setattr(script.settings, "TUNED", made.tuned)
    monkeypatch.setattr(sys, "argv", ["language.py", "--method", METHOD])
    pages = [ROOT / "docs/language.md", ROOT / "benchmarks/results/language/results.json"]
    before = [page.read_bytes() for page in pages]
    script.main()
    said = capsys.readouterr().out
    for title in ("One edit at a time", "A batch", "A stream of batches of ten, at its end"):
        table = said.partition(f"\n{title}\n\n")[2].partition("\n\n")[0]
        assert f"| {METHOD}" in table
    kept = sorted(file.stem for file in (written / "kept/rows").iterdir())
    rows = {f"{kind}-{name}" for kind in ("single", "batch") for name in ("unedited", METHOD)}
    assert set(kept) == {"trace", *rows, f"stream-{METHOD}"}
    assert (written / "kept/own/index.html").exists()
    assert [page.read_bytes() for page in pages] == before


def test_rows_follow_the_text_of_the_method_s_module(written):
    before = own.described(own.own_settings(METHOD, TUNED["memit"]))
    assert before == own.described(own.own_settings(METHOD, TUNED["memit"]))
    assert before["steps"] == TUNED["memit"]["steps"]
    assert (before["solver"], before["softness"]) == (NAME, 0.0)
    file = written / "budgeted.py"
    file.write_text(file.read_text() + "# another one\n")
    del sys.modules["budgeted"]
    after = own.described(own.own_settings(METHOD, TUNED["memit"]))
    assert {name for name in before if before[name] != after[name]} == {"text"}
    # Of the published methods rows depend on what they always did.
    assert own.described(language.METHODS["memit"]) == language.METHODS["memit"].to_dict()


def test_a_search_that_sees_the_edit_is_kept_apart(written, monkeypatch):
    """Values that are searched for under a metric are not those of another one."""
    made = small_study(written, monkeypatch)
    found = {}
    for through in (False, True):
        for weight in (0.3, 3.0):
            settings, _ = made.settings("memit", through=through, weight=weight, ridge=weight)
            engine = made.editor.engine(settings, 0)
            found[through, weight] = made.editor.facts(engine, made.many)
            asked, _ = engine.facts([case.request for case in made.many])
            for name, lacking in found[through, weight].lacking.items():
                torch.testing.assert_close(lacking, asked.lacking[name], rtol=1e-4, atol=1e-5)
    shifts = {key: torch.cat(list(each.lacking.values())) for key, each in found.items()}
    assert torch.equal(shifts[False, 0.3], shifts[False, 3.0])
    assert not torch.equal(shifts[True, 0.3], shifts[True, 3.0])
