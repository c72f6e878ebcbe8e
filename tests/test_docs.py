"""The documentation is true: every Python block of it runs, and it says what the code says."""

import re
from pathlib import Path

import pytest
import torch
import typer
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

import rankedit
from rankedit import shapes
from rankedit.cli import application

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/**/*.md")])
# The README's code needs folders of models, the tour trains: each has tests of its own.
RUN = [page for page in PAGES if page.name not in ("README.md", "tour.md")]
BLOCKS = Sybil(parsers=[PythonCodeBlockParser()], encoding="utf-8")


@pytest.fixture(autouse=True)
def _scratch(tmp_path, monkeypatch):
    """Blocks write into a temporary folder, and may change torch's default dtype."""
    monkeypatch.chdir(tmp_path)
    yield
    torch.set_default_dtype(torch.float32)


# One test for each page, not for each block: later blocks use the names of earlier ones, and tests
# may run in different processes.
@pytest.mark.parametrize("page", RUN, ids=[str(page.relative_to(ROOT)) for page in RUN])
def test_python_blocks_run(page):
    document = BLOCKS.parse(page)
    examples = list(document.examples())
    assert len(examples) == len(re.findall(r"^ *```python$", page.read_text(), re.MULTILINE))
    for example in examples:
        example.evaluate()


def prose(page):
    """The page without its blocks of code."""
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def test_relative_links_lead_somewhere():
    missing = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
        for target in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", prose(page))
        if not (page.parent / target).exists()
    ]
    assert missing == []


def commands():
    """Every `rankedit` command of the pages and of the Makefile, with where it stands."""
    for page in [*PAGES, ROOT / "Makefile"]:
        text = page.read_text().replace("\\\n", " ").replace("$(LEARN)", "rankedit perfusion learn")
        for line in re.findall(
            r"^\s*(?:\$\(BIN\)/)?(rankedit .*)|`(rankedit [^`]+)`", text, re.MULTILINE
        ):
            yield str(page.relative_to(ROOT)), line[0].partition(" #")[0] or line[1]


def test_commands_have_the_options_that_are_given_to_them():
    whole, wrong, seen = typer.main.get_command(application()), [], 0
    for place, line in commands():
        command = whole
        for word in line.split()[1:]:
            command = getattr(command, "commands", {}).get(word, command)
        known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
        given = re.findall(r"(?<=\s)--[a-z-]+", line)
        wrong += [f"{place}: {option} in {line}" for option in given if option not in known]
        seen += len(given)
    assert wrong == []
    assert seen > 30


def test_pictures_are_described():
    undescribed = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in PAGES
        for text, target in re.findall(r"!\[([^\]]*)\]\(([^)]*)\)", prose(page))
        if len(text.split()) < 4
    ]
    assert undescribed == []


def test_api_pages_document_every_public_name():
    pages = "\n".join(page.read_text() for page in ROOT.glob("docs/api/*.md"))
    documented = set(re.findall(r"(?:auto\w+|py:data):: (?:\w+\.)*(\w+)", pages))
    assert set(rankedit.__all__) - documented == set()


def test_named_shapes_are_all_on_the_api_page():
    page = (ROOT / "docs/api.md").read_text()
    said = dict(re.findall(r"\.\. py:type:: (\w+)\n\n   ``(\[.*?\])``", page))
    known = vars(shapes).items()
    assert said == {n: a.__metadata__[0] for n, a in known if hasattr(a, "__metadata__")}
