"""The benchmark of many edits runs in small and goes on, and its page says what it measured."""

import json
from pathlib import Path

import pytest

from benchmarks import scale

PAGE = Path(__file__).parent.parent / "docs" / "scale.md"


def test_the_page_has_the_figures_of_the_results():
    results = json.loads(scale.RESULTS.read_text())
    assert scale.table(results) in PAGE.read_text(encoding="utf-8")
    assert results["widths"] == [1536, 576]
    assert results["stream"]["100000"]["undo, one"] <= 0.5
    # What one change takes must not come to grow with the number of facts.
    for kind, name in (("ledger", "add, one"), ("ledger", "remove, one")):
        assert max(scale.exponents(results[kind], name)) < 0.2


def test_exponents_are_slopes():
    squares = {str(n): {"t": 3.0 * n**2} for n in (10, 100, 1000)}
    assert scale.exponents(squares, "t") == pytest.approx([2.0, 2.0])


def test_both_are_timed_in_small(tmp_path):
    world = scale.World((32, 16))
    ledger = scale.ledger_times(world, 40)
    stream = scale.stream_times(world, 40, tmp_path / "stream")
    again = scale.opened_times(world, tmp_path / "stream")
    assert all(value > 0 for found in (ledger, stream, again) for value in found.values())


@pytest.mark.slow
def test_it_goes_on_where_it_stopped(tmp_path):
    out = tmp_path / "scale.json"
    first = scale.run([20], out, (32, 16))
    both = scale.run([20, 40], out, (32, 16))
    for kind in ("ledger", "stream"):
        assert both[kind]["20"] == first[kind]["20"]
    assert scale.table(both).count("\n") == 16
