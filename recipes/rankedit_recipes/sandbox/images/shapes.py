"""The silhouettes of the ten categories, as polygons in a frame from -1 to 1 (y downwards).

A shape is a list of parts in drawing order. *Body* parts take the object's colour or its skin;
the others have a colour of their own (a trunk, a wheel, an eye) that never changes.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from .vocabulary import CATEGORIES, Colour

Points = tuple[tuple[float, float], ...]

DARK: Colour = (48, 44, 48)
PALE: Colour = (238, 236, 226)
BROWN: Colour = (120, 80, 45)
GLASS: Colour = (170, 215, 235)
LEAF: Colour = (60, 130, 60)
GOLD: Colour = (250, 205, 60)


@dataclass(frozen=True)
class Part:
    """One polygon, or with `stroke` a closed line of that width.

    Attributes:
        points: Corners in the frame from -1 to 1.
        colour: Its own colour, or None where the object's colour or skin goes.
        stroke: Width of the line in the frame's units; 0 fills the polygon.
    """

    points: Points
    colour: Colour | None = None
    stroke: float = 0.0


def ellipse(x: float, y: float, rx: float, ry: float, start: float = 0, end: float = 360) -> Points:
    """Corners of an ellipse, or of the piece of it between two angles in degrees."""
    # Corners, since Pillow's own ellipses cannot be tilted.
    steps = 28
    angles = [math.radians(start + (end - start) * i / steps) for i in range(steps + 1)]
    return tuple((x + rx * math.cos(a), y + ry * math.sin(a)) for a in angles)


def box(left: float, top: float, right: float, bottom: float) -> Points:
    """Corners of an upright rectangle."""
    return ((left, top), (right, top), (right, bottom), (left, bottom))


def _star_points() -> Points:
    corners = []
    for i in range(10):
        radius = 1.05 if i % 2 == 0 else 0.5
        # A star of five reaches further up than down: 0.08 puts it in the middle of its frame.
        angle = math.radians(-90 + 36 * i)
        corners.append((radius * math.cos(angle), 0.08 + radius * math.sin(angle)))
    return tuple(corners)


def _cup() -> list[Part]:
    return [
        # The handle first: the body covers its inner half.
        Part(ellipse(0.5, -0.05, 0.36, 0.42), stroke=0.22),
        Part(((-0.92, -0.8), (0.52, -0.8), (0.42, 0.9), (-0.82, 0.9))),
        Part(ellipse(-0.2, -0.8, 0.72, 0.16), DARK),
    ]


def _house() -> list[Part]:
    return [
        Part(box(-0.75, -0.15, 0.75, 0.95)),
        Part(((-1.0, -0.1), (0.0, -1.0), (1.0, -0.1)), BROWN),
        Part(box(-0.62, 0.4, -0.22, 0.95), DARK),
        Part(box(0.2, 0.1, 0.56, 0.46), GLASS),
    ]


def _tree() -> list[Part]:
    return [
        Part(box(-0.16, 0.3, 0.16, 1.0), BROWN),
        Part(ellipse(0.0, -0.3, 0.72, 0.72)),
    ]


def _fish() -> list[Part]:
    return [
        Part(((0.35, 0.0), (1.0, -0.6), (1.0, 0.6))),
        Part(ellipse(-0.2, 0.0, 0.8, 0.55)),
        Part(ellipse(-0.65, -0.12, 0.12, 0.12), DARK),
    ]


def _car() -> list[Part]:
    roof = ((-0.65, 0.0), (-0.4, -0.6), (0.35, -0.6), (0.65, 0.0))
    glass = ((-0.45, -0.03), (-0.28, -0.42), (0.24, -0.42), (0.43, -0.03))
    return [
        Part(roof),
        Part(((-1.0, -0.05), (0.9, -0.05), (1.0, 0.15), (1.0, 0.5), (-1.0, 0.5))),
        Part(glass, GLASS),
        Part(ellipse(-0.55, 0.5, 0.28, 0.28), DARK),
        Part(ellipse(0.55, 0.5, 0.28, 0.28), DARK),
    ]


def _cat() -> list[Part]:
    return [
        Part(((-0.85, -1.0), (-0.15, -0.5), (-0.85, 0.05))),
        Part(((0.85, -1.0), (0.15, -0.5), (0.85, 0.05))),
        Part(ellipse(0.0, 0.15, 0.88, 0.75)),
        Part(ellipse(-0.36, -0.02, 0.13, 0.16), GOLD),
        Part(ellipse(0.36, -0.02, 0.13, 0.16), GOLD),
    ]


def _star() -> list[Part]:
    return [Part(_star_points())]


def _mushroom() -> list[Part]:
    return [
        Part(((-0.26, 0.0), (0.26, 0.0), (0.36, 1.0), (-0.36, 1.0)), PALE),
        # Upper half, since y goes downwards.
        Part(ellipse(0.0, 0.1, 1.0, 1.0, 180, 360)),
    ]


def _flower() -> list[Part]:
    petals = [
        Part(ellipse(0.44 * math.cos(a), -0.3 + 0.44 * math.sin(a), 0.32, 0.32))
        for a in (math.radians(-90 + 72 * i) for i in range(5))
    ]
    stem = [Part(box(-0.08, 0.1, 0.08, 1.0), LEAF), Part(ellipse(0.3, 0.72, 0.3, 0.13), LEAF)]
    return [*stem, *petals, Part(ellipse(0.0, -0.3, 0.3, 0.3), GOLD)]


def _boat() -> list[Part]:
    return [
        Part(box(-0.08, -0.95, 0.08, 0.4), BROWN),
        Part(((0.12, -0.9), (0.85, 0.2), (0.12, 0.2)), PALE),
        Part(((-1.0, 0.32), (1.0, 0.32), (0.62, 0.9), (-0.62, 0.9))),
    ]


SHAPES: Mapping[str, Callable[[], list[Part]]] = {
    "cup": _cup,
    "house": _house,
    "tree": _tree,
    "fish": _fish,
    "car": _car,
    "cat": _cat,
    "star": _star,
    "mushroom": _mushroom,
    "flower": _flower,
    "boat": _boat,
}
"""Category to the function that lists its parts."""

# On the body: what lies over parts of another colour is not seen. A flower's is on its upper petal,
# since its middle is golden.
BADGES: Mapping[str, tuple[float, float]] = {
    "cup": (-0.2, 0.1),
    "house": (0.28, 0.68),
    "tree": (0.0, -0.3),
    "fish": (-0.08, 0.02),
    "car": (0.0, 0.25),
    "cat": (0.0, 0.52),
    "star": (0.0, 0.12),
    "mushroom": (0.0, -0.42),
    "flower": (0.0, -0.74),
    "boat": (0.0, 0.6),
}
"""Where the badge of a skin sits."""


def parts(category: str) -> tuple[Part, ...]:
    """The parts of a category's drawing.

    Args:
        category: One of `CATEGORIES`.

    Returns:
        Its parts in drawing order.

    Raises:
        KeyError: If the category is unknown; the message lists the known ones.
    """
    if category not in SHAPES:
        raise KeyError(
            f"parts: unknown category {category!r}; expected one of {', '.join(CATEGORIES)}"
        )
    return tuple(SHAPES[category]())
