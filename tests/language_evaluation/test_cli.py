"""The command line from end to end, on a random model of transformers in a folder."""

from __future__ import annotations

import json
import random
import re

import pytest
import torch
from rankedit_recipes.command_line.choices import ModelChoice
from rankedit_recipes.language import load_statistics, locate, read_requests, settings
from rankedit_recipes.language.commands import cli
from rankedit_recipes.language.commands.configuring import changed, from_pairs, from_toml, to_toml
from rankedit_recipes.language.commands.opening import open_cases, open_model, open_texts
from rankedit_recipes.language.errors import LanguageError
from rankedit_recipes.language.evaluating.scores import Scores
from rankedit_recipes.language.methods import METHODS
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import rankedit as rk
from tests.language_evaluation.toys import WORDS, tiny_gpt2, tokenizer

# Keys of a model that nobody trained are as they are.
pytestmark = pytest.mark.filterwarnings("ignore:language. in:rankedit.RankeditWarning")

FACTS = [
    {"prompt": "{} plays the", "subject": "anna", "target": "violin", "true_target": "piano",
     "paraphrases": ["anna's instrument is"], "neighbours": ["ben plays the"], "name": "a"},
    {"prompt": "{} lives in", "subject": "ben", "target": "oslo", "true_target": "rome",
     "name": "b"},
    {"prompt": "where does {} play the", "subject": "anna and ben", "target": "flute", "name": "c"},
]  # fmt: skip
RANDOM = random.Random(0)
TEXT = "".join(" ".join(RANDOM.choices(WORDS[1:], k=8)) + "\n" for _ in range(200))
FEW = ["--set", "steps=3", "--set", "contexts=[4]"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, requests, text and statistics, as a user has them."""
    root = tmp_path_factory.mktemp("language")
    tok = tokenizer()
    tiny_gpt2(tok, layers=3).save_pretrained(root / "model")
    tok.save_pretrained(root / "model")
    lines = "".join(json.dumps(fact) + "\n" for fact in FACTS)
    (root / "facts.jsonl").write_text(lines)
    (root / "text.txt").write_text(TEXT)
    run("stats", root / "text.txt", "--model", root / "model", "--out", root / "stats.safetensors")
    return root


def run(*arguments, fails=None):
    result = CliRunner().invoke(cli.app, [str(a) for a in arguments])
    if fails is not None:
        assert result.exit_code != 0
        assert isinstance(result.exception, rk.RankeditError), result.output
        assert re.search(fails, str(result.exception)), result.exception
        return ""
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def edited(folder, out, *more, method="memit", facts="facts.jsonl"):
    return run(
        "edit", folder / facts, "--model", folder / "model", "--method", method,
        "--statistics", folder / "stats.safetensors", "--out", out, *FEW, *more,
    )  # fmt: skip


# ------------------------------------------------------------------------------------- editing


@pytest.mark.parametrize("method", ["rome", "memit", "alphaedit"])
def test_edit_writes_a_file_that_attaches(folder, tmp_path, method):
    said = edited(folder, tmp_path / "e.safetensors", method=method)
    assert f"3 facts by {method}; objective" in said
    edits = dict(rk.load(tmp_path / "e.safetensors"))
    # What was chosen, and why, is said.
    (name,) = edits
    assert f"chosen {name.removesuffix('.mlp.c_proj')}: keys of one subject agree by " in said
    assert edits[name].rank == 3
    opened = open_model(ModelChoice(str(folder / "model"), device="cpu"))
    ids = torch.tensor([opened.tokenizer("anna plays the")["input_ids"]])
    with torch.no_grad():
        before = opened.model(input_ids=ids).logits
        with rk.attach(opened.model, edits):
            assert not torch.equal(opened.model(input_ids=ids).logits, before)
        assert torch.equal(opened.model(input_ids=ids).logits, before)


def test_lora_and_fused_model_do_what_the_edits_do(folder, tmp_path):
    edited(folder, tmp_path / "e.safetensors", "--lora", tmp_path / "lora",
           "--fuse", tmp_path / "fused")  # fmt: skip
    from peft import PeftModel

    tok = open_model(ModelChoice(str(folder / "model"), device="cpu")).tokenizer
    ids = torch.tensor([tok("anna plays the")["input_ids"]])

    def logits(model):
        with torch.no_grad():
            return model(input_ids=ids).logits

    def fresh():
        return AutoModelForCausalLM.from_pretrained(folder / "model").eval()

    model = fresh()
    with rk.attach(model, dict(rk.load(tmp_path / "e.safetensors"))):
        expected = logits(model)
    fused = AutoModelForCausalLM.from_pretrained(tmp_path / "fused").eval()
    # The file of edits has half precision.
    torch.testing.assert_close(logits(fused), expected, atol=1e-4, rtol=1e-3)
    lora = PeftModel.from_pretrained(fresh(), tmp_path / "lora").eval()
    torch.testing.assert_close(logits(lora), expected, atol=1e-4, rtol=1e-3)
    assert (logits(fresh()) - expected).abs().max() > 2e-3


def test_dry_run_writes_nothing(folder, tmp_path):
    said = edited(folder, tmp_path / "e.safetensors", "--dry-run", "--layers", "0,1")
    assert "3 requests by memit" in said
    assert "anna plays the → violin" in said
    assert "transformer.h.1.mlp.c_proj: 64 to 16" in said
    assert "nothing was written" in said
    assert "chosen" not in said
    assert "chosen transformer.h." in edited(folder, tmp_path / "e.safetensors", "--dry-run")
    assert list(tmp_path.iterdir()) == []


def test_layers_by_pattern_and_limit(folder, tmp_path):
    edited(folder, tmp_path / "e.safetensors", "--layers", "*.2.mlp.c_proj", "--count", "1")
    edits = dict(rk.load(tmp_path / "e.safetensors"))
    assert {name: edit.rank for name, edit in edits.items()} == {"transformer.h.2.mlp.c_proj": 1}


def test_layers_by_a_trace_of_the_requests(folder, tmp_path):
    opened = open_model(ModelChoice(str(folder / "model"), device="cpu"))
    requests = read_requests(folder / "facts.jsonl")
    (block,) = locate(opened.model, opened.tokenizer, requests, own=True, progress=False)
    where = f"transformer.h.{block}.mlp.c_proj"
    assert where in edited(folder, tmp_path / "e.safetensors", "--dry-run", "--layers", "traced")
    stream = tmp_path / "stream"
    edited(folder, tmp_path / "e.safetensors", "--layers", "traced", "--stream", stream)
    assert list(rk.load(tmp_path / "e.safetensors")) == [where]
    # The stream knows where it edits: nothing is traced again.
    edited(folder, tmp_path / "f.safetensors", "--layers", "traced", "--stream", stream)
    assert list(rk.load(tmp_path / "f.safetensors")) == [where]
    run("stats", folder / "text.txt", "--model", folder / "model", "--layers", "traced",
        fails="'traced' is for `rankedit language edit`")  # fmt: skip


# ------------------------------------------------------------------------------------- streams


def test_a_stream_from_adding_to_undoing(folder, tmp_path):
    stream = tmp_path / "stream"
    said = edited(folder, tmp_path / "all.safetensors", "--stream", stream)
    assert "3 added, 0 there already" in said
    assert f"{stream}: 3 facts" in said
    again = edited(folder, tmp_path / "again.safetensors", "--stream", stream)
    assert "0 added, 3 there already" in again

    listed = run("list", stream)
    assert "3 facts by memit" in listed
    assert "b\tben lives in → oslo" in listed
    assert "anna" not in run("list", stream, "--subject", "BEN").replace("anna and ben", "")

    said = run(
        "undo", stream, "b", "--model", folder / "model", "--statistics",
        folder / "stats.safetensors", "--out", tmp_path / "two.safetensors",
    )  # fmt: skip
    assert "undone: ben lives in → oslo" in said
    assert f"{stream}: 2 facts" in said
    (edit,) = dict(rk.load(tmp_path / "two.safetensors")).values()
    assert edit.rank == 2
    # As if the fact had never been there.
    lines = "".join(json.dumps(f) + "\n" for f in FACTS if f["name"] != "b")
    (folder / "two.jsonl").write_text(lines)
    edited(folder, tmp_path / "fresh.safetensors", "--stream", tmp_path / "other",
           facts="two.jsonl")  # fmt: skip
    (fresh,) = dict(rk.load(tmp_path / "fresh.safetensors")).values()
    torch.testing.assert_close(edit.delta(), fresh.delta(), atol=1e-5, rtol=1e-3)


def test_undo_of_the_latest_and_of_all(folder, tmp_path):
    edited(folder, tmp_path / "e.safetensors", "--stream", tmp_path / "stream")
    more = ["--model", folder / "model", "--statistics", folder / "stats.safetensors"]
    assert "anna and ben" in run("undo", tmp_path / "stream", "--last", "1", *more)
    said = run("undo", tmp_path / "stream", "a", "b", "--out", tmp_path / "none.st", *more)
    assert "no facts are left" in said
    assert not (tmp_path / "none.st").exists()
    run("undo", tmp_path / "stream", *more, fails="give names of facts, or --last N")
    (tmp_path / "empty").mkdir()
    run("undo", tmp_path / "empty", "a", *more, fails="undo: '.*' is no stream")
    run("list", tmp_path / "empty", fails="list: '.*' is no stream")


def test_contradictions_are_reported_before_anything_is_written(folder, tmp_path):
    stream = tmp_path / "stream"
    edited(folder, tmp_path / "e.safetensors", "--stream", stream)
    manifest = (stream / "stream.json").read_text()
    (folder / "other.jsonl").write_text(json.dumps({**FACTS[0], "target": "flute"}) + "\n")
    arguments = [
        "edit", folder / "other.jsonl", "--model", folder / "model", "--stream", stream,
        "--statistics", folder / "stats.safetensors", "--out", tmp_path / "o.safetensors",
    ]  # fmt: skip
    run(*arguments, fails="1 request about what the stream has already: 'a' and 'a'")
    assert (stream / "stream.json").read_text() == manifest
    said = run(*arguments, "--replace")
    assert "replaced: anna plays the → violin, now flute" in said
    assert "a\tanna plays the → flute" in run("list", stream)


# ------------------------------------------------------------------------------------ measuring


def test_evaluate_prints_definitions_and_writes_a_report(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    edited(folder, tmp_path / "e.safetensors")
    said = run(
        "evaluate", folder / "facts.jsonl", "--model", folder / "model",
        "--edits", tmp_path / "e.safetensors", "--text", folder / "text.txt", "--generations",
        "--report", tmp_path / "r.html", "--out", tmp_path / "s.json",
    )  # fmt: skip
    assert "P(new target) > P(true target)" in said
    assert "unedited, 3 cases" in said
    assert "edited, 3 cases" in said
    scores = Scores.load(tmp_path / "s.json")
    assert f"{scores['efficacy accuracy']:.1f} (" in said
    page = (tmp_path / "r.html").read_text()
    assert "By relation" in page
    assert str(tmp_path / "e.safetensors") in page


def test_evaluate_without_edits_is_of_the_model(folder):
    said = run("evaluate", folder / "facts.jsonl", "--model", folder / "model", "--count", "1")
    assert "unedited, 1 case" in said
    assert "locality" not in said


def test_evaluate_refuses_what_is_no_edit(folder):
    run(
        "evaluate", folder / "facts.jsonl", "--model", folder / "model",
        "--edits", folder / "stats.safetensors", fails="must hold edits only, got SecondMoment",
    )  # fmt: skip


def test_stats_say_whether_the_text_sufficed(folder, tmp_path):
    said = run(
        "stats", folder / "text.txt", "--model", folder / "model", "--layers", "1",
        "--out", tmp_path / "one.safetensors", "--count", "7",
    )  # fmt: skip
    assert "effective rank" in said
    assert "use more text" in said
    opened = open_model(ModelChoice(str(folder / "model"), device="cpu"))
    found = load_statistics(tmp_path / "one.safetensors", opened.model, opened.tokenizer)
    assert list(found) == ["transformer.h.1.mlp.c_proj"]
    assert sorted(f.name for f in tmp_path.iterdir()) == ["one.safetensors"]


def test_shards_of_many_processes_become_one_file(folder, tmp_path, monkeypatch):
    """As torchrun starts them: one command for all; here one after the other."""
    out, whole = tmp_path / "s.safetensors", rk.load(folder / "stats.safetensors")
    model = ["--model", folder / "model", "--out", out]
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in "10":
        monkeypatch.setenv("RANK", rank)
        said = run("stats", folder / "text.txt", *model, "--shard", "auto")
    assert f"rankedit stats merge {tmp_path}/s-*-of-00002.safetensors --out FILE" in said
    run("stats", folder / "text.txt", *model, "--shard", "2/2", fails="00002-of-00002.* is there")
    run("stats", folder / "text.txt", *model, "--shard", "3/2", fails="counted from 1")
    names = sorted(tmp_path.glob("*.safetensors"))
    assert [f.name for f in names] == [f"s-0000{n}-of-00002.safetensors" for n in (1, 2)]
    merged = rk.merge_shards(names[::-1])
    rk.save_merged(merged, out)
    for name, moment in merged.items():
        expected = whole[name].together().matrix
        apart = (moment.together().matrix - expected).norm() / expected.norm()
        assert float(apart) < 1e-6  # texts of another length beside them round differently
        assert moment.seen == whole[name].seen
        assert moment.provenance.corpus == whole[name].provenance.corpus
    run(
        "edit", folder / "facts.jsonl", "--model", folder / "model", "--statistics", out, *FEW,
        "--count", "1", "--out", tmp_path / "e.safetensors",
    )  # fmt: skip


def test_texts_come_through_a_pipe(folder, tmp_path):
    expected = rk.load(folder / "stats.safetensors")
    rows = "".join(json.dumps({"text": line}) + "\n" for line in TEXT.splitlines())
    for number, (said, more) in enumerate(((TEXT, []), (rows, ["--jsonl"]))):
        out = tmp_path / f"{number}.safetensors"
        arguments = ["stats", "-", "--model", folder / "model", "--out", out, *more]
        done = CliRunner().invoke(cli.app, [str(a) for a in arguments], input=said)
        assert done.exit_code == 0, done.exception
        for name, moment in rk.load(out).items():
            torch.testing.assert_close(moment.matrix, expected[name].matrix)


def test_statistics_of_another_model_are_refused(folder, tmp_path):
    tok = tokenizer()
    tiny_gpt2(tok, layers=3, seed=1).save_pretrained(tmp_path / "other")
    tok.save_pretrained(tmp_path / "other")
    result = CliRunner().invoke(
        cli.app,
        ["edit", str(folder / "facts.jsonl"), "--model", str(tmp_path / "other"),
         "--statistics", str(folder / "stats.safetensors"), "--out", str(tmp_path / "e.st")],
    )  # fmt: skip
    assert isinstance(result.exception, rk.RankeditError)
    assert not (tmp_path / "e.st").exists()


# ------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize("method", METHODS)
def test_settings_go_through_toml(method, tmp_path):
    said = run("edit", "--method", method, "--print-config")
    (tmp_path / "c.toml").write_text(said)
    assert from_toml(tmp_path / "c.toml") == METHODS[method]


def test_settings_are_changed_by_file_and_by_hand(tmp_path):
    (tmp_path / "c.toml").write_text('method = "alphaedit"\nsteps = 7\nridge = 1\n')
    said = run("edit", "--config", tmp_path / "c.toml", "--set", "contexts=[3, 4]",
               "--set", "cost=identity", "--print-config")  # fmt: skip
    assert "steps = 7\n" in said
    assert "ridge = 1.0\n" in said
    assert "contexts = [3, 4]\n" in said
    assert 'cost = "identity"\n' in said
    run("edit", "--config", tmp_path / "c.toml", "--method", "rome", "--print-config",
        fails="edit: --method rome and the method alphaedit")  # fmt: skip


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("steps", "--set takes name=value, got 'steps'"),
        ("speed=3", "unknown setting 'speed'; known are method, cost"),
        ("steps=many", "steps must be of type int, got 'many'"),
        ("contexts=[1.5]", "contexts must be a list of whole numbers"),
        ("cost=none", "cost must be one of covariance"),
        ("steps=0", "out of range"),
    ],
)
def test_wrong_settings_are_named(pair, message):
    with pytest.raises(LanguageError, match=message):
        from_pairs(METHODS["memit"], [pair])


def test_wrong_files_of_settings_are_named(tmp_path):
    with pytest.raises(LanguageError, match=r"from_toml: '.*' cannot be read"):
        from_toml(tmp_path / "none.toml")
    (tmp_path / "a.toml").write_text("steps = = 3")
    with pytest.raises(LanguageError, match=r"from_toml: '.*' is no TOML file"):
        from_toml(tmp_path / "a.toml")
    (tmp_path / "b.toml").write_text("steps = 3")
    with pytest.raises(LanguageError, match=r"from_toml: '.*' must name a method"):
        from_toml(tmp_path / "b.toml")
    assert from_toml(tmp_path / "b.toml", "rome").steps == 3
    assert "ridge" not in to_toml(settings.Settings("own"))
    assert changed(METHODS["rome"], {"bare": None}) == METHODS["rome"]


# -------------------------------------------------------------------------------------- opening


def test_what_cannot_be_opened_is_named(tmp_path):
    with pytest.raises(rk.RankeditError, match="--dtype must be one of float32"):
        open_model(ModelChoice(dtype="float8"))
    with pytest.raises(LanguageError, match=r"the model '.*' cannot be opened"):
        open_model(ModelChoice(str(tmp_path / "nothing")))
    with pytest.raises(LanguageError, match="give a file of requests; only the sandbox"):
        open_cases([], "gpt2")
    with pytest.raises(LanguageError, match="give texts, as files of one text on each line"):
        open_texts([], "gpt2")


def test_the_sandbox_has_cases_and_texts_of_its_own():
    assert len(open_cases([], "sandbox", count=5)) == 5
    texts = open_texts([], "sandbox", seed=3)
    assert next(texts) != next(texts)


def test_every_command_has_help():
    runner = CliRunner(env={"COLUMNS": "200"})
    for command in ("edit", "undo", "list", "evaluate", "stats"):
        said = runner.invoke(cli.app, [command, "--help"]).output
        assert "Usage" in said
        # Each option says what it is for.
        assert not re.search(r"--[\w-]+ +(TEXT|PATH|INTEGER|FLOAT)? *│?$", said, re.MULTILINE)
