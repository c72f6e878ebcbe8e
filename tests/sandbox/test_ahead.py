"""Training beside processes that work ahead, in the time there is; here on the processor."""

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import replace

import pytest
import torch
from rankedit_recipes.sandbox.checkpoint import latest_checkpoint, restore_tensors
from rankedit_recipes.sandbox.images.ahead import Gallery, told_ahead, told_at
from rankedit_recipes.sandbox.images.averages import load_average
from rankedit_recipes.sandbox.images.batches import diffusion, make_batch
from rankedit_recipes.sandbox.images.exporting import write_pipeline
from rankedit_recipes.sandbox.images.joint_trainer import JointTrainer
from rankedit_recipes.sandbox.images.loading import files_of
from rankedit_recipes.sandbox.images.log import Log
from rankedit_recipes.sandbox.images.models import build_text_encoder, build_unet
from rankedit_recipes.sandbox.images.pace import OPEN, SETTLED, Pace
from rankedit_recipes.sandbox.images.presets import PRESETS
from rankedit_recipes.sandbox.images.run import Run, pictures_of, run
from rankedit_recipes.sandbox.images.skin_questions import (
    SkinQuestions,
    label_table,
    skin_labels,
)
from rankedit_recipes.sandbox.images.starting import with_open_end
from rankedit_recipes.sandbox.images.trainer import Trainer
from rankedit_recipes.sandbox.images.training import rate_at

FULL = PRESETS["described-cuda"]
TINY = replace(
    PRESETS["tiny"],
    single_steps=0,
    length=FULL.length,
    skinned=FULL.skinned,
    described=FULL.described,
    whole=True,
    side=FULL.side,
    side_steps=2,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ahead")
    pictures_of(TINY, folder)
    return folder


@pytest.fixture(scope="module")
def drawn(folder):
    return pictures_of(TINY, folder)


@pytest.mark.parametrize("step", [0, 3, 41])
def test_a_batch_made_ahead_is_the_one_made_in_its_step(drawn, step):
    trainer = Trainer(TINY, drawn)
    batch = make_batch(TINY, drawn, trainer.tokenizer, step)
    told = told_at(TINY, trainer.tokenizer, step)
    ready = Gallery(TINY, drawn, trainer.autoencoder).ready(TINY, told, step)
    latents = trainer.autoencoder.latents(batch.pixels)
    torch.testing.assert_close(ready.latents, latents, rtol=1e-5, atol=1e-6)
    for name in ("weight", "tokens", "times", "noise"):
        assert torch.equal(getattr(ready, name), getattr(batch, name)), name
    asked = label_table(skin_labels(batch.tokens, trainer.tokenizer)).long()
    assert torch.equal(ready.labels, asked)
    for one, other in zip(trainer.losses_of(ready), trainer.losses(batch), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=0.0)


def test_joint_batches_made_ahead_are_the_same(drawn):
    preset = replace(TINY, base="joint", joint=(32, 2), side=0.0)
    trainer = JointTrainer(preset, drawn)
    with torch.no_grad():
        for parameter in trainer.modules.parameters():
            parameter.add_(0.01)
    told = told_at(preset, trainer.tokenizer, 2)
    assert told.labels.shape[1] == 0
    ready = Gallery(preset, drawn, trainer.autoencoder).ready(preset, told, 2)
    batch = make_batch(preset, drawn, trainer.tokenizer, 2)
    torch.testing.assert_close(trainer.losses_of(ready)[0], trainer.losses(batch)[0])


def test_order_does_not_depend_on_where_it_begins():
    whole = told_ahead(TINY, 0, 0)
    [next(whole) for _ in range(3)]
    begun = told_ahead(TINY, 3, 0)
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(next(whole), next(begun), strict=True))


@pytest.mark.slow
def test_processes_make_what_one_makes_in_the_same_order():
    alone, shared = told_ahead(TINY, 5, 0), told_ahead(TINY, 5, 2)
    for _ in range(9):
        assert all(torch.equal(a, b) for a, b in zip(next(alone), next(shared), strict=True))


def test_questions_asked_everywhere_have_the_loss_of_those_asked_where_they_are(drawn):
    tokenizer = Trainer(TINY, drawn).tokenizer
    texts = ["a red disc banded blue pink cat next to a cup", "", "a house"]
    tokens = tokenizer(texts, padding="max_length", return_tensors="pt")["input_ids"]
    questions, features = SkinQuestions(8), torch.randn(3, 40, 8)
    labels = skin_labels(tokens, tokenizer)
    expected = questions.loss(features, labels)
    found = questions.loss_everywhere(features, label_table(labels).long())
    torch.testing.assert_close(found, expected)
    nothing = {name: label[1:2] for name, label in labels.items()}
    none = questions.loss_everywhere(features[1:2], label_table(nothing).long())
    assert none.item() == 0


