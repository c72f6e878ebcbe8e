"""Doing units of work: several processes share them, each is done once, all survive a kill."""

from __future__ import annotations

import contextlib
import fcntl
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from personalisation.study import Study, Unit
from rankedit.atomic import atomic_write


def work(study: Study, *, until: float, only: str = "", say: Callable[[str], None] = print) -> int:
    """Do units until all are done or time is up; other processes may do the same beside.

    Args:
        study: the study.
        until: `time.time()` after which no unit is begun.
        only: units whose file begins so.
        say: told what was done.

    Returns:
        The number of units that are not done.
    """
    units = [unit for unit in study.units() if unit.file.startswith(only)]
    while True:
        done = False
        for unit in units:
            if time.time() > until:
                return len(_left(study, units))
            done |= not (study.folder / unit.file).exists() and attempt(study, unit, say)
        if not _left(study, units):
            return 0
        if not done:  # all that is left is being done, or waits for something that is
            time.sleep(2)


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
        told = {"result": result, **study.world.provenance()}
        with atomic_write(file) as temporary:
            temporary.write_text(json.dumps(told, separators=(",", ":")))
        say(f"{unit.file}: {time.perf_counter() - start:.0f} s")
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
