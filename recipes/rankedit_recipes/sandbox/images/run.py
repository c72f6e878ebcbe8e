"""Runs a training over its workers: data, steps, log, checkpoints, sample grids."""

import json
import os
import socket
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from rankedit_recipes.sandbox.checkpoint import keep_lines, latest_checkpoint, save_checkpoint

from .batches import make_batch, singles_of
from .cache import Drawn, drawn_pictures
from .fitting import ResumeError
from .joint_trainer import JointTrainer
from .presets import Preset
from .probe import Probe
from .samples import save_samples
from .trainer import Trainer
from .training import Clock, Done, Training, rate_at


@dataclass(frozen=True)
class Run:
    """How a training is run; nothing here changes the weights it makes.

    Attributes:
        folder: Where checkpoints, samples, the cache and the log go.
        init_from: Folder of a pipeline whose weights to start from, or None.
        minutes: Minutes between checkpoints.
        sample_every: Checkpoints between sample grids; 0 draws none.
        log_every: Steps between lines of the log.
        probe_every: Steps between probes of what the words do; 0 asks none.
    """

    folder: Path
    init_from: Path | None = None
    minutes: float = 4.0
    sample_every: int = 2
    log_every: int = 50
    probe_every: int = 0


def pictures_of(preset: Preset, folder: Path) -> Drawn:
    """The pictures that a training sees.

    Args:
        preset: Settings.
        folder: The training's folder.

    Returns:
        The pictures; drawn on the first call.
    """
    return drawn_pictures(
        folder / "cache",
        seed=preset.seed,
        count=preset.pictures,
        singles=singles_of(preset),
        size=preset.size,
        patch=preset.patch,
        workers=max(2, preset.workers),
        skinned=preset.skinned,
    )


def run(preset: Preset, how: Run) -> None:
    """Train until the last step, from the newest intact checkpoint if there is one.

    Args:
        preset: What to train.
        how: Where, and how often to save.

    Raises:
        ResumeError: If the end was changed after the rate had begun to fall.
    """
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
    trainer = _start(preset, how, drawn)
    parent, first = os.getppid(), rank == 0
    log = _Log(how, trainer) if first else None
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


def training_of(preset: Preset, drawn: Drawn) -> Training:
    """The training that a preset asks for, not yet begun.

    Args:
        preset: Settings.
        drawn: Its pictures.

    Returns:
        The training.

    Raises:
        ValueError: If the preset's base is unknown.
    """
    if preset.base not in ("unet", "joint"):
        raise ValueError(f"train: expected a base of 'unet' or 'joint', got {preset.base!r}")
    return Trainer(preset, drawn) if preset.base == "unet" else JointTrainer(preset, drawn)


def check_stage(preset: Preset, log: Path, step: int) -> None:
    """Refuse another end once the rate falls: no single run could repeat such a training.

    Args:
        preset: What is asked for now.
        log: The training's log, which tells what was asked for before.
        step: Steps done.

    Raises:
        ResumeError: If the end changed and by either one the rate falls by now.
    """
    if not log.exists():
        return
    # Lines that a kill cut off are dropped here too, and for good when the log is opened.
    keep_lines(log, lambda _: True)
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    told = [entry["preset"] for entry in entries if "preset" in entry]
    if not told or (told[-1]["steps"], told[-1]["decay"]) == (preset.steps, preset.decay):
        return
    before = replace(preset, steps=told[-1]["steps"], decay=told[-1]["decay"])
    if step > min(before.level_steps, preset.level_steps):
        raise ResumeError(
            f"train: {log.parent} is at step {step}; with --steps {before.steps} --decay "
            f"{before.decay} its rate falls from step {before.level_steps} on, and with --steps "
            f"{preset.steps} --decay {preset.decay} from {preset.level_steps}. The end can be set "
            f"while both are ahead; give values with (1 - decay) * steps >= {step}, or those of "
            "before"
        )


def _start(preset: Preset, how: Run, drawn: Drawn) -> Training:
    trainer = training_of(preset, drawn)
    state = latest_checkpoint(how.folder)
    if state is not None:
        trainer.restore(state)
    else:
        trainer.begin(how.init_from)
    trainer.choose_precision(how.folder, make_batch(preset, drawn, trainer.tokenizer, 0))
    return trainer


class _Log:
    """What the first worker does besides training."""

    def __init__(self, how: Run, trainer: Training) -> None:
        self.how, self.trainer = how, trainer
        self.saved, self.count = time.monotonic(), 0
        self.clock, self.since = Clock(), trainer.step
        self.losses = [0.0] * len(Done._fields)
        self.file = how.folder / "log.jsonl"
        self._forget_later_lines()
        self._write(
            {
                "preset": asdict(trainer.preset),
                "from_step": trainer.step,
                "precision": trainer.precision,
            }
        )
        self.probe = Probe(trainer.preset.size, trainer.preset.patch) if how.probe_every else None
        if trainer.step == 0:
            self._ask()
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self.task = self.progress.add_task("train", total=trainer.preset.steps)
        self.progress.start()

    def _forget_later_lines(self) -> None:
        """Drop what a killed run wrote after its last checkpoint: it is done again."""
        keep_lines(self.file, lambda entry: entry.get("step", 0) <= self.trainer.step)

    def _write(self, entry: dict[str, object]) -> None:
        with self.file.open("a") as stream:
            stream.write(json.dumps(entry) + "\n")

    def _ask(self) -> None:
        """Write what the averaged weights make of wrong words."""
        if self.probe is None:
            return
        with self.trainer.averaged():
            found = self.probe.growth(self.trainer)
        rounded = {name: round(value, 4) for name, value in found.items()}
        self._write({"step": self.trainer.step, "probe": rounded})

    def record(self, done: Done) -> None:
        """Count a step; now and then write a line, a probe, a checkpoint or a grid."""
        self.losses = [total + value for total, value in zip(self.losses, done, strict=True)]
        if self.trainer.step % self.how.log_every == 0:
            self._tell()
        if self.how.probe_every and self.trainer.step % self.how.probe_every == 0:
            self._ask()
        if time.monotonic() - self.saved > 60 * self.how.minutes:
            self._save()

    def _tell(self) -> None:
        """Write a line of means since the last one."""
        trainer = self.trainer
        done = trainer.step - self.since
        speed = self.clock.speed(done * trainer.preset.batch)
        mean = Done(*(total / done for total in self.losses))
        self._write(
            {
                "step": trainer.step,
                "loss": round(mean.loss, 5),
                "gradient": round(mean.norm, 4),
                **({"side": round(mean.side, 4)} if trainer.preset.side else {}),
                "rate": round(rate_at(trainer.preset, trainer.step), 4),
                "pictures_per_second": round(speed, 1),
                "time": time.strftime("%H:%M:%S"),
            }
        )
        told = f"loss {mean.loss:.4f}, {speed:.0f} pictures/s"
        self.progress.update(self.task, completed=trainer.step, description=told)
        self.since, self.losses = trainer.step, [0.0] * len(Done._fields)

    def _save(self) -> None:
        save_checkpoint(self.how.folder, self.trainer.state())
        self.count += 1
        if self.how.sample_every and self.count % self.how.sample_every == 0:
            name = f"step-{self.trainer.step:08d}.png"
            save_samples(self.trainer, self.how.folder / "samples" / name)
        self.saved = time.monotonic()

    def close(self) -> None:
        """Save the end of the training."""
        self.progress.stop()
        save_checkpoint(self.how.folder, self.trainer.state())
        if self.how.sample_every:
            save_samples(self.trainer, self.how.folder / "samples" / "final.png")
