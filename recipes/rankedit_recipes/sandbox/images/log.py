"""How a training is run, and what it writes while it runs: log, probes, checkpoints, grids."""

import json
import shutil
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from rankedit_recipes.sandbox.checkpoint import keep_lines, save_checkpoint

from .exporting import hand_over
from .probe import Probe
from .samples import save_samples
from .starting import done_by
from .training import Done, Found, Training, rate_at

SAID = 10.0
"""Seconds between printed lines."""


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
        ahead: Processes that draw pictures and make captions ahead, so that the device need not
            wait; None makes each batch when its step has come.
        until: When the last step must be done, by `time.monotonic`, or None; wants `ahead`.
        out: Folder that gets the weights in one file, and the log, with every checkpoint.
        compiled: Compile the models; wants `ahead`.
    """

    folder: Path
    init_from: Path | None = None
    minutes: float = 4.0
    sample_every: int = 2
    log_every: int = 50
    probe_every: int = 0
    ahead: int | None = None
    until: float | None = None
    out: Path | None = None
    compiled: bool = False


class Clock:
    """Pictures a second since the last reading."""

    def __init__(self) -> None:
        self.at = time.monotonic()

    def speed(self, pictures: int) -> float:
        """Pictures a second since the last call."""
        now = time.monotonic()
        speed = pictures / max(1e-9, now - self.at)
        self.at = now
        return speed


class Log:
    """What the first worker does besides training."""

    def __init__(self, how: Run, trainer: Training) -> None:
        self.how, self.trainer = how, trainer
        self.saved, self.count, self.said = time.monotonic(), 0, 0.0
        self.lines = Console()
        self.clock, self.since = Clock(), trainer.step
        self.losses: list[float | Tensor] = [0.0] * len(Done._fields)
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
        keep_lines(self.file, lambda entry: done_by(entry) <= self.trainer.step)

    def _write(self, entry: dict[str, object]) -> None:
        with self.file.open("a") as stream:
            stream.write(json.dumps(entry) + "\n")

    def _ask(self) -> None:
        """Write what the averaged weights make of wrong words."""
        if self.probe is None:
            return
        # Probes have batches of another size, for which nothing is worth compiling.
        eager = torch.compiler.set_stance("force_eager") if self.how.compiled else nullcontext()
        with self.trainer.averaged(), eager:
            found = self.probe.growth(self.trainer)
        rounded = {name: round(value, 4) for name, value in found.items()}
        self._say(f"step {self.trainer.step}: {rounded}")
        self._write({"step": self.trainer.step, "probe": rounded})

    def set_end(self) -> None:
        """Write down that the training has an end by now."""
        preset = self.trainer.preset
        self._write({"step": self.trainer.step, "preset": asdict(preset)})
        self.progress.update(self.task, total=preset.steps)
        self._say(f"the rate falls from step {self.trainer.step} to step {preset.steps}")

    def cut(self) -> None:
        """Write down that time was up before the last step."""
        step, preset = self.trainer.step, self.trainer.preset
        rate = round(rate_at(preset, step), 4)
        self._write({"step": step, "cut": True, "rate": rate})
        self._say(f"time is up at step {step}, at a rate of {rate} of its peak")

    def _say(self, text: str) -> None:
        """Print a line where a bar would not be seen: in the output of a command run elsewhere."""
        if self.how.out is not None:
            self.lines.print(text, markup=False, highlight=False, soft_wrap=True)
            self.said = time.monotonic()

    def record(self, done: Done | Found) -> None:
        """Count a step; now and then write a line, a probe, a checkpoint or a grid."""
        found: tuple[float | Tensor, ...] = done
        self.losses = [total + value for total, value in zip(self.losses, found, strict=True)]
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
        # The only place that waits for the device.
        mean = Done(*(float(total) / done for total in self.losses))
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
        if time.monotonic() - self.said > SAID:
            self._say(f"step {trainer.step}: {told}")
        self.since, self.losses = trainer.step, [0.0] * len(Done._fields)

    def _save(self) -> None:
        save_checkpoint(self.how.folder, self.trainer.state())
        self.count += 1
        if self.how.sample_every and self.count % self.how.sample_every == 0:
            name = f"step-{self.trainer.step:08d}.png"
            save_samples(self.trainer, self.how.folder / "samples" / name)
        if self.how.out is not None:
            hand_over(self.trainer, self.how.folder, self.how.out)
        self.saved = time.monotonic()

    def close(self) -> None:
        """Save the end of the training."""
        self.progress.stop()
        save_checkpoint(self.how.folder, self.trainer.state())
        # The grid comes last: it takes the longest, and weights are worth more.
        if self.how.out is not None:
            hand_over(self.trainer, self.how.folder, self.how.out)
        if self.how.sample_every:
            save_samples(self.trainer, self.how.folder / "samples" / "final.png")
            if self.how.out is not None:
                shutil.copyfile(
                    self.how.folder / "samples" / "final.png", self.how.out / "samples.png"
                )
