"""Doing units of work: several processes share them, each is done once, all survive a kill."""

from __future__ import annotations

import contextlib
import fcntl
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from personalisation.study import Study
from personalisation.units import Unit
from rankedit.atomic import atomic_write
from rankedit.progress import progress


def work(
    study: Study,
    every: Sequence[Unit],
    *,
    until: float,
    only: str = "",
    say: Callable[[str], None] = print,
    shown: bool = False,
) -> int:
    """Do units until all are done or time is up; other processes may do the same beside.

    Args:
        study: the study.
        every: its units, those that are worth most first.
        until: `time.time()` after which no unit is begun.
        only: units whose file begins so.
        say: told what this process did.
        shown: with a progress bar that counts the work of all processes.

    Returns:
        The number of units that are not done.
    """
    units = [unit for unit in every if unit.file.startswith(only)]
    left = _left(study, units)
    with progress("units", len(units), done=len(units) - len(left), shown=shown) as advance:

        def count() -> int:
            nonlocal left
            before, left = left, _left(study, units)
            still = {unit.file for unit in left}
            for unit in before:
                if unit.file not in still:
                    advance(unit.file)
            return len(left)

        while count() and time.time() <= until:
            if not _round(study, units, until, say, count):
                time.sleep(2)  # all that is left is being done, or waits for something that is
    return len(left)


def _round(
    study: Study,
    units: Sequence[Unit],
    until: float,
    say: Callable[[str], None],
    count: Callable[[], int],
) -> bool:
    """Do what is not done and not being done; False if there was nothing of the kind."""
    done = False
    for unit in units:
        if time.time() > until:
            return True
        if not (study.folder / unit.file).exists() and attempt(study, unit, say):
            done = True
            count()
    return done


def _left(study: Study, units: Sequence[Unit]) -> list[Unit]:
    return [unit for unit in units if not (study.folder / unit.file).exists()]


def attempt(study: Study, unit: Unit, say: Callable[[str], None]) -> bool:
    """Do a unit if nobody else does and all that it needs is there."""
    file = study.folder / unit.file
    with _claimed(file) as free:
        if not free or file.exists():
            return False
        start = time.perf_counter()
        result = unit.work()
        if result is None:
            return False
        seconds = round(time.perf_counter() - start, 1)
        told = {"result": result, "seconds": seconds, **study.world.provenance()}
        with atomic_write(file) as temporary:
            temporary.write_text(json.dumps(told, separators=(",", ":")))
        say(f"{unit.file}: {seconds:.0f} s")
        return True


@contextlib.contextmanager
def _claimed(file: Path) -> Iterator[bool]:
    """Hold a lock beside a file, which the system releases if the process dies."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.with_suffix(".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def limit_threads(count: int = 1) -> None:
    """One thread for each process: several small processes beat one with several threads."""
    torch.set_num_threads(count)
