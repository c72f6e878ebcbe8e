"""Which keys a concept holds, and how its gate is set when pictures are made.

Nothing heavy is imported here: the command line offers these names before a model is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

Lock = Literal["local", "global", "coarse", "trained"]
HeldLock = Literal["local", "global"]
"""Locks that can be asked for when a concept is applied: they hold every key."""
Floor = float | Literal["own"] | None
"""A dead zone: its height, that of each concept, or none."""


class Preset(NamedTuple):
    """Settings of the gate when pictures are made.

    Attributes:
        bias: of the gate.
        temperature: of the gate.
        floor: the dead zone's; None for none.
        bias_of_one_photo: where only one photo was learned from; None for the same bias.
    """

    bias: float
    temperature: float = 0.15
    floor: float | None = None
    bias_of_one_photo: float | None = None

    def learned_from(self, photos: int) -> Preset:
        """The settings for what so many photos taught."""
        if photos > 1 or self.bias_of_one_photo is None:
            return self
        return self._replace(bias=self.bias_of_one_photo)


# Inference settings of the paper: local lock 0.6 to 0.75, global lock 0.4 to 0.6; temperature 0.15.
# The coarse lock is made for adjectives, and their keys are like the noun behind them: without a
# dead zone that noun loses its part. One photo is learned with its background: a gate that opens
# less keeps the text, at no cost in identity (measured for this lock only).
PRESETS: Mapping[Lock, Preset] = {
    "local": Preset(0.7),
    "global": Preset(0.5),
    "coarse": Preset(0.7, floor=0.6, bias_of_one_photo=0.9),
    "trained": Preset(0.7),
}
