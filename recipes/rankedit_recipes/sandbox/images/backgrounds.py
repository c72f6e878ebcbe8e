"""The six backgrounds, drawn at the size of the large canvas."""

import random
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from .vocabulary import SCENES, Colour

Canvas = npt.NDArray[np.uint8]


def paint_background(scene: str, side: int, rng: random.Random) -> Canvas:
    """Draw a background.

    Args:
        scene: One of `SCENES`.
        side: Width and height in samples.
        rng: Source of what varies: tones, the horizon, places of stars.

    Returns:
        Colours, [side, side, 3].

    Raises:
        KeyError: If the scene is unknown; the message lists the known ones.
    """
    if scene not in _PAINTERS:
        raise KeyError(
            f"paint_background: unknown scene {scene!r}; expected one of {', '.join(SCENES)}"
        )
    return _PAINTERS[scene](side, rng)


def _tone(colour: Colour, rng: random.Random, spread: int = 10) -> Colour:
    red, green, blue = (min(255, max(0, c + rng.randint(-spread, spread))) for c in colour)
    return (red, green, blue)


def _bands(side: int, *bands: tuple[float, Colour]) -> Canvas:
    """Horizontal bands, each from its height downwards."""
    canvas = np.empty((side, side, 3), np.uint8)
    for top, colour in bands:
        canvas[round(top * side) :] = colour
    return canvas


def _plain(side: int, rng: random.Random) -> Canvas:
    wall = _tone((206, 200, 190), rng, 14)
    return _bands(side, (0.0, wall))


def _grass(side: int, rng: random.Random) -> Canvas:
    horizon = rng.uniform(0.42, 0.52)
    sky, lawn = _tone((150, 205, 245), rng), _tone((110, 190, 80), rng)
    return _bands(side, (0.0, sky), (horizon, lawn))


def _snow(side: int, rng: random.Random) -> Canvas:
    horizon = rng.uniform(0.42, 0.52)
    return _bands(
        side, (0.0, _tone((165, 180, 200), rng)), (horizon, _tone((236, 242, 250), rng, 5))
    )


def _beach(side: int, rng: random.Random) -> Canvas:
    horizon = rng.uniform(0.3, 0.36)
    sky, sea, sand = (150, 215, 245), (30, 130, 190), (238, 214, 160)
    return _bands(
        side, (0.0, _tone(sky, rng)), (horizon, _tone(sea, rng)), (horizon + 0.2, _tone(sand, rng))
    )


def _night(side: int, rng: random.Random) -> Canvas:
    # Stars have the upper 8 of 12 rows of cells, all of them above the horizon, and fill a third of
    # a cell, so that no two touch.
    horizon = rng.uniform(0.72, 0.8)
    canvas = _bands(side, (0.0, _tone((22, 26, 70), rng)), (horizon, _tone((34, 50, 58), rng)))
    cell = side // 12
    for place in rng.sample(range(12 * 8), 9):
        top, left = cell * (place // 12) + cell // 3, cell * (place % 12) + cell // 3
        canvas[top : top + cell // 3, left : left + cell // 3] = (235, 235, 200)
    return canvas


def _brick(side: int, rng: random.Random) -> Canvas:
    canvas = _bands(side, (0.0, _tone((172, 92, 72), rng)))
    mortar = _tone((205, 190, 178), rng, 6)
    # Mortar is as thick as one pixel of 48.
    course, line = side // 6, side // 48
    for row in range(6):
        canvas[row * course : row * course + line] = mortar
        for joint in range(0, side + 1, 2 * course):
            left = joint + (row % 2) * course
            canvas[row * course : (row + 1) * course, left : left + line] = mortar
    return canvas


_PAINTERS: Mapping[str, Callable[[int, random.Random], Canvas]] = {
    "plain": _plain,
    "grass": _grass,
    "snow": _snow,
    "beach": _beach,
    "night": _night,
    "brick": _brick,
}
