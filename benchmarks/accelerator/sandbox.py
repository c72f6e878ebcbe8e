"""The sandbox's generator: how fast its steps are, and its training within some time."""

from __future__ import annotations

import argparse
import itertools
import time
from dataclasses import replace
from typing import Any

import torch

from accelerator.setting import check_device


def random_pictures(preset: Any, count: int) -> Any:
    """Pictures of noise in place of drawn ones: a step takes as long with them."""
    import numpy as np
    from rankedit_recipes.sandbox.images.cache import Drawn

    rng = np.random.default_rng(0)
    cells = preset.size // preset.patch
    shapes = (count, preset.size, preset.size, 3), (count, cells, cells)
    return Drawn(*(rng.integers(0, 256, shape, dtype=np.uint8) for shape in shapes))


def settle(device: str) -> None:
    """Wait for what was asked of the device."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def seconds_a_step(preset: Any, seconds: float, *, compiled: bool) -> float:
    """Mean seconds of a whole step, with captions at hand."""
    from rankedit_recipes.sandbox.images.ahead import Gallery, told_at
    from rankedit_recipes.sandbox.images.starting import training_of

    torch.backends.cudnn.benchmark = True
    drawn = random_pictures(preset, preset.pictures)
    trainer = training_of(preset, drawn)
    trainer.precision = preset.precision
    gallery = Gallery(preset, drawn, trainer.autoencoder)
    if compiled:
        trainer.compile()
    told = [told_at(preset, trainer.tokenizer, step) for step in range(2)]

    def step() -> None:
        ready = gallery.ready(preset, told[trainer.step % 2], trainer.step)
        trainer.descend(*trainer.losses_of(ready))

    begun = time.perf_counter()
    for _ in range(3):
        step()
    settle(preset.device)
    print(f"  ready after {time.perf_counter() - begun:.1f} s", flush=True)
    start, done = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        step()
        done += 1
        # Asked for ahead, but not by so much that the clock above means nothing.
        if done % 10 == 0:
            settle(preset.device)
    settle(preset.device)
    return (time.perf_counter() - start) / done


def captions_a_second(preset: Any, processes: int, seconds: float) -> float:
    """Captions, tokens and answers that so many processes make, once they have started."""
    from rankedit_recipes.sandbox.images.ahead import AHEAD, told_ahead

    told = told_ahead(preset, 0, processes)
    for _ in range((AHEAD + 1) * max(1, processes)):
        next(told)
    start = time.perf_counter()
    for count in itertools.count(1):
        next(told)
        taken = time.perf_counter() - start
        if taken > seconds:
            return count * preset.batch / taken
    raise AssertionError("told_ahead has no end")


def timing(given: argparse.Namespace) -> None:
    """Print the speed of a preset's steps and of what feeds them."""
    from rankedit_recipes.sandbox.images.presets import PRESETS

    preset = PRESETS[given.preset]
    preset = replace(preset, device=given.device or preset.device, pictures=4096)
    check_device(preset.device)
    for batch, compiled in itertools.product(given.batches, (False, True)[: 1 + given.compile]):
        sized = replace(preset, batch=batch)
        took = seconds_a_step(sized, given.seconds, compiled=compiled)
        said = "compiled" if compiled else "eager"
        print(f"{batch} a step, {said}: {1e3 * took:.1f} ms, {batch / took:.0f} pictures/s")
    speed = captions_a_second(replace(preset, batch=given.batches[-1]), given.ahead, given.seconds)
    print(f"{given.ahead} processes: {speed:.0f} captions/s", flush=True)


def sandbox(given: argparse.Namespace) -> None:
    """Train the sandbox's generator in the time there is."""
    from rankedit_recipes.sandbox.images.presets import PRESETS
    from rankedit_recipes.sandbox.train import main as train

    device = given.device or PRESETS[given.preset].device
    check_device(device)
    train([
        "--preset", given.preset, "--device", device, "--seconds", str(given.seconds),
        "--out", str(given.out), "--minutes", "1", "--ahead", str(given.ahead), *given.more,
    ])  # fmt: skip