def test_noise_is_the_same_whenever_a_step_is_done_again():
    first, again = diffusion(TINY, 3, "cpu"), diffusion(TINY, 3, torch.device("cpu"))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


class Hand:
    """A clock that is turned by hand."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def paced(seconds, speeds, first=0, decay=0.4):
    """Go through a training; speeds by the part of the time that is over."""
    clock = Hand()
    pace = Pace(clock.now + seconds, decay, clock)
    preset, step = replace(TINY, steps=OPEN, decay=decay), first
    while step < preset.steps and not pace.over():
        if step % 20 == 0:
            preset = pace.ended(preset, step) or preset
        clock.now += 1 / speeds((clock.now - 1000.0) / seconds)
        step += 1
    return preset, step, clock.now - 1000.0


def test_the_end_is_set_so_that_the_rate_has_fallen_in_time():
    preset, step, took = paced(100.0, lambda _: 40.0)
    assert step == preset.steps
    assert 90 < took < 100
    assert abs(preset.decay - 0.4) < 0.02
    assert rate_at(preset, step) == 0
    assert abs(preset.level_steps - 0.6 * step) < 0.02 * step


def test_it_is_in_time_where_it_becomes_somewhat_slower_and_cut_where_much():
    preset, step, took = paced(100.0, lambda part: 40.0 if part < 0.6 else 38.5)
    assert step == preset.steps
    assert took <= 100
    preset, step, took = paced(100.0, lambda part: 40.0 if part < 0.6 else 20.0)
    assert step < preset.steps
    assert abs(took - 100) < 0.1


def test_a_training_that_goes_on_with_little_time_falls_from_where_it_is():
    preset, step, _ = paced(20.0, lambda _: 40.0, first=10_000)
    assert step == preset.steps
    assert 10_000 < preset.level_steps < 10_100
    assert rate_at(preset, preset.level_steps) == 1.0
    assert rate_at(preset, step - 1) < 0.01


def test_nothing_is_set_before_speed_was_measured():
    clock = Hand()
    pace, preset = Pace(clock.now + 1, 0.4, clock), replace(TINY, steps=OPEN)
    for step in (7, 7 + SETTLED - 1, 7 + SETTLED):
        assert pace.ended(preset, step) is None
        clock.now += 0.1
    assert pace.ended(preset, 7 + SETTLED + 1) is not None


def lines_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def fresh(folder, tmp_path):
    tmp_path.mkdir()
    (tmp_path / "cache").symlink_to(folder / "cache")
    return tmp_path


@pytest.mark.slow
def test_a_run_in_time_falls_and_hands_over(folder, tmp_path, monkeypatch):
    place, out, clock = fresh(folder, tmp_path / "run"), tmp_path / "out", Hand()

    def turned():
        clock.now += 0.1
        return clock.now

    monkeypatch.setattr(
        "rankedit_recipes.sandbox.images.run.Pace",
        lambda until, decay: Pace(until, decay, turned),
    )
    monkeypatch.setattr("rankedit_recipes.sandbox.images.run.PACED", 1)
    run(TINY, Run(place, ahead=0, until=clock.now + 16, out=out, log_every=20, sample_every=0))
    entries = lines_of(place)
    ends = [entry["preset"]["steps"] for entry in entries if "preset" in entry]
    assert ends[0] == OPEN
    last = latest_checkpoint(place)
    assert 60 < ends[-1] == last.step
    with tarfile.open(out / "weights.tar") as archive:
        archive.extractall(tmp_path, filter="data")
    told = json.loads((tmp_path / "weights" / "provenance.json").read_text())
    assert told["step"] == last.step
    assert told["preset"]["steps"] == ends[-1]
    assert set(files_of(tmp_path / "weights")) == {"unet", "text_encoder", "vae"}
    assert (out / "log.jsonl").read_text() == (place / "log.jsonl").read_text()


def test_the_end_that_was_set_is_kept_and_one_set_later_is_not(tmp_path):
    log = tmp_path / "log.jsonl"
    opened, ended = ({"steps": OPEN, "decay": 0.4}, {"steps": 900, "decay": 0.3})
    log.write_text(
        "".join(
            json.dumps(entry) + "\n"
            for entry in ({"preset": opened, "from_step": 0}, {"step": 600, "preset": ended})
        )
    )
    known = with_open_end(TINY, log, 650)
    assert (known.steps, known.decay) == (900, 0.3)
    assert with_open_end(TINY, log, 550).steps == OPEN
    assert len(lines_of(tmp_path)) == 1


@pytest.mark.slow
def test_what_is_interrupted_goes_on_to_the_same_weights(folder, tmp_path, monkeypatch):
    whole, parts = (fresh(folder, tmp_path / name) for name in ("whole", "parts"))
    preset = replace(TINY, steps=30)
    run(preset, Run(whole, ahead=0, sample_every=0))
    recorded = Log.record

    def interrupted(log, done):
        recorded(log, done)
        if log.trainer.step == 13:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Log, "record", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(preset, Run(parts, ahead=0, sample_every=0, minutes=0))
    assert latest_checkpoint(parts).step == 13
    run(preset, Run(parts, ahead=0, sample_every=0))
    one, other = latest_checkpoint(whole), latest_checkpoint(parts)
    assert one.step == other.step == 30
    assert all(torch.equal(value, other.tensors[name]) for name, value in one.tensors.items())


def test_several_workers_are_refused(folder):
    with pytest.raises(ValueError, match=r"expected one worker .* got 2; give --workers 1"):
        run(replace(TINY, workers=2), Run(folder, ahead=0))


def test_moments_come_back_where_their_parameters_are(drawn):
    trainer = Trainer(TINY, drawn)
    trainer.begin()
    trainer.advance(make_batch(TINY, drawn, trainer.tokenizer, 0))
    stored = trainer.state().tensors
    elsewhere = {
        name: torch.nn.Parameter(parameter.detach().to("meta"))
        for name, parameter in trainer.named.items()
    }
    optimiser = torch.optim.AdamW(elsewhere.values(), lr=1e-3, fused=False)
    restore_tensors(stored, elsewhere, optimiser)
    for state in optimiser.state.values():
        assert {value.device.type for value in state.values()} == {"meta"}


def test_averages_of_another_module_are_refused():
    text = build_text_encoder(50, width=16, layers=1)
    average = {f"text_encoder.{name}": p.detach() for name, p in text.named_parameters()}
    load_average(average, (("text_encoder", text),))
    name, value = average.popitem()
    with pytest.raises(ValueError, match=r"load_average: expected averages of the .*one side only"):
        load_average(average, (("text_encoder", text),))
    with pytest.raises(ValueError, match=r"one side only: \['extra'\]"):
        load_average(
            {**average, name: value, "text_encoder.extra": value}, (("text_encoder", text),)
        )


def test_what_is_measured_is_what_is_trained(drawn, tmp_path, monkeypatch):
    trainer = Trainer(replace(TINY, precision="measured"), drawn)
    batch = make_batch(TINY, drawn, trainer.tokenizer, 0)
    seen = []
    norm = trainer.modules["unet"].conv_norm_out
    norm.register_forward_hook(lambda _, given, made: seen.append(made.dtype))
    monkeypatch.setattr("rankedit_recipes.sandbox.images.speed.SECONDS", 0.0)
    trainer.choose_precision(tmp_path, batch)
    assert set(seen) == {torch.float32}
    assert len(seen) == 2


@pytest.mark.parametrize("name", ["described-cuda", "described-cuda-wide"])
def test_weights_fit_in_what_may_come_back(name):
    preset = PRESETS[name]
    with torch.device("meta"):
        unet = build_unet(preset.size // preset.patch, preset.channels, preset.widths)
        text = build_text_encoder(200, length=preset.length)
    count = sum(p.numel() for part in (unet, text) for p in part.parameters())
    assert 2 * count < 16_500_000


@pytest.mark.slow
@pytest.mark.parametrize("base", ["unet", "joint"])
def test_kill_9_ahead_and_go_on(base, folder, drawn, tmp_path):
    name = "tiny" if base == "unet" else "tiny-joint"
    plain = PRESETS["tiny"]
    command = [sys.executable, "-m", "rankedit_recipes.sandbox.train", "--preset", name]
    command += ["--ahead", "1", "--steps", "120", "--probe-every", "0"]
    if base == "joint":
        write_pipeline(Trainer(plain, drawn).pipeline(), tmp_path / "base")
        command += ["--init-from", str(tmp_path / "base")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    whole = tmp_path / "whole"
    with subprocess.Popen(
        [*command, "--minutes", "0", "--folder", str(tmp_path)],
        env=environment,
        stderr=subprocess.DEVNULL,
    ) as victim:
        # No deadline of its own: it is over when the training is, and the runner has its limits.
        while not list(tmp_path.glob("step-*.json")) and victim.poll() is None:
            time.sleep(0.05)
        victim.send_signal(signal.SIGKILL)
    assert 0 < latest_checkpoint(tmp_path).step < 120
    for place in (tmp_path, whole):
        subprocess.run(
            [*command, "--folder", str(place)], env=environment, check=True, capture_output=True
        )
    one, other = latest_checkpoint(whole), latest_checkpoint(tmp_path)
    assert all(torch.equal(value, other.tensors[key]) for key, value in one.tensors.items())
