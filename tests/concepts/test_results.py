"""The page quotes what the benchmark kept, and whichever units are done make tables."""

import json
from pathlib import Path

import pytest

from benchmarks.erasing import page, tables
from benchmarks.erasing.units import Unit, computed, known

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks/results/concepts"


@pytest.fixture(scope="module")
def rows():
    return json.loads((RESULTS / "units.json").read_text())


@pytest.mark.parametrize("table", [tables.erasing, tables.returning, tables.costs])
def test_the_page_has_the_tables_of_the_units_that_were_kept(rows, table):
    text = (ROOT / "docs/erasing.md").read_text()
    written = (RESULTS / "tables.md").read_text()
    assert table(rows).strip() in text
    assert table(rows).strip() in written
    assert len(table(rows).strip().splitlines()) > 2


def test_any_part_of_the_units_makes_tables(rows, tmp_path):
    for part in ([], rows[:1], rows[::3], rows[1::4], rows[-2:]):
        page.write(part, len(rows), tmp_path, tmp_path / "out")
        told = (tmp_path / "out/tables.md").read_text()
        assert told.startswith(f"{len(part)} of {len(rows)} units are done.")
        kinds = {(r["kind"], r["method"]) for r in part if r["of"] == "erased"}
        assert len(tables.erasing(part).strip().splitlines()) == 2 + len(kinds)


def test_a_unit_is_computed_once_and_an_interrupted_one_again(tmp_path):
    called = []

    def work(world, folder):
        called.append(world)
        if len(called) == 1:
            raise KeyboardInterrupt
        return {"of": "mine", "value": 3}

    unit = Unit("my unit, one", work)
    with pytest.raises(KeyboardInterrupt):
        computed(unit, tmp_path, lambda: "world")
    assert known([unit], tmp_path) == []
    for _ in range(2):
        assert computed(unit, tmp_path, lambda: "world")["value"] == 3
    assert called == ["world", "world"]
    assert known([unit], tmp_path) == [{"of": "mine", "value": 3}]


def test_pooled_shares_count_pictures_and_not_units():
    rows = [{"direct": [0, 12]}, {"direct": [3, 4]}]
    assert tables.pooled(rows, "direct") == (3, 16)
    assert tables.share((3, 16)) == "18.8% of 16"
