"""Runs a training: over processes that share each batch, or on a device that is kept fed."""

import os
import socket

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from rankedit_recipes.sandbox.checkpoint import latest_checkpoint

from .ahead import Gallery, told_ahead
from .batches import make_batch
from .log import Log
from .log import Run as Run
from .pace import Pace
from .presets import Preset
from .starting import check_stage as check_stage
from .starting import pictures_of as pictures_of
from .starting import start, with_open_end
from .starting import training_of as training_of
from .training import Training

PACED = 5
"""Steps between estimates of the end; that time is up is seen after every step."""


def run(preset: Preset, how: Run) -> None:
    """Train until the last step, from the newest intact checkpoint if there is one.

    Args:
        preset: What to train.
        how: Where, and how often to save.

    Raises:
        ResumeError: If the end was changed after the rate had begun to fall.
        ValueError: If several workers are asked for beside processes that work ahead.
    """
    if how.ahead is not None:
        _stream(preset, how, how.ahead)
        return
    state = latest_checkpoint(how.folder)
    if state is not None:
        check_stage(preset, how.folder / "log.jsonl", state.step)
    # Before the workers start, or each would draw them.
    pictures_of(preset, how.folder)
    if preset.workers == 1:
        _work(0, preset, how, "")
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    mp.spawn(  # type: ignore[attr-defined, no-untyped-call]
        _work, args=(preset, how, address), nprocs=preset.workers
    )


def _work(rank: int, preset: Preset, how: Run, address: str) -> None:
    if preset.workers > 1:
        torch.set_num_threads(1)
        dist.init_process_group("gloo", address, rank=rank, world_size=preset.workers)
    drawn = pictures_of(preset, how.folder)
    trainer = start(preset, how.folder, how.init_from, drawn)
    parent, first = os.getppid(), rank == 0
    log = Log(how, trainer) if first else None
    while trainer.step < preset.steps:
        # Only on Linux does torch 2.13 end the workers of a parent that was killed.
        if preset.workers > 1 and os.getppid() != parent:
            raise SystemExit("train: the process that started this worker is gone")
        done = trainer.advance(make_batch(preset, drawn, trainer.tokenizer, trainer.step, rank))
        if log is not None:
            log.record(done)
    if log is not None:
        log.close()
    if preset.workers > 1:
        dist.barrier()
        dist.destroy_process_group()


def _stream(preset: Preset, how: Run, processes: int) -> None:
    """Train on a device that is kept fed: nothing in a step waits for the processor or for it."""
    if preset.workers != 1:
        raise ValueError(
            f"train: expected one worker beside processes that work ahead, got {preset.workers}; "
            "give --workers 1"
        )
    state, log_file = latest_checkpoint(how.folder), how.folder / "log.jsonl"
    step = 0 if state is None else state.step
    if how.until is not None:
        preset = with_open_end(preset, log_file, step)
    elif state is not None:
        check_stage(preset, log_file, step)
    drawn = pictures_of(preset, how.folder, max(2, processes))
    # They start now and work while the training gets ready.
    told = told_ahead(preset, step, processes)
    trainer = start(preset, how.folder, how.init_from, drawn)
    gallery = Gallery(preset, drawn, trainer.autoencoder)
    if torch.device(preset.device).type == "cuda":
        torch.backends.cudnn.benchmark = True
    if how.compiled:
        trainer.compile()
    log = Log(how, trainer)
    pace = None if how.until is None else Pace(how.until, preset.decay)
    while trainer.step < trainer.preset.steps and not _stopped(trainer, log, pace):
        ready = gallery.ready(trainer.preset, next(told), trainer.step)
        log.record(trainer.descend(*trainer.losses_of(ready)))
    log.close()


def _stopped(trainer: Training, log: Log, pace: Pace | None) -> bool:
    """Set the end when it is time to, or stop when time is up."""
    if pace is None:
        return False
    preset = None if trainer.step % PACED else pace.ended(trainer.preset, trainer.step)
    if preset is not None:
        trainer.preset = preset
        log.set_end()
    if not pace.over():
        return False
    log.cut()
    return True
