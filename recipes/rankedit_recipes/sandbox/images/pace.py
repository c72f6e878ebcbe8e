"""When the rate must begin to fall, so that a training ends in time."""

import time
from collections.abc import Callable
from dataclasses import replace

from .presets import Preset

OPEN = 10**9
"""Steps of a training whose end is not known yet: its rate does not fall before one is set."""

MARGIN = 0.95
"""The rest is expected at this part of the measured speed: late is worse than early."""

SETTLED = 20
"""Steps after which speed is measured: the first ones choose kernels, and compile."""


class Pace:
    """Measures a training's speed and sets its end.

    Args:
        until: When the last step must be done, by the clock.
        decay: Part of the steps in which the rate falls.
        clock: Seconds.
    """

    def __init__(
        self, until: float, decay: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.until, self.decay, self.clock = until, decay, clock
        self.first: int | None = None
        self.since: tuple[int, float] | None = None

    def ended(self, preset: Preset, step: int) -> Preset | None:
        """Set the end, if the rate must fall from this step on.

        With the mean speed v up to now (probes and checkpoints included) and the seconds s that are
        left, the training can have step + 0.95 v s steps; the fall begins when a part `decay` of
        these, or less, is left.

        Args:
            preset: Settings, with the end open.
            step: Steps done.

        Returns:
            Settings whose rate falls from this step to the end, or None while it is too early, or
            while nothing was measured.
        """
        if self.first is None:
            self.first = step
        now = self.clock()
        if self.since is None:
            if step >= self.first + SETTLED:
                self.since = step, now
            return None
        if preset.steps != OPEN or step == self.since[0]:
            return None
        speed = (step - self.since[0]) / max(1e-9, now - self.since[1])
        left = int(MARGIN * speed * max(0.0, self.until - now))
        total = step + max(1, left)
        if total - step > self.decay * total:
            return None
        # Not the decay that was asked for: a training that goes on with little time left falls from
        # where it is, without a leap.
        return replace(preset, steps=total, decay=(total - step) / total)

    def over(self) -> bool:
        """Whether time is up."""
        return self.clock() >= self.until
