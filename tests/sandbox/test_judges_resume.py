"""The judges' training: a killed one goes on as if nothing had happened."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial

import pytest
import torch
from rankedit_recipes.sandbox import train as command_line
from rankedit_recipes.sandbox.checkpoint import (
    Checkpoint,
    latest_checkpoint,
    save_checkpoint,
)
from rankedit_recipes.sandbox.images import fitting, judge_training
from rankedit_recipes.sandbox.images.fitting import Kept, Plan, ResumeError
from rankedit_recipes.sandbox.images.judge_training import (
    train_attributes,
    train_clip,
    train_identity,
    train_judges,
)
from safetensors.torch import load_file

STEPS = 6
JUDGES = {
    "attributes": partial(train_attributes, STEPS, batch=4, size=16),
    "identity": partial(train_identity, STEPS, skins=4, size=16),
    "clip": partial(train_clip, STEPS, batch=4, size=16),
}


class PulledPlugError(Exception):
    """Stands for the end of the process."""


@pytest.fixture
def stop_before(monkeypatch):
    """Makes the training end in the middle of a step, or go on again."""
    draw = judge_training.rng_of

    def stop(last):
        def rng_of(stream, seed, step):
            if step == last:
                raise PulledPlugError
            return draw(stream, seed, step)

        monkeypatch.setattr(judge_training, "rng_of", rng_of)

    return stop


@pytest.fixture(autouse=True)
def short_log(monkeypatch):
    monkeypatch.setattr(fitting, "LOSS_EVERY", 2)


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def lines(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", JUDGES)
@pytest.mark.parametrize("broken", [False, True])
def test_a_stopped_judge_ends_with_the_same_weights(name, broken, stop_before, tmp_path):
    whole = JUDGES[name]()
    kept = Kept(tmp_path, minutes=0)
    stop_before(5)
    with pytest.raises(PulledPlugError):
        JUDGES[name](kept=kept)
    if broken:
        newest = tmp_path / name / "step-00000005.safetensors"
        newest.write_bytes(newest.read_bytes()[:-3])
    stop_before(None)
    torch.rand(3)
    resumed = JUDGES[name](kept=kept)
    assert_same(whole.model.state_dict(), resumed.model.state_dict())
    assert resumed.losses == whole.losses
    assert len(resumed.losses) == STEPS // 2
    begun = [line["from_step"] for line in lines(tmp_path) if "from_step" in line]
    assert begun == [0, 4 if broken else 5]
    assert [line["step"] for line in lines(tmp_path) if "step" in line] == [2, 4, 6]


def test_a_judge_without_a_checkpoint_begins_again(stop_before, tmp_path):
    kept = Kept(tmp_path, minutes=60)
    stop_before(5)
    with pytest.raises(PulledPlugError):
        JUDGES["identity"](kept=kept)
    with (tmp_path / "log.jsonl").open("a") as stream:
        stream.write('{"judge": "ident')
    stop_before(None)
    whole, resumed = JUDGES["identity"](), JUDGES["identity"](kept=kept)
    assert_same(whole.model.state_dict(), resumed.model.state_dict())
    assert [line["step"] for line in lines(tmp_path) if "step" in line] == [2, 4, 6]


def test_training_leaves_the_callers_draws_alone():
    torch.manual_seed(3)
    wanted = torch.rand(4)
    torch.manual_seed(3)
    JUDGES["identity"]()
    assert torch.equal(torch.rand(4), wanted)


def test_a_finished_judge_is_not_trained_again(stop_before, tmp_path):
    kept = Kept(tmp_path / "run")
    train_judges(tmp_path / "out", kept, steps=(0, 1, 0))
    files = sorted((tmp_path / "out").iterdir())
    assert [f.name for f in files] == ["identity.json", "identity.safetensors"]
    told = [f.read_bytes() for f in files]
    for file in files:
        file.unlink()
    stop_before(0)
    train_judges(tmp_path / "out", kept, steps=(0, 1, 0))
    assert [f.read_bytes() for f in files] == told
    assert all(v.dtype == torch.float16 for v in load_file(files[1]).values())


def test_other_settings_are_refused(tmp_path):
    train_identity(1, skins=4, size=16, kept=Kept(tmp_path))
    with pytest.raises(ResumeError, match=r"holds a training with .*name another --folder"):
        train_identity(2, skins=4, size=16, kept=Kept(tmp_path))
    where = ["--folder", str(tmp_path), "--judge-folder", str(tmp_path / "out")]
    with pytest.raises(SystemExit, match=r"identity holds a training .*\(1.0, 0.002, 4.0, 16.0\)"):
        command_line.main(["--judges", "--judge-steps", "0", "1", "0", *where])
    assert not list((tmp_path / "out").iterdir())


def test_the_rate_rises_and_falls_to_zero():
    plan = Plan("x", 100, 0.5, 1, 1)
    assert [plan.rate_at(step) for step in (0, 24, 75, 100)] == pytest.approx([0.01, 0.25, 0.2, 0])


def test_broken_checkpoints_of_later_steps_do_not_push_a_new_one_out(tmp_path):
    for step in (7, 8):
        broken = save_checkpoint(tmp_path, Checkpoint(step, {"x": torch.ones(1)}))
        broken.write_bytes(b"")
    save_checkpoint(tmp_path, Checkpoint(5, {"x": torch.ones(1)}))
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert found.step == 5


@pytest.mark.slow
def test_kill_9_and_go_on(tmp_path):
    def command(name):
        where = ["--folder", str(tmp_path / name), "--judge-folder", str(tmp_path / name / "out")]
        module = [sys.executable, "-m", "rankedit_recipes.sandbox.train", "--judges"]
        return [*module, "--judge-steps", "4", "8", "2", "--minutes", "0", *where]

    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    with subprocess.Popen(
        command("killed"), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as victim:
        # No deadline, which a busy machine may miss: it is over when the training is.
        while not list(killed.glob("identity/step-*.json")) and victim.poll() is None:
            time.sleep(0.02)
        victim.send_signal(signal.SIGKILL)
    stopped = latest_checkpoint(killed / "identity")
    assert stopped is not None
    assert 0 < stopped.step < 8
    finished = (killed / "attributes" / "step-00000004.safetensors").stat().st_mtime_ns
    for name in ("killed", "whole"):
        subprocess.run(command(name), env=environment, check=True, capture_output=True)
    assert (killed / "attributes" / "step-00000004.safetensors").stat().st_mtime_ns == finished
    for name in ("attributes", "identity", "clip"):
        ours = (killed / "out" / f"{name}.safetensors").read_bytes()
        assert ours == (whole / "out" / f"{name}.safetensors").read_bytes()
        first, second = latest_checkpoint(killed / name), latest_checkpoint(whole / name)
        assert first is not None
        assert second is not None
        first.tensors.pop("fit.sums"), second.tensors.pop("fit.sums")
        assert_same(first.tensors, second.tensors)
