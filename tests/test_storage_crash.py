"""Whatever happens while saving, the file is the old one or the new one, whole."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rankedit.edits import LowRank
from rankedit.files.storage import load, save

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "tests" / "attacks" / "crash_saving.py"


def attack(mode: str, folder: Path, count: int) -> dict:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), mode, str(folder), str(count)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_killed_200_times_while_saving_the_file_is_always_whole(tmp_path):
    report = attack("kill", tmp_path, 200)
    assert set(report["found"]) <= {"old", "new"}
    assert sum(report["found"].values()) == 200
    assert report["found"]["new"] > 0  # the killings did hit savers at work
    assert report["litter_seen"] > 0
    assert report["left"] == ["edit.safetensors"]


@pytest.mark.slow
def test_with_the_disk_full_at_50_offsets_the_old_file_stays(tmp_path):
    report = attack("full", tmp_path, 50)
    assert report["found"] == {"old, exit 7, 1 file(s)": 50}
    assert report["left"] == ["edit.safetensors"]


@pytest.mark.slow
def test_two_writers_and_a_reader_see_whole_files_only(tmp_path):
    report = attack("race", tmp_path, 200)
    assert set(report["found"]) == {"old", "new"}
    assert report["left"] == ["edit.safetensors"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o000, 0o666)])
def test_the_mode_of_the_file_is_what_the_umask_says(tmp_path, umask, mode):
    previous = os.umask(umask)
    try:
        save(LowRank(torch.ones(2, 1), torch.ones(1, 2)), tmp_path / "edit")
    finally:
        os.umask(previous)
    assert (tmp_path / "edit").stat().st_mode & 0o777 == mode


def test_a_reader_keeps_the_file_that_it_opened(tmp_path):
    """Saving replaces the name, not the content: a reader sees one whole file."""
    path = tmp_path / "edit"
    first = LowRank(torch.ones(2, 1), torch.ones(1, 2))
    save(first, path)
    before = path.read_bytes()
    with path.open("rb") as stream:
        save(first * 2.0, path)
        assert stream.read() == before
    assert torch.equal(load(path)[""].up, 2 * first.up)
