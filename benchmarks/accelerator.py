"""What is prepared for minutes of an accelerator: `python benchmarks/accelerator.py PART`.

Parts:
    timing   milliseconds a step, pictures and captions a second, of one preset in several forms
    sandbox  trains the sandbox's generator within `--seconds`, and hands over its weights

Nothing need be installed for it but torch, transformers, diffusers, Pillow and rich: the folders of
this repository are put on the path here. docs/sandbox.md has the command lines.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "recipes")]

NEEDED = ("torch", "transformers", "diffusers", "safetensors", "PIL", "rich")


def check_packages() -> None:
    """Stop with words where a package is missing: such a machine may have no network."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise SystemExit(
            f"accelerator: {', '.join(missing)} cannot be imported; bring wheels along and run\n"
            "  python3 -m pip install --no-index --no-deps --target /tmp/site "
            "outputs/wheels/*.whl\n"
            "  export PYTHONPATH=/tmp/site"
        )


def check_device(wanted: str) -> None:
    """Say where this runs, or that it cannot."""
    import torch

    if torch.device(wanted).type == "cuda" and not torch.cuda.is_available():
        raise SystemExit(
            "accelerator: torch finds no CUDA device; give --device cpu to try it in small"
        )
    name = torch.cuda.get_device_name() if wanted.startswith("cuda") else "processor"
    print(f"{name}, {os.cpu_count()} cores, torch {torch.__version__}", flush=True)


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
    import torch

    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def seconds_a_step(preset: Any, seconds: float, *, compiled: bool) -> float:
    """Mean seconds of a whole step, with captions at hand."""
    import torch
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parts = parser.add_subparsers(required=True)
    cores = max(1, (os.cpu_count() or 1) - 2)
    for part, seconds in ((timing, 8.0), (sandbox, 420.0)):
        own = parts.add_parser(part.__name__, help=(part.__doc__ or "").partition("\n")[0])
        own.set_defaults(part=part)
        own.add_argument("--preset", default="described-cuda")
        own.add_argument("--device", help="that of the preset by default")
        own.add_argument("--seconds", type=float, default=seconds, help="of all, or of each form")
        own.add_argument("--ahead", type=int, default=min(14, cores), help="processes beside it")
        if part is timing:
            own.add_argument("--batches", type=int, nargs="+", default=[256, 512, 1024])
            own.add_argument("--compile", action="store_true", help="compiled too; takes minutes")
        else:
            own.add_argument(
                "--out", type=Path, required=True, help="gets the weights, every minute"
            )
    given, more = parser.parse_known_args()
    if more and given.part is timing:
        parser.error(f"timing does not know {' '.join(more)}")
    # Whatever else `python -m rankedit_recipes.sandbox.train` takes goes there.
    given.more = more
    check_packages()
    given.part(given)


if __name__ == "__main__":
    main()
