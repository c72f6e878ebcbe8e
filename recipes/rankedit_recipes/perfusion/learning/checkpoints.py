"""Where a training stands, in one file that is whole or absent."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor

import rankedit as rk
from rankedit_recipes.perfusion.errors import PerfusionError

_BEST = "best."
_NOW = "now."
_LOSSES = "losses"
_TASK = "task."
_VERSION = "2"


@dataclass
class Progress:
    """A training between two steps.

    Attributes:
        step: optimiser steps that are done.
        losses: one for each.
        validations: `[step, picture, text, balance]` of each validation.
        best_step: the step whose state is the best so far; 0 if none was validated.
        best: that state.
    """

    step: int = 0
    losses: list[float] = field(default_factory=list)
    validations: list[list[float]] = field(default_factory=list)
    best_step: int = 0
    best: dict[str, Tensor] = field(default_factory=dict)

    @property
    def best_balance(self) -> float:
        """Score of the best state."""
        # Below every score: the first validation is always kept, even at 0.
        return max((row[3] for row in self.validations), default=-1.0)

    def stale(self) -> int:
        """Validations since the best one."""
        return sum(row[0] > self.best_step for row in self.validations)


class CheckpointFile:
    """A training's file.

    Args:
        path: where.
        task: everything that decides the result, by name; a file of another task is refused, and
            told what differs.
        steps: of the whole training.
    """

    def __init__(self, path: str | PathLike[str], task: Mapping[str, str], steps: int) -> None:
        self.path, self._task, self._steps = Path(path), task, steps

    def write(self, progress: Progress, state: dict[str, Tensor]) -> None:
        """Replace the file in one step; a kill at any moment leaves the old one or the new one."""
        # Flat, for Adam's count has no dimension; shapes come back from the learner.
        items = {_NOW + name: tensor.reshape(-1) for name, tensor in state.items()}
        items |= {_BEST + name: tensor.reshape(-1) for name, tensor in progress.best.items()}
        # The zero in front keeps the tensor from being empty, which files do not hold.
        items[_LOSSES] = torch.tensor([0.0, *progress.losses], dtype=torch.float64)
        texts = {
            "perfusion.training": _VERSION,
            **{_TASK + name: value for name, value in self._task.items()},
            "step": str(progress.step),
            "best_step": str(progress.best_step),
            "validations": json.dumps(progress.validations),
        }
        rk.save(items, self.path, metadata=texts)

    def read(self, like: dict[str, Tensor]) -> tuple[Progress, dict[str, Tensor]] | None:
        """What the file holds, in the shapes of `like`; None if there is no file.

        Raises:
            PerfusionError: it belongs to another training, or holds what none writes.
            EditFileError: it is damaged.
        """
        if not self.path.exists():
            return None
        loaded = rk.load(self.path)
        texts = loaded.metadata
        # Going on would mix two trainings, and the result would belong to neither.
        self._check_task(texts)
        tensors = {name: item for name, item in loaded.items() if isinstance(item, Tensor)}
        try:
            return self._progress(texts, tensors, like), _part(tensors, _NOW, like)
        # `rk.load` has checked the file as such: what is wrong here is what it says of a training.
        except (KeyError, ValueError, TypeError, RuntimeError) as error:
            raise PerfusionError(
                f"learn: the checkpoint '{self.path}' holds what no training writes ({error}); "
                "remove it to start again."
            ) from error

    def _check_task(self, texts: Mapping[str, str]) -> None:
        if texts.get("perfusion.training") != _VERSION:
            raise PerfusionError(
                f"learn: '{self.path}' is no checkpoint of a training of version {_VERSION}; use "
                "another run folder, or remove it to start again."
            )
        was = {n.removeprefix(_TASK): t for n, t in texts.items() if n.startswith(_TASK)}
        names = [n for n in {**was, **self._task} if was.get(n) != self._task.get(n)]
        if names:
            listed = "; ".join(
                f"{n} was {was.get(n) or 'none'}, is {self._task.get(n) or 'none'}" for n in names
            )
            raise PerfusionError(
                f"learn: '{self.path}' is a checkpoint of another training: {listed}. Give what it "
                "was to go on with it, use another run folder, or remove it to start again."
            )

    def _progress(
        self, texts: Mapping[str, str], tensors: Mapping[str, Tensor], like: Mapping[str, Tensor]
    ) -> Progress:
        progress = Progress(
            step=int(texts["step"]),
            losses=tensors[_LOSSES].tolist()[1:],
            validations=json.loads(texts["validations"]),
            best_step=int(texts["best_step"]),
            best=_part(tensors, _BEST, like) if int(texts["best_step"]) else {},
        )
        # Never 0: a checkpoint is written after a step only.
        if not 0 < progress.step <= self._steps or len(progress.losses) != progress.step:
            raise ValueError(
                f"step {progress.step} of {self._steps} with {len(progress.losses)} losses"
            )
        known = [row[0] for row in progress.validations if len(row) == 4]
        if len(known) != len(progress.validations) or progress.best_step not in (0, *known):
            raise ValueError(f"best step {progress.best_step} of validations {known}")
        strange = [n for n in tensors if not n.startswith((_NOW, _BEST)) and n != _LOSSES]
        if strange:
            raise ValueError(f"unknown tensors {strange[:3]}")
        return progress


def _part(
    tensors: Mapping[str, Tensor], prefix: str, like: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The tensors of one state, in the shapes that they must have; none missing, none beside."""
    found = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    if found.keys() != like.keys():
        raise ValueError(f"tensors {sorted(found.keys() ^ like.keys())[:3]} missing or unknown")
    return {name: tensor.reshape(like[name].shape) for name, tensor in found.items()}
