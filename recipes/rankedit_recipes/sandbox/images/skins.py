"""Skins: two- or three-coloured patterns with a badge, which captions describe only in part."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .vocabulary import Colour

PATTERNS: tuple[str, ...] = ("across", "upright", "diagonal", "spots", "halves", "checks", "rings")
"""How the colours of a skin alternate."""

MARKS: tuple[str, ...] = ("disc", "square", "diamond", "cross")
"""Shapes of the badge."""

PALETTE: tuple[Colour, ...] = (
    (200, 30, 50),
    (250, 130, 40),
    (250, 230, 80),
    (90, 190, 60),
    (20, 110, 80),
    (60, 200, 220),
    (40, 70, 190),
    (130, 60, 180),
    (245, 130, 190),
    (130, 80, 40),
    (250, 250, 245),
    (30, 30, 40),
)
"""Colours of skins: more than objects without a skin can have."""


@dataclass(frozen=True)
class Skin:
    """The look of one personal object.

    Attributes:
        pattern: One of `PATTERNS`.
        colours: Two or three indices into `PALETTE`, used in turn.
        width: Width of a stripe, spot or check in the frame's units (the object spans 2).
        mark: Shape of the badge, one of `MARKS`.
        mark_colour: Index into `PALETTE`.
    """

    pattern: str
    colours: tuple[int, ...]
    width: float
    mark: str
    mark_colour: int

    def paint(
        self, u: npt.NDArray[np.floating], v: npt.NDArray[np.floating], badge: tuple[float, float]
    ) -> npt.NDArray[np.uint8]:
        """Colours of the skin at points of the object's frame.

        Args:
            u: Coordinate to the right, any shape.
            v: Coordinate downwards, the same shape.
            badge: Where the badge sits.

        Returns:
            Colours, that shape and 3 channels.
        """
        lookup = np.array([PALETTE[i] for i in (*self.colours, self.mark_colour)], dtype=np.uint8)
        index = _PAINTERS[self.pattern](u, v, self.width) % len(self.colours)
        du, dv = np.abs(u - badge[0]), np.abs(v - badge[1])
        # Last, since the badge lies over the pattern.
        index[_MARKS[self.mark](du, dv)] = len(self.colours)
        return lookup[index]


def draw_skin(rng: random.Random) -> Skin:
    """Draw a random skin.

    Args:
        rng: Source of randomness.

    Returns:
        A skin whose neighbouring colours always differ.
    """
    # The last one is the badge's, so that it can be seen on all the others.
    colours = rng.sample(range(len(PALETTE)), rng.choice((3, 3, 4)))
    return Skin(
        pattern=rng.choice(PATTERNS),
        colours=tuple(colours[:-1]),
        # Captions have no words for widths: two skins that are told alike may differ.
        width=rng.choice((0.34, 0.46)),
        mark=rng.choice(MARKS),
        mark_colour=colours[-1],
    )


_Index = npt.NDArray[np.int64]
_Grid = npt.NDArray[np.floating]


def _steps(x: _Grid, width: float) -> _Index:
    return np.floor((x + 4 * width) / width).astype(np.int64)


def _spots(u: _Grid, v: _Grid, width: float) -> _Index:
    pitch = 1.7 * width
    row = np.floor((v + 1.02) / pitch)
    du = np.mod(u + 1.02 + 0.5 * pitch * np.mod(row, 2), pitch) - pitch / 2
    dv = np.mod(v + 1.02, pitch) - pitch / 2
    # Colours of spots go by rows. Of two colours the second row's is that of the ground again:
    # every other row is left out.
    return np.where(du**2 + dv**2 < (0.52 * width) ** 2, 1 + np.mod(row, 2), 0).astype(np.int64)


_PAINTERS: Mapping[str, Callable[[_Grid, _Grid, float], _Index]] = {
    "across": lambda _, v, w: _steps(v, w),
    "upright": lambda u, _, w: _steps(u, w),
    # 1 / √2: the unit across a slanted stripe is that of an upright one.
    "diagonal": lambda u, v, w: _steps((u + v) * 0.7071, w),
    "spots": _spots,
    # Below 0.9 - w the colours go on by one, so that the width shows here too.
    "halves": lambda u, v, w: (u > 0).astype(np.int64) + (v > 0.9 - w),
    "checks": lambda u, v, w: _steps(u, 1.3 * w) + _steps(v, 1.3 * w),
    "rings": lambda u, v, w: _steps(np.sqrt(u**2 + v**2), 0.9 * w),
}

# Areas from 0.25 to 0.27: badges differ by their shape, not by how much of them is seen.
_MARKS: Mapping[str, Callable[[_Grid, _Grid], npt.NDArray[np.bool_]]] = {
    "disc": lambda du, dv: du**2 + dv**2 < 0.085,
    "square": lambda du, dv: np.maximum(du, dv) < 0.26,
    "diamond": lambda du, dv: du + dv < 0.37,
    "cross": lambda du, dv: (np.minimum(du, dv) < 0.11) & (np.maximum(du, dv) < 0.34),
}
