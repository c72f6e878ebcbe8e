"""Trains the language model: `python -m rankedit_recipes.sandbox.facts.train --export`."""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch

from rankedit.interrupt import Interrupt
from rankedit.progress import progress
from rankedit_recipes.sandbox.images.checkpoint import (
    keep_lines,
    latest_checkpoint,
    save_checkpoint,
    write_text,
)

from .batches import make_batch
from .exporting import export
from .loading import WEIGHTS
from .presets import PRESETS, Preset
from .tokenizer import build_tokenizer
from .trainer import Trainer, rate_at

CHANGEABLE = ("steps", "rate", "batch", "seed")
LOG_EVERY = 50


class ResumeError(ValueError):
    """A folder holds a training with other settings."""


def train(
    preset: Preset, folder: Path, *, minutes: float = 2.0, until: int | None = None
) -> Trainer:
    """Train until the last step, from the newest intact checkpoint if there is one.

    A training that was killed goes on to the same weights. The interrupt key saves and stops.

    Args:
        preset: What to train.
        folder: Where checkpoints and the log go.
        minutes: Minutes between checkpoints.
        until: Stop after this step instead, to go on later.

    Returns:
        The trainer after its last step.

    Raises:
        ResumeError: If the folder holds a training with other settings.
    """
    tokenizer = build_tokenizer(preset.pieces)
    trainer = Trainer(preset, len(tokenizer))
    _go_on(trainer, folder)
    last, saved = min(until or preset.steps, preset.steps), time.monotonic()
    log = _Log(folder / "log.jsonl", trainer)
    with (
        Interrupt(enabled=True) as interrupt,
        progress("train", preset.steps, done=trainer.step) as advance,
    ):
        while trainer.step < last and not interrupt.asked:
            loss = trainer.advance(make_batch(preset, tokenizer, trainer.step))
            advance(log.record(loss))
            if time.monotonic() - saved > 60 * minutes:
                save_checkpoint(folder, trainer.state())
                saved = time.monotonic()
    save_checkpoint(folder, trainer.state())
    return trainer


def _go_on(trainer: Trainer, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    note, asked = folder / "preset.json", asdict(trainer.preset)
    if note.exists() and (found := json.loads(note.read_text())) != asked:
        other = {name: found.get(name) for name in asked if found.get(name) != asked[name]}
        raise ResumeError(
            f"train: {folder} holds a training with {other}, but "
            f"{ {name: asked[name] for name in other} } was asked for; name another --folder, or "
            "remove that one"
        )
    write_text(note, json.dumps(asked))
    state = latest_checkpoint(folder)
    if state is not None:
        trainer.restore(state)


class _Log:
    """One line for every fifty steps; what a killed run wrote too much is dropped."""

    def __init__(self, file: Path, trainer: Trainer) -> None:
        self.file, self.trainer = file, trainer
        self.total, self.count = 0.0, 0
        self.note = ""
        keep_lines(file, lambda entry: entry.get("step", 0) <= trainer.step)
        self._write({"preset": asdict(trainer.preset), "from_step": trainer.step})

    def record(self, loss: float) -> str:
        """Count a step.

        Returns:
            What to show beside the bar.
        """
        self.total, self.count = self.total + loss, self.count + 1
        step = self.trainer.step
        if step % LOG_EVERY == 0:
            mean = self.total / self.count
            self.total, self.count, self.note = 0.0, 0, f"loss {mean:.3f}"
            rate = rate_at(self.trainer.preset, step)
            self._write({"step": step, "loss": round(mean, 4), "rate": round(rate, 4)})
        return self.note

    def _write(self, entry: dict[str, object]) -> None:
        with self.file.open("a") as stream:
            stream.write(json.dumps(entry | {"time": time.strftime("%H:%M:%S")}) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rankedit_recipes.sandbox.facts.train", description=__doc__
    )
    parser.add_argument("--preset", choices=sorted(PRESETS), default="cpu")
    parser.add_argument("--folder", type=Path, help="checkpoints and log; outputs/facts-PRESET")
    parser.add_argument("--steps", type=int, help="steps until the rate is zero")
    parser.add_argument("--rate", type=float, help="peak learning rate")
    parser.add_argument("--batch", type=int, help="rows of a step")
    parser.add_argument("--seed", type=int, help="seed of weights and texts")
    parser.add_argument("--minutes", type=float, default=2.0, help="minutes between checkpoints")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--export", action="store_true", help="write the weights that ship, after")
    parser.add_argument("--target", type=Path, default=WEIGHTS, help="where --export writes")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Train, going on from the newest checkpoint in the folder.

    Args:
        argv: Arguments of the command line; those of the process by default.
    """
    given = _parser().parse_args(argv)
    torch.set_num_threads(given.threads)
    changes = {
        name: getattr(given, name) for name in CHANGEABLE if getattr(given, name) is not None
    }
    preset = replace(PRESETS[given.preset], **changes)
    folder = given.folder or Path("outputs") / f"facts-{given.preset}"
    try:
        trainer = train(preset, folder, minutes=given.minutes)
    except ResumeError as error:
        raise SystemExit(str(error)) from error
    if trainer.step < preset.steps:
        raise SystemExit(f"train: stopped at step {trainer.step}; the same command goes on")
    if given.export:
        export(preset, folder, given.target)


if __name__ == "__main__":
    main()
