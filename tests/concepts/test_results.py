"""The page quotes what the benchmark kept."""

import json
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_page_has_the_table_that_the_benchmark_wrote():
    page = (ROOT / "docs/erasing.md").read_text()
    table = (ROOT / "benchmarks/results/concepts/erasing.md").read_text()
    assert table.strip() in page
    rows = json.loads((ROOT / "benchmarks/results/concepts/erasing.json").read_text())
    assert len(rows) == len(table.strip().splitlines()) - 2
