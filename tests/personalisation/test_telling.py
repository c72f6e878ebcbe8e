"""The page about Perfusion shows the figures that were measured."""

import json
from pathlib import Path

import pytest
from personalisation.perfusions import BIASES
from personalisation.telling import compared, tables

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks/results/perfusion"
KEPT = json.loads((RESULTS / "promises.json").read_text())


@pytest.mark.parametrize("number", range(3))
def test_the_page_has_the_tables_of_the_kept_results(number):
    assert tables(KEPT["lines"], BIASES)[number] in (ROOT / "docs/perfusion.md").read_text()


@pytest.mark.parametrize("number", range(7))
def test_the_evaluation_has_the_tables_of_the_kept_comparison(number):
    summary = json.loads((RESULTS / "summary.json").read_text())
    table = compared(summary)[number]
    assert table.count("\n") > 2  # more than a head
    assert table in (ROOT / "docs/evaluation.md").read_text()


def test_what_changes_nothing_is_said_so():
    lines = [dict(line) for line in KEPT["lines"]]
    for line in lines:
        if line["name"].startswith("off the concept"):
            line |= {"value": None, "reached": False}
    assert tables(lines, BIASES)[0].count("| nothing changes |") >= 3
