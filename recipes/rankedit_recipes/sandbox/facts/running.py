"""Runs a training of the language model over its workers: steps, log, checkpoints."""

import json
import os
import socket
import time
from dataclasses import asdict
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from rankedit.progress import progress
from rankedit_recipes.sandbox.checkpoint import (
    keep_lines,
    latest_checkpoint,
    save_checkpoint,
    write_text,
)

from .batches import make_batch
from .presets import Preset
from .tokenizer import build_tokenizer
from .trainer import Trainer, rate_at

LOG_EVERY = 50
"""Steps whose mean loss is one line of the log."""


class PresetError(ValueError):
    """Settings that cannot be, or that are not those of the training in the folder."""


def run(preset: Preset, folder: Path, *, minutes: float = 2.0, stop: int | None = None) -> None:
    """Train until the last step, from the newest intact checkpoint if there is one.

    A training that was killed goes on to the same weights; with another number of workers, to the
    same up to rounding.

    Args:
        preset: What to train.
        folder: Where checkpoints and the log go.
        minutes: Minutes between checkpoints.
        stop: Stop after this step instead, to go on later.

    Raises:
        PresetError: If the workers do not divide the batch, or if the folder holds a training with
            other settings.
    """
    if preset.batch % preset.workers:
        raise PresetError(
            f"train: {preset.workers} workers cannot share {preset.batch} rows evenly; choose a "
            "--batch that they divide"
        )
    folder.mkdir(parents=True, exist_ok=True)
    _check_settings(preset, folder)
    last = min(preset.steps, preset.steps if stop is None else stop)
    if preset.workers == 1:
        _work(0, preset, folder, minutes, last, "")
        return
    # Port 0 stands for any free one.
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    mp.spawn(  # type: ignore[attr-defined, no-untyped-call]
        _work, args=(preset, folder, minutes, last, address), nprocs=preset.workers
    )


def _check_settings(preset: Preset, folder: Path) -> None:
    note, asked = folder / "preset.json", asdict(preset)
    found = json.loads(note.read_text()) if note.exists() else asked
    # Workers only change the order of sums.
    other = {n: found.get(n) for n in asked if found.get(n) != asked[n] and n != "workers"}
    if other:
        raise PresetError(
            f"train: {folder} holds a training with {other}, but "
            f"{ {name: asked[name] for name in other} } was asked for; name another --folder, or "
            "remove that one"
        )
    write_text(note, json.dumps(asked))


def _work(rank: int, preset: Preset, folder: Path, minutes: float, last: int, address: str) -> None:
    if preset.workers > 1:
        # On two cores, two processes of one thread are faster than one process of two.
        torch.set_num_threads(1)
        dist.init_process_group("gloo", address, rank=rank, world_size=preset.workers)
    tokenizer = build_tokenizer(preset.pieces)
    trainer, parent = Trainer(preset, len(tokenizer)), os.getppid()
    state = latest_checkpoint(folder)
    if state is not None:
        trainer.restore(state)
    begun, first = trainer.step, rank == 0
    log = _Log(folder, trainer, minutes) if first else None
    with progress("train", preset.steps, done=begun, shown=first) as advance:
        while trainer.step < last:
            # Only on Linux does torch 2.13 end the workers of a parent that was killed.
            if preset.workers > 1 and os.getppid() != parent:
                raise SystemExit("train: the process that started this worker is gone")
            loss = trainer.advance(make_batch(preset, tokenizer, trainer.step, rank))
            advance(log.record(loss) if log else "")
    # Without a step the newest checkpoint is this one.
    if log and trainer.step > begun:
        save_checkpoint(folder, trainer.state())
    if preset.workers > 1:
        dist.barrier()
        dist.destroy_process_group()


class _Log:
    """What the first worker does besides training: lines of the log, and checkpoints."""

    def __init__(self, folder: Path, trainer: Trainer, minutes: float) -> None:
        self.folder, self.trainer, self.minutes = folder, trainer, minutes
        self.losses: list[float] = []
        self.note, self.saved = "", time.monotonic()
        # What a killed run wrote after its last checkpoint is done again.
        keep_lines(self._file, lambda entry: entry.get("step", 0) <= trainer.step)
        self._write({"preset": asdict(trainer.preset), "from_step": trainer.step})

    @property
    def _file(self) -> Path:
        return self.folder / "log.jsonl"

    def record(self, loss: float) -> str:
        """Count a step; now and then write a line or a checkpoint.

        Returns:
            What to show beside the bar.
        """
        trainer = self.trainer
        self.losses.append(loss)
        if trainer.step % LOG_EVERY == 0:
            mean = sum(self.losses) / len(self.losses)
            rate = rate_at(trainer.preset, trainer.step)
            self._write({"step": trainer.step, "loss": round(mean, 4), "rate": round(rate, 4)})
            self.losses, self.note = [], f"loss {mean:.3f}"
        if time.monotonic() - self.saved > 60 * self.minutes:
            save_checkpoint(self.folder, trainer.state())
            self.saved = time.monotonic()
        return self.note

    def _write(self, entry: dict[str, object]) -> None:
        with self._file.open("a") as stream:
            stream.write(json.dumps(entry | {"time": time.strftime("%H:%M:%S")}) + "\n")
