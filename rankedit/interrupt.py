"""Ctrl-C, and any other interrupt, that lets the work at hand be finished."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Sequence
from types import FrameType, TracebackType


def completely(steps: Sequence[Callable[[], object]]) -> None:
    """Do all steps, each of which may be repeated, even if an exception comes between.

    A signal's handler may raise anywhere. Then all steps are done again, before the exception goes
    on: what they are to bring about is there in the end, or the second exception tells why not.
    """
    try:
        for step in steps:
            step()
    except BaseException:
        for step in steps:
            step()
        raise


class Interrupt:
    """Notes the first Ctrl-C instead of raising `KeyboardInterrupt`; the second one raises.

    Only in the main thread, and only where Python's own handler is in place: a program that handles
    the signal itself keeps doing so.

    Args:
        enabled: False to leave Ctrl-C alone.

    Attributes:
        asked: whether Ctrl-C was pressed.
    """

    def __init__(self, *, enabled: bool) -> None:
        self.asked = False
        own = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        main = threading.current_thread() is threading.main_thread()
        self._installs = enabled and own and main

    def __enter__(self) -> Interrupt:
        if self._installs:
            signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._installs:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            signal.default_int_handler(number, frame)
        self.asked = True
        sys.stderr.write("\nFinishing this batch; press Ctrl-C again to stop at once.\n")
