"""Several processes give what one gives, and say so when they cannot."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rankedit import RankeditWarning
from rankedit.collecting.collect import collect
from tests.collect_worker import make_batches, make_model

WORKER = Path(__file__).with_name("collect_worker.py")
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": str(WORKER.parents[1]),
    "OMP_NUM_THREADS": "1",
    "GLOO_SOCKET_IFNAME": "lo",
}


def start(scenario, folder, rank, size=2):
    return subprocess.Popen(
        [sys.executable, WORKER, scenario, folder, str(rank), str(size)],
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(scenario, folder, size=2):
    """Exit codes and errors of all processes."""
    processes = [start(scenario, folder, rank, size) for rank in range(size)]
    errors = [process.communicate(timeout=600)[1] for process in processes]
    return [process.returncode for process in processes], errors


def check(folder, size=2, names=("key", "value", "late"), count=None):
    with pytest.warns(RankeditWarning, match="'late'"):
        expected = collect(make_model(), "*", make_batches(), progress=False)
    records = [json.loads((folder / f"rank{r}.json").read_text()) for r in range(size)]
    for name in names:
        for record in records:
            for key, value in expected[name].state().items():
                found = torch.tensor(record[name][key], dtype=torch.float64)
                torch.testing.assert_close(found, value, rtol=1e-12, atol=1e-12)
    return records


def test_under_torchrun(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    subprocess.run(
        [*command, "--nproc-per-node", "2", WORKER, "share", tmp_path],
        env=ENVIRONMENT,
        check=True,
        capture_output=True,
        timeout=600,
    )
    records = check(tmp_path)
    assert all(record["key"]["id"] != record["value"]["id"] for record in records)


@pytest.mark.slow
def test_batches_that_each_process_has_for_itself(tmp_path):
    codes, errors = run("own", tmp_path)
    assert codes == [0, 0], errors
    check(tmp_path)


@pytest.mark.slow
def test_fewer_batches_than_processes(tmp_path):
    codes, errors = run("one", tmp_path)
    assert codes == [0, 0], errors
    expected = collect(make_model(), ["key", "value"], make_batches()[:1], progress=False)
    for rank in range(2):
        record = json.loads((tmp_path / f"rank{rank}.json").read_text())
        assert record["key"]["count"] == expected["key"].count == 6
        assert record["key"]["id"] == record["value"]["id"]


@pytest.mark.slow
def test_batches_that_would_count_twice_or_not_at_all_are_refused(tmp_path):
    codes, errors = run("doubled", tmp_path)
    assert codes == [5, 5]
    assert all("shard=False needs other batches in every process" in error for error in errors)
    codes, errors = run("lost", tmp_path)
    assert codes == [5, 5]
    assert all("shard=True needs the same batches in every process" in error for error in errors)


@pytest.mark.slow
def test_a_model_whose_parameters_are_sharded(tmp_path):
    codes, errors = run("sharded", tmp_path)
    assert codes == [0, 0], errors
    expected = collect(make_model(), ["key", "value"], make_batches()[:6], progress=False)
    for rank in range(2):
        record = json.loads((tmp_path / f"rank{rank}.json").read_text())
        for name, moment in expected.items():
            found = torch.tensor(record[name]["outer_packed"], dtype=torch.float64)
            torch.testing.assert_close(found, moment.packed(), rtol=1e-12, atol=1e-12)
    codes, errors = run("uneven", tmp_path)
    assert codes == [5, 5]
    assert all("7 batches cannot be shared evenly; pass a multiple of 2" in e for e in errors)


@pytest.mark.slow
def test_the_death_of_a_process_is_said_and_survived(tmp_path):
    codes, errors = run("dies", tmp_path)  # well before the transport's time limit, see `run`
    assert codes == [5, 3]
    assert "StatisticsError: collect: process 0 of 2 lost the others: one of them died" in errors[0]
    assert "start the same command again" in errors[0]
    assert sorted(path.name for path in tmp_path.iterdir() if "partial" in path.name) == [
        "partial.rank0-of-2",
        "partial.rank1-of-2",
    ]
    codes, errors = run("resumes", tmp_path)
    assert codes == [0, 0], errors
    assert [(tmp_path / f"calls{rank}").read_text() for rank in range(2)] == ["0", "1"]
    assert not [path for path in tmp_path.iterdir() if "partial" in path.name]
    check(tmp_path)
