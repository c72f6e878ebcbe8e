"""The documentation is true: every Python block of it runs, and it says what the code says."""

import re
from pathlib import Path

import pytest
import torch
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

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


def test_relative_links_lead_somewhere():
    missing = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
        for target in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", page.read_text())
        if not (page.parent / target).exists()
    ]
    assert missing == []
