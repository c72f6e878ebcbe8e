"""Minimises a judge's loss step by step; a killed training goes on from its last checkpoint."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from rich.progress import track
from torch import Tensor, nn

from rankedit_recipes.sandbox.checkpoint import (
    Checkpoint,
    keep_lines,
    latest_checkpoint,
    restore_tensors,
    save_checkpoint,
    state_tensors,
)

LOSS_EVERY = 100
"""Steps whose mean loss is one figure of the log."""


class ResumeError(ValueError):
    """A folder holds checkpoints of a training with other settings."""


class Plan(NamedTuple):
    """What, besides the code and its seed, decides the weights of a judge.

    Attributes:
        name: The judge, which is also the stream of its draws.
        steps: Steps until the rate is zero.
        rate: Peak learning rate.
        batch: Examples a step.
        size: Pixels a side of the pictures.
    """

    name: str
    steps: int
    rate: float
    batch: int
    size: int

    def rate_at(self, step: int) -> float:
        """Learning rate of a step: a short rise, level, a fall to zero."""
        # As `part_of_peak` with a decay of 0.625, except that a short training rises no sooner. The
        # judges that ship were trained so.
        return self.rate * min(1.0, (step + 1) / 50, 1.6 * (1 - step / self.steps))


@dataclass(frozen=True)
class Kept:
    """Where a training is kept, and how often; nothing here changes the weights it makes.

    Attributes:
        folder: Holds `log.jsonl` and a folder of checkpoints for each judge.
        minutes: Minutes between checkpoints; 0 writes one after every step.
    """

    folder: Path
    minutes: float = 4.0


class Fit:
    """A judge in training.

    Args:
        plan: Settings.
        model: The judge, freshly initialised.
        kept: Where to go on from and to save, or None to keep nothing.

    Attributes:
        step: Steps done.
        seconds: Time they took, in this process and in those that were killed.
        losses: The mean loss of every hundred steps.

    Raises:
        ResumeError: If the folder holds a training of this judge with other settings.
    """

    def __init__(self, plan: Plan, model: nn.Module, kept: Kept | None = None) -> None:
        self.plan, self.kept = plan, kept
        self.step, self.seconds = 0, 0.0
        self.losses: list[float] = []
        self.total = 0.0
        self.named = dict(model.named_parameters())
        self.optimiser = torch.optim.AdamW(self.named.values(), lr=plan.rate, weight_decay=0.01)
        if kept is not None:
            state = latest_checkpoint(kept.folder / plan.name)
            if state is not None:
                self._restore(state, kept.folder)
            keep_lines(kept.folder / "log.jsonl", self._is_done)

    def run(self, loss_of: Callable[[int], Tensor]) -> None:
        """Do the steps that are left.

        Args:
            loss_of: The loss of a step; everything it draws depends on the step's number only.
        """
        plan, saved = self.plan, time.monotonic()
        if self.step < plan.steps:
            self._write({"plan": plan._asdict(), "from_step": self.step})
        left = range(self.step, plan.steps)
        for _ in track(left, plan.name, total=plan.steps, completed=self.step):
            begun = time.monotonic()
            self._advance(loss_of)
            self.seconds += time.monotonic() - begun
            last = self.step == plan.steps
            if self.kept and (last or time.monotonic() - saved >= 60 * self.kept.minutes):
                save_checkpoint(self.kept.folder / plan.name, self._state())
                saved = time.monotonic()

    def _advance(self, loss_of: Callable[[int], Tensor]) -> None:
        rate = self.plan.rate_at(self.step)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        loss = loss_of(self.step)
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        self.step += 1
        self.total += loss.item()
        if self.step % LOSS_EVERY == 0:
            self.losses.append(round(self.total / LOSS_EVERY, 4))
            self.total = 0.0
            self._write({"step": self.step, "loss": self.losses[-1], "rate": round(rate, 7)})

    def _settings(self) -> Tensor:
        # A checkpoint holds tensors only.
        return torch.tensor(self.plan[1:], dtype=torch.float64)

    def _state(self) -> Checkpoint:
        tensors = state_tensors(self.named, self.optimiser)
        tensors["fit.settings"] = self._settings()
        # Not in single precision: the log of a resumed training is that of an uninterrupted one.
        tensors["fit.losses"] = torch.tensor(self.losses, dtype=torch.float64)
        tensors["fit.sums"] = torch.tensor([self.total, self.seconds], dtype=torch.float64)
        return Checkpoint(self.step, tensors)

    def _restore(self, state: Checkpoint, folder: Path) -> None:
        found, asked = state.tensors["fit.settings"], self._settings()
        if not torch.equal(found, asked):
            raise ResumeError(
                f"train --judges: {folder / self.plan.name} holds a training with"
                f" (steps, rate, batch, size) = {tuple(found.tolist())}, but"
                f" {tuple(asked.tolist())} was asked for; name another --folder, or remove that one"
            )
        restore_tensors(state.tensors, self.named, self.optimiser)
        self.step = state.step
        self.losses = state.tensors["fit.losses"].tolist()
        self.total, self.seconds = state.tensors["fit.sums"].tolist()

    def _is_done(self, entry: dict[str, object]) -> bool:
        """Whether a line of the log stays; what came after the checkpoint is done again."""
        # All judges share the log; lines of the others stay.
        step = entry.get("step", 0)
        return entry.get("judge") != self.plan.name or (isinstance(step, int) and step <= self.step)

    def _write(self, entry: dict[str, object]) -> None:
        if self.kept is None:
            return
        self.kept.folder.mkdir(parents=True, exist_ok=True)
        entry = {"judge": self.plan.name, **entry, "time": time.strftime("%H:%M:%S")}
        with (self.kept.folder / "log.jsonl").open("a") as stream:
            stream.write(json.dumps(entry) + "\n")
