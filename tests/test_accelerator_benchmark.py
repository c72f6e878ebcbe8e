"""The benchmark for an accelerator, in small on a processor: it checks, keeps and goes on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

from accelerator.forward import measured, units  # noqa: E402
from accelerator.kept import UNRUN, Kept, Place, check_close  # noqa: E402

PLACE = Place(torch.device("cpu"), small=True)


def test_a_forward_is_checked_and_timed():
    row = measured(PLACE, 24, 16, 6, "eager")
    assert float(row["error"]) < 1e-5
    assert row["ratio"] > 0
    assert any(name.startswith("Flux") for name in units(PLACE))


def test_a_wrong_result_stops():
    with pytest.raises(SystemExit, match=r"an edit differs from the processor's by 0\.5"):
        check_close("an edit", torch.tensor([1.5]), torch.tensor([1.0]), 1e-3)
    with pytest.raises(SystemExit, match="by nan"):
        check_close("an edit", torch.tensor([float("nan")]), torch.tensor([1.0]), 1e-3)


def test_a_part_goes_on_with_what_it_lacks(tmp_path):
    file, ran = tmp_path / "results.json", []

    def unit(name, row):
        return lambda: ran.append(name) or row

    given = {name: unit(name, {"error": "0"}) for name in ("one", "two")}
    assert not Kept(file, PLACE).run("part", given, seconds=-1.0)
    assert ran == []
    assert Kept(file, PLACE).run("part", {"one": given["one"]}, seconds=9.0)
    assert Kept(file, PLACE).run("part", given, seconds=9.0)
    assert ran == ["one", "two"]
    assert not Kept(file, PLACE).run("part", {"bad": unit("bad", {"FAILED": "2 failed"})}, 9.0)
    assert Kept(file, PLACE).run("part", {"bad": unit("again", {"error": "0"})}, 9.0)
    assert ran == ["one", "two", "bad", "again"]
    page = file.with_suffix(".md").read_text()
    assert UNRUN in page
    assert "| part: two | error 0 |" in page
    # What another card, torch or size gave is no result of this one.
    file.write_text(json.dumps({**json.loads(file.read_text()), "torch": "1.0"}))
    assert Kept(file, PLACE).rows == {}


@pytest.mark.slow
def test_all_of_it_in_small(tmp_path):
    file = tmp_path / "small.json"
    command = [sys.executable, ROOT / "benchmarks/accelerator.py", "all", "--small", "--device"]
    subprocess.run([*command, "cpu", "--out", file], check=True, cwd=ROOT, timeout=900)
    parts = {key.partition(":")[0] for key in json.loads(file.read_text())["rows"]}
    assert parts == {
        "tests", "forward", "collect", "solve", "perfusion", "language", "sampling",
    }  # fmt: skip
