"""The documentation is true: every Python block of it runs, and it says what the code says."""

import re
from pathlib import Path

import pytest
import torch
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

import rankedit
from rankedit import shapes

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/**/*.md")])
BLOCKS = Sybil(parsers=[PythonCodeBlockParser()], encoding="utf-8")


@pytest.fixture(autouse=True)
def _scratch(tmp_path, monkeypatch):
    """Blocks write into a temporary folder, and may change torch's default dtype."""
    monkeypatch.chdir(tmp_path)
    yield
    torch.set_default_dtype(torch.float32)


# One test for each page, not for each block: later blocks use the names of earlier ones, and tests
# may run in different processes.
@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_python_blocks_run(page):
    document = BLOCKS.parse(page)
    examples = list(document.examples())
    assert len(examples) == len(re.findall(r"^ *```python$", page.read_text(), re.MULTILINE))
    for example in examples:
        example.evaluate()


def test_readme_begins_with_the_script_that_the_demo_runs():
    script = (ROOT / "docs/five_lines.py").read_text().partition('"""\n\n')[2]
    readme = (ROOT / "README.md").read_text()
    assert f"```python\n{script}```" in readme


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


def test_api_pages_document_every_public_name():
    pages = "\n".join(page.read_text() for page in ROOT.glob("docs/api/*.md"))
    documented = set(re.findall(r"(?:auto\w+|py:data):: (?:\w+\.)*(\w+)", pages))
    assert set(rankedit.__all__) - documented == set()


def test_named_shapes_are_all_on_the_api_page():
    page = (ROOT / "docs/api.md").read_text()
    said = dict(re.findall(r"\.\. py:type:: (\w+)\n\n   ``(\[.*?\])``", page))
    known = vars(shapes).items()
    assert said == {n: a.__metadata__[0] for n, a in known if hasattr(a, "__metadata__")}
