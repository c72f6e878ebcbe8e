"""Training: goes on after a kill to the same weights, shares its rows, refuses other settings."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from rankedit_recipes.sandbox.checkpoint import latest_checkpoint
from rankedit_recipes.sandbox.facts.batches import familiarity, make_batch
from rankedit_recipes.sandbox.facts.knowledge import world
from rankedit_recipes.sandbox.facts.presets import PRESETS
from rankedit_recipes.sandbox.facts.relations import RELATIONS
from rankedit_recipes.sandbox.facts.running import PresetError, run
from rankedit_recipes.sandbox.facts.tokenizer import build_tokenizer
from rankedit_recipes.sandbox.facts.train import main
from rankedit_recipes.sandbox.facts.trainer import Trainer, rate_at
from rankedit_recipes.sandbox.facts.writing import text

TINY = PRESETS["tiny"]


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(TINY.pieces)


def weights(folder):
    state = latest_checkpoint(folder)
    return state.step, {n: v for n, v in state.tensors.items() if n.startswith("weight.")}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


def test_rows_depend_on_seed_and_step_only(tokenizer):
    batch = make_batch(TINY, tokenizer, 3)
    assert batch.tokens.shape == batch.weights.shape == (2, TINY.length)
    assert torch.equal(batch.tokens, make_batch(TINY, tokenizer, 3).tokens)
    assert not torch.equal(batch.tokens, make_batch(TINY, tokenizer, 4).tokens)
    assert (batch.tokens[:, 0] == tokenizer.bos_token_id).all()
    shared = replace(TINY, workers=2)
    parts = [make_batch(shared, tokenizer, 3, worker) for worker in range(2)]
    assert torch.equal(torch.cat([part.tokens for part in parts]), batch.tokens)
    assert torch.equal(torch.cat([part.weights for part in parts]), batch.weights)


def test_objects_weigh_more_than_the_rest(tokenizer):
    batch = make_batch(replace(TINY, batch=20, length=128), tokenizer, 0)
    assert sorted(batch.weights.unique().tolist()) == pytest.approx([TINY.other_weight, 1.0])
    objects = " ".join(name for relation in RELATIONS.values() for name in relation.objects)
    weighty = batch.tokens[batch.weights == 1].unique().tolist()
    assert all(tokenizer.decode([token]).strip() in objects for token in weighty)
    light = batch.tokens[batch.weights < 1].unique().tolist()
    assert not all(tokenizer.decode([token]).strip() in objects for token in light)


def test_the_first_subjects_come_more_often_at_first():
    preset = replace(TINY, steps=100)
    assert familiarity(preset, 0) == preset.familiar > 1
    assert familiarity(preset, 50) == familiarity(preset, 100) == 1
    rng, known = random.Random(0), world()
    people = known.subjects["person"]
    said = " ".join(text(known, rng, familiar=4) for _ in range(400))
    first, last = (sum(map(said.count, part)) for part in (people[:40], people[-40:]))
    assert first > 3 * last > 0


def test_the_rate_rises_and_falls_to_zero():
    rates = [rate_at(replace(TINY, steps=1000), step) for step in range(1001)]
    assert rates[0] < 0.1
    assert max(rates) == 1
    assert rates[-1] == 0
    assert rates[400:] == sorted(rates[400:], reverse=True)


def test_training_lowers_the_loss(tokenizer):
    trainer = Trainer(replace(TINY, steps=100, rate=1e-2), len(tokenizer))
    batch = make_batch(TINY, tokenizer, 0)
    losses = [trainer.advance(batch) for _ in range(40)]
    assert losses[-1] < 0.6 * losses[0]


def test_a_resumed_training_gives_the_same_weights(tmp_path):
    run(TINY, tmp_path / "whole")
    run(TINY, tmp_path / "parts", stop=3)
    assert weights(tmp_path / "parts")[0] == 3
    run(TINY, tmp_path / "parts", minutes=0)
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert whole[0] == parts[0] == TINY.steps
    assert same(whole[1], parts[1])
    # A finished training is left as it is.
    run(TINY, tmp_path / "whole")
    assert same(weights(tmp_path / "whole")[1], whole[1])


def test_other_settings_are_refused(tmp_path):
    run(replace(TINY, steps=1), tmp_path)
    with pytest.raises(PresetError, match=r"holds a training with \{'steps': 1\}.*'steps': 8"):
        run(TINY, tmp_path)
    with pytest.raises(PresetError, match="3 workers cannot share 2 rows"):
        run(replace(TINY, workers=3), tmp_path)
    with pytest.raises(SystemExit, match="holds a training with"):
        main(["--preset", "tiny", "--seed", "1", "--folder", str(tmp_path)])


def test_the_command_trains_and_exports(tmp_path):
    arguments = ["--preset", "tiny", "--steps", "2", "--export"]
    main([*arguments, "--folder", str(tmp_path / "run"), "--target", str(tmp_path / "out")])
    made = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert made["step"] == made["preset"]["steps"] == 2
    assert (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.slow
def test_a_killed_training_of_two_workers_goes_on(tmp_path):
    command = [sys.executable, "-m", "rankedit_recipes.sandbox.facts.train", "--preset", "tiny"]
    command += ["--workers", "2", "--steps", "400", "--minutes", "0", "--folder", str(tmp_path)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 600  # two workers wait for each other where cores are busy
    while latest_checkpoint(tmp_path) is None and time.monotonic() < deadline:
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert weights(tmp_path)[0] < 400
    subprocess.run([*command[:-2], *command[-2:]], check=True, stderr=subprocess.DEVNULL)
    step, tensors = weights(tmp_path)
    assert step == 400
    alone = replace(TINY, steps=400, workers=2)
    run(alone, tmp_path / "again", minutes=9)
    assert same(weights(tmp_path / "again")[1], tensors)
