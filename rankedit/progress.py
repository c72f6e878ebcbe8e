"""Progress of a long loop: a bar with an estimate in a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

# Between two plain lines: enough to see that a job in a log file lives, and no more.
SECONDS_BETWEEN_LINES = 30.0

Advance = Callable[[str], None]


@contextlib.contextmanager
def progress(
    what: str, total: int | None, *, done: int = 0, shown: bool = True
) -> Iterator[Advance]:
    """Show how far a loop is and how long it will take; writes to the standard error only.

    Args:
        what: what is going on, in a word or two.
        total: number of steps; unknown if None, then there is no estimate.
        done: steps that were done earlier; they do not enter the estimate.
        shown: False for silence.

    Yields:
        A function to call after each step with a short note that is shown beside the bar.
    """
    if not shown:
        yield lambda _note: None
        return
    from rich.console import Console  # here, because it would slow `import rankedit` down

    console = Console(stderr=True)
    # A log file would keep every redrawing of a bar as a line of its own.
    if console.is_terminal or console.is_jupyter:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console) as bar:
            task = bar.add_task(what, total=total, completed=done, note="")
            yield lambda note: bar.update(task, advance=1, note=note)
        return
    lines = _Lines(what, total, done)
    try:
        yield lines.advance
    finally:
        lines.write()


class _Lines:
    """One line every half minute, and a last one."""

    def __init__(self, what: str, total: int | None, done: int) -> None:
        self._what, self._total, self._done, self._first = what, total, done, done
        self._start = self._last = time.monotonic()
        self._note = ""

    def advance(self, note: str) -> None:
        self._done += 1
        self._note = note
        if time.monotonic() - self._last >= SECONDS_BETWEEN_LINES:
            self.write()

    def write(self) -> None:
        self._last = time.monotonic()
        elapsed = self._last - self._start
        of_total = "" if self._total is None else f"/{self._total}"
        parts = [f"{self._done}{of_total}", self._note, f"{_clock(elapsed)} elapsed"]
        # Only this run's steps: a resumed one would look far too fast.
        steps = self._done - self._first
        if self._total is not None and steps and self._done < self._total:
            parts.append(f"{_clock(elapsed / steps * (self._total - self._done))} left")
        sys.stderr.write(f"{self._what}: {', '.join(part for part in parts if part)}\n")
        sys.stderr.flush()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
