"""What `debias` does, without the command line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rankedit_recipes.command_line.choices import ModelChoice
from rankedit_recipes.command_line.counting import counted
from rankedit_recipes.concepts.commands.opening import open_captions, open_clip, open_pipeline
from rankedit_recipes.concepts.commands.tasks import (
    as_toml,
    moment_for,
    settings_from,
    written,
)
from rankedit_recipes.concepts.debiasing import NamingJudge, Steering, debias
from rankedit_recipes.concepts.edited import Edited
from rankedit_recipes.concepts.errors import ConceptsError
from rankedit_recipes.concepts.judging import ClipJudge, SandboxJudge, check_sandbox
from rankedit_recipes.concepts.requests import Request, check_requests
from rankedit_recipes.concepts.settings import Settings
from rankedit_recipes.diffusion.generating import Sampling

# For the command, which imports this module alone.
__all__ = ["Sampling", "Steering", "as_toml", "settings_from"]


@dataclass(frozen=True)
class DebiasTask:
    """What `debias` is to do.

    Attributes:
        requests: what is asked for.
        settings: the method.
        choice: the model.
        captions: their file, if there is one.
        judge: a CLIP model; empty for the sandbox's judge.
        steering: how shares are measured.
        out: the file.
    """

    requests: Sequence[Request]
    settings: Settings
    choice: ModelChoice
    captions: Path | None
    judge: str
    steering: Steering
    out: Path


def resumed(task: DebiasTask) -> DebiasTask:
    """The same, from the amounts that were found.

    Raises:
        ConceptsError: there is no such file, or it was asked for something else.
    """
    if not task.out.exists():
        raise ConceptsError(f"debias: there is nothing to resume in '{task.out}'.")
    edited = Edited.load(task.out)
    begun = [replace(r, amounts=(), measured=()) for r in edited.requests]
    if begun != list(task.requests) or edited.settings != task.settings:
        raise ConceptsError(
            f"debias: '{task.out}' was asked for {'; '.join(map(str, begun))} by the method "
            f"{edited.settings.method!r}, and now for {'; '.join(map(str, task.requests))} by "
            f"{task.settings.method!r}; give the same words, shares and settings, or another --out."
        )
    return replace(task, requests=edited.requests)


def plan(task: DebiasTask) -> Iterator[str]:
    """Lines that say what would be done, and at what cost; no model is loaded."""
    _check(task)
    yield from map(str, task.requests)
    steering, count = task.steering, sum(r.kind == "balance" for r in task.requests)
    most = (steering.rounds + 1) * steering.pictures * count
    yield f"method {task.settings.method}, at most {counted(steering.rounds, 'round')}"
    yield (
        f"{counted(steering.pictures, 'picture')} in each and as many in the end: at most "
        f"{counted(most, 'picture')} of {counted(steering.sampling.steps, 'step')} to make"
    )
    if task.settings.cost == "covariance":
        captions = len(open_captions(task.captions, task.choice.name))
        yield f"statistics: {counted(captions, 'caption')} to encode"
    yield f"'{task.out}' would be written; nothing was written"


def debias_to(task: DebiasTask) -> Iterator[str]:
    """Steer, and write the edit."""
    _check(task)
    pipe = open_pipeline(task.choice)
    judge: NamingJudge = SandboxJudge() if not task.judge else ClipJudge(open_clip(task.judge))
    edited = debias(
        pipe, task.requests, judge, method=task.settings, steering=task.steering, path=task.out,
        statistics=moment_for(pipe, task.settings, task.captions, task.choice.name),
    )  # fmt: skip
    yield from written(edited, task.out)


def _check(task: DebiasTask) -> None:
    check_requests(task.requests)
    for request in task.requests if not task.judge else ():
        if request.kind == "balance":
            check_sandbox(request)
