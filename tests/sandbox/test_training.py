"""The trainer: a killed training goes on as if nothing had happened."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from rankedit_recipes.sandbox.checkpoint import (
    Checkpoint,
    latest_checkpoint,
    save_checkpoint,
    sha256,
)
from rankedit_recipes.sandbox.images.batches import make_batch
from rankedit_recipes.sandbox.images.exporting import write_pipeline
from rankedit_recipes.sandbox.images.presets import PRESETS
from rankedit_recipes.sandbox.images.run import Run, pictures_of, run
from rankedit_recipes.sandbox.images.trainer import Trainer
from rankedit_recipes.sandbox.images.training import rate_at

TINY = PRESETS["tiny"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder that holds the drawn pictures."""
    folder = tmp_path_factory.mktemp("training")
    pictures_of(TINY, folder)
    return folder


@pytest.fixture(scope="module")
def drawn(folder):
    return pictures_of(TINY, folder)


def train(drawn, steps, state=None):
    trainer = Trainer(TINY, drawn)
    if state is None:
        trainer.begin()
    else:
        trainer.restore(state)
    while trainer.step < steps:
        trainer.advance(make_batch(TINY, drawn, trainer.tokenizer, trainer.step))
    return trainer


def test_going_on_from_a_checkpoint_changes_nothing(drawn, tmp_path):
    whole = train(drawn, 6).state().tensors
    save_checkpoint(tmp_path, train(drawn, 3).state())
    resumed = train(drawn, 6, latest_checkpoint(tmp_path)).state().tensors
    assert set(whole) == set(resumed)
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name


def test_training_lowers_the_loss(drawn):
    trainer = Trainer(replace(TINY, steps=80, rate=3e-3), drawn)
    batch = make_batch(TINY, drawn, trainer.tokenizer, 0)
    losses = [trainer.advance(batch)[0] for _ in range(40)]
    assert losses[-1] < 0.7 * losses[0]


def test_the_average_lags_behind_and_is_not_the_weights(drawn):
    trainer = train(drawn, 4)
    name, weight = next((n, p) for n, p in trainer.named.items() if n.endswith("conv_in.weight"))
    assert not torch.equal(trainer.average[name], weight)


def test_a_batch_depends_on_seed_and_step_only(drawn):
    trainer = Trainer(TINY, drawn)
    first, again = (make_batch(TINY, drawn, trainer.tokenizer, 7) for _ in range(2))
    other = make_batch(TINY, drawn, trainer.tokenizer, 8)
    reseeded = make_batch(replace(TINY, seed=1), drawn, trainer.tokenizer, 7)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first.noise, other.noise)
    assert not torch.equal(first.noise, reseeded.noise)


def test_workers_share_one_batch(drawn):
    trainer = Trainer(TINY, drawn)
    whole = make_batch(TINY, drawn, trainer.tokenizer, 9)
    two = replace(TINY, workers=2)
    parts = [make_batch(two, drawn, trainer.tokenizer, 9, rank) for rank in range(2)]
    for a, b, c in zip(whole, *parts, strict=True):
        assert torch.equal(a, torch.cat([b, c]))


def test_objects_weigh_more(drawn):
    trainer = Trainer(TINY, drawn)
    batch = make_batch(TINY, drawn, trainer.tokenizer, 0)
    torch.testing.assert_close(batch.weight.mean((1, 2, 3)), torch.ones(4))
    assert batch.weight.max() > 1.3


def test_the_rate_rises_stays_and_falls_to_zero():
    preset = replace(TINY, steps=1000, decay=0.4)
    rates = [rate_at(preset, step) for step in range(1001)]
    assert rates[0] == 0.01
    assert set(rates[100:600]) == {1.0}
    assert rates[-1] == 0
    assert all(a >= b for a, b in itertools.pairwise(rates[600:]))


def test_broken_checkpoints_are_passed_over(tmp_path):
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, Checkpoint(step, {"x": torch.full((4,), float(step))}))
    assert not (tmp_path / "step-00000001.safetensors").exists()
    newest = tmp_path / "step-00000003.safetensors"
    newest.write_bytes(newest.read_bytes()[:-3])
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert found.step == 2
    assert latest_checkpoint(tmp_path / "nothing") is None


def test_a_run_writes_its_log_and_checkpoint(folder):
    run(TINY, Run(folder, log_every=4, sample_every=0))
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert lines[0]["preset"]["size"] == 16
    assert [line["step"] for line in lines[1:]] == [4, 8, 12]
    note = json.loads((folder / "step-00000012.json").read_text())
    assert note["sha256"] == sha256(folder / "step-00000012.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny", "tiny-joint"])
def test_kill_9_and_go_on(name, folder, drawn, tmp_path):
    command = [sys.executable, "-m", "rankedit_recipes.sandbox.train", "--preset", name]
    if name == "tiny-joint":
        write_pipeline(Trainer(TINY, drawn).pipeline(), tmp_path / "base")
        command += ["--init-from", str(tmp_path / "base")]
    options = ["--minutes", "0", "--steps", "200"]
    (tmp_path / "cache").symlink_to(folder / "cache")
    (tmp_path / "whole").mkdir()
    (tmp_path / "whole" / "cache").symlink_to(folder / "cache")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [*command, *options, "--folder", str(tmp_path)], env=environment, stderr=subprocess.DEVNULL
    ) as victim:
        # No deadline, which a busy machine may miss: it is over when the training is.
        while not list(tmp_path.glob("step-*.json")) and victim.poll() is None:
            time.sleep(0.05)
        victim.send_signal(signal.SIGKILL)
    stopped = latest_checkpoint(tmp_path)
    assert stopped is not None
    assert 0 < stopped.step < 200
    for place, extra in ((tmp_path, "0"), (tmp_path / "whole", "60")):
        subprocess.run(
            [*command, "--minutes", extra, "--steps", "200", "--folder", str(place)],
            env=environment,
            check=True,
            capture_output=True,
        )
    resumed, whole = latest_checkpoint(tmp_path), latest_checkpoint(tmp_path / "whole")
    assert resumed is not None
    assert whole is not None
    for name, value in whole.tensors.items():
        assert torch.equal(value, resumed.tensors[name]), name
