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
    what: str,
    total: int | None,
    *,
    done: int = 0,
    share: Callable[[], float | None] = lambda: None,
    shown: bool = True,
) -> Iterator[Advance]:
    """Show how far a loop is and how long it will take; writes to the standard error only.

    Args:
        what: what is going on, in a word or two.
        total: number of steps; None if it is unknown. Then the estimate is by `share`, and without
            that the rate is shown.
        done: steps that were done earlier; they do not enter the estimate.
        share: gives the part of the work that is done, from 0 to 1; None if nobody knows.
        shown: False for silence.

    Yields:
        A function to call after each step with a short note that is shown beside the bar.
    """
    if not shown:
        yield lambda _note: None
        return
    from rich.console import Console  # here, because it would slow `import rankedit` down

    console = Console(stderr=True)
    state = _State(total, done, share)
    # A log file would keep every redrawing of a bar as a line of its own.
    if not (console.is_terminal or console.is_jupyter):
        lines = _Lines(what, state)
        try:
            yield lines.advance
        finally:
            lines.write()
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    said = TextColumn("{task.fields[said]}")
    columns = (TextColumn("{task.description}"), BarColumn(), said, TimeElapsedColumn())
    with Progress(*columns, console=console) as bar:
        # Of unknown length until a part is known: the bar moves to and fro then.
        task = bar.add_task(what, total=None, said="")

        def redraw(note: str) -> None:
            state.advance()
            part, words = state.part(), [state.count(), note, state.speed()]
            text = ", ".join(filter(None, words))
            bar.update(task, total=None if part is None else 1.0, completed=part, said=text)

        yield redraw


class _State:
    """How far a loop is, and how fast it goes."""

    def __init__(self, total: int | None, done: int, share: Callable[[], float | None]) -> None:
        self._total, self._done, self._first, self._share = total, done, done, share
        self._start = time.monotonic()
        # Of work that is known by its share only, where and when the first step of this run ended.
        self._known: tuple[float, float] | None = None

    @property
    def elapsed(self) -> float:
        """Seconds of this run."""
        return time.monotonic() - self._start

    def advance(self) -> None:
        """One step was done."""
        self._done += 1
        part = self.part()
        if self._total is None and self._known is None and part is not None:
            self._known = (part, time.monotonic())

    def part(self) -> float | None:
        """The part that is done, from 0 to 1; None if nobody knows."""
        if self._total is None:
            return self._share()
        return self._done / self._total if self._total else 1.0

    def count(self) -> str:
        """Steps, of how many or what part of all."""
        if self._total is not None:
            return f"{self._done}/{self._total}"
        part = self.part()
        return f"{self._done}" if part is None else f"{self._done}, {part:.0%}"

    def speed(self) -> str:
        """What is left, or how fast it goes; nothing if that is not known yet."""
        # Only this run's steps: a resumed one would look far too fast.
        steps = self._done - self._first
        if self._total is not None:
            left = self._total - self._done
            return f"{_clock(self.elapsed / steps * left)} left" if steps and left > 0 else ""
        part, (first, since) = self.part(), self._known or (1.0, 0.0)
        if part is None or not first < part:
            return f"{steps / self.elapsed:.2g} per second" if steps and self.elapsed else ""
        if part >= 1:
            return ""
        return f"{_clock((time.monotonic() - since) / (part - first) * (1 - part))} left"


class _Lines:
    """One line every half minute, and a last one."""

    def __init__(self, what: str, state: _State) -> None:
        self._what, self._state = what, state
        self._last, self._note = time.monotonic(), ""

    def advance(self, note: str) -> None:
        self._state.advance()
        self._note = note
        if time.monotonic() - self._last >= SECONDS_BETWEEN_LINES:
            self.write()

    def write(self) -> None:
        self._last = time.monotonic()
        state = self._state
        parts = [state.count(), self._note, f"{_clock(state.elapsed)} elapsed", state.speed()]
        sys.stderr.write(f"{self._what}: {', '.join(part for part in parts if part)}\n")
        sys.stderr.flush()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
