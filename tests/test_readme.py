"""The README is true: its code runs as it stands, and it says what the package says."""

import contextlib
import re
import shlex
import tomllib
from pathlib import Path

import pytest
from PIL import Image
from rankedit_recipes import sandbox
from rankedit_recipes.language import METHODS
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser
from typer.testing import CliRunner

import rankedit as rk
from rankedit.cli import application
from tests.diffusion import pipelines
from tests.language import models

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
BLOCKS = Sybil(parsers=[PythonCodeBlockParser()], encoding="utf-8")
DIFFERENT_KEYS = pytest.mark.filterwarnings("ignore:language. in .* depend much:UserWarning")
FRONT = ROOT / "docs/images/front.png"


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Where the README's reader works."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(about):
    """Run the blocks that are, or are not, about a pipeline's folder."""
    for example in BLOCKS.parse(README).examples():
        if ("DiffusionPipeline" in example.parsed) == (about == "pipelines"):
            example.evaluate()


def language_folder(home):
    models.family("llama")[0].save_pretrained(home / "models/language")
    models.tokenizer().save_pretrained(home / "models/language")
    (home / "texts").mkdir()
    (home / "texts/some.txt").write_text("\n".join(models.TEXTS))


def pipeline_folder(home, family):
    getattr(pipelines, family)().save_pretrained(home / "models/stable-diffusion")
    sandbox.concept("bean").save(home / "photos/bean")


# Of random weights: what they make of a subject depends on everything before it.
@DIFFERENT_KEYS
def test_blocks_about_layers_and_language_models_run(home):
    language_folder(home)
    run("others")
    assert (home / "outputs/edit.safetensors").stat().st_size > 0


@pytest.mark.slow
@pytest.mark.parametrize("family", ["stable_diffusion", "stable_diffusion_xl"])
def test_the_block_about_pipelines_runs(family, home):
    pipeline_folder(home, family)
    pooled = pytest.warns(rk.RankeditWarning, match="in a pooled vector too, which is not edited")
    with pooled if family == "stable_diffusion_xl" else contextlib.nullcontext():
        run("pipelines")
    assert (home / "bean.safetensors").stat().st_size > 0
    with Image.open(home / "beach.png") as picture:
        picture.verify()


@pytest.mark.slow
@DIFFERENT_KEYS
def test_the_commands_run(home):
    language_folder(home)
    pipeline_folder(home, "stable_diffusion")
    request = re.search(r"^`facts.jsonl` is `(.*)`\)", README.read_text(), re.MULTILINE)[1]
    (home / "facts.jsonl").write_text(f"{request}\n")
    text = README.read_text().replace("\\\n", " ")
    lines = re.findall(r"^rankedit (.*)$", text, re.MULTILINE)
    assert len(lines) == 4
    for line in lines:
        done = CliRunner().invoke(application(), shlex.split(line))
        assert done.exit_code == 0, (line, done.output, done.exception)
    assert len(list((home / "pictures").glob("*.png"))) == 4
    assert rk.load("edits.safetensors")


def test_readme_begins_with_the_script_that_the_demo_runs():
    script = (ROOT / "docs/five_lines.py").read_text().partition('"""\n\n')[2]
    readme = README.read_text()
    assert f"```python\n{script}```" in readme


def test_methods_that_are_called_recipes_can_be_run_and_all_recipes_are_listed():
    rows = re.findall(r"^\| (\w[^|]*) \|.*\| ([^|]*) \|$", README.read_text(), re.MULTILINE)
    homes = {name: home for names, home in rows for name in re.split(", (?=[A-Za-z])", names)}
    language = {name.lower() for name, home in homes.items() if "rankedit language" in home}
    # ENCORE is MEMIT with norms kept in check: it has no row of its own in the one equation.
    assert language == METHODS.keys() - {"encore"} | {"sequential memit"}
    assert {name for name, home in homes.items() if "perfusion" in home} == {"Perfusion"}
    assert {home for home in homes.values() if not home.startswith("`rankedit")} == {
        "formula",
        "here",
    }


def test_the_version_is_the_same_everywhere():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert rk.__version__ == version
    assert f"\nVersion {version}, " in README.read_text()
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    headings = re.findall("^## ([0-9.]+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == version


def test_the_picture_is_small_and_described():
    alternatives = dict(re.findall(r"!\[([^\]]*)\]\(([^)]*)\)", README.read_text()))
    assert {ROOT / target for target in alternatives.values()} == {FRONT}
    assert all(len(text) > 40 for text in alternatives)
    assert FRONT.stat().st_size < 200_000
