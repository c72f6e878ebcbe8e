"""Draws scenes: antialiased by drawing four times as large, with an exact mask of every object."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from .backgrounds import paint_background
from .scenes import Scene, Thing, rng_of
from .shapes import BADGES, Part, Points, parts
from .vocabulary import COLOURS, Colour

SAMPLES = 4
"""Each pixel is the mean of this many squared."""

Pixels = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Picture:
    """A drawn scene.

    Attributes:
        pixels: Colours, [size, size, 3].
        masks: Where each object is visible, [objects, size, size].
    """

    pixels: Pixels
    masks: Mask


def render(scene: Scene, size: int = 48) -> Picture:
    """Draw a scene.

    Args:
        scene: What to draw.
        size: Width and height in pixels.

    Returns:
        The picture and the mask of every object: the pixels of which it covers at least half.

    Raises:
        ValueError: If the size is not positive.
    """
    if size < 1:
        raise ValueError(f"render: expected a size of at least 1 pixel, got {size}")
    # Of the scene alone: whoever draws it gets the same picture.
    rng = rng_of("light", scene.seed)
    canvas = Image.fromarray(paint_background(scene.background, size * SAMPLES, rng))
    covers: list[Pixels] = []
    for thing in scene.things:
        cover = _draw(canvas, thing, sketch=scene.style == "line")
        # What is drawn later lies in front.
        covers = [np.where(cover > 0, 0, earlier) for earlier in covers]
        covers.append(cover)
    # At least 8 of 16 samples: `reduce` of Pillow 13 rounds their mean of 127.5 up.
    masks = np.stack([np.asarray(Image.fromarray(c).reduce(SAMPLES)) >= 128 for c in covers])
    for front in range(1, len(masks)):
        # Where two objects share a pixel evenly, it belongs to the one in front.
        masks[:front] &= ~masks[front]
    pixels = np.asarray(canvas.reduce(SAMPLES)).astype(np.float32)
    return Picture(_finish(pixels, scene.style, rng.uniform(0.93, 1.05)), masks)


def _finish(pixels: npt.NDArray[np.floating], style: str, light: float) -> Pixels:
    pixels = pixels * np.float32(light)
    if style == "line":
        pixels = 0.45 * pixels + 0.55 * 250
    elif style == "sunset":
        pixels = 0.85 * pixels * np.array([1.05, 0.86, 0.72]) + 0.15 * np.array([255, 130, 40])
    elif style == "fog":
        pixels = 0.55 * pixels + 0.45 * np.array([196, 203, 208])
    return np.clip(np.round(pixels), 0, 255).astype(np.uint8)


def _corners(points: Points, thing: Thing, side: int) -> list[tuple[float, float]]:
    """Corners of a part in the large canvas."""
    half = 0.5 * thing.size * side
    cos, sin = math.cos(math.radians(thing.tilt)), math.sin(math.radians(thing.tilt))
    wide, high = math.sqrt(thing.stretch), 1 / math.sqrt(thing.stretch)
    placed = []
    for u, v in points:
        p, q = u * wide, v * high
        placed.append(
            (
                thing.x * side + half * (cos * p - sin * q),
                thing.y * side + half * (sin * p + cos * q),
            )
        )
    return placed


def _stroke(
    draw: ImageDraw.ImageDraw,
    corners: list[tuple[float, float]],
    colour: Colour | int,
    width: float,
) -> None:
    # On to the second corner: Pillow joins inner corners of a line only, and so the first as well.
    draw.line([*corners, corners[0], corners[1]], fill=colour, width=round(width), joint="curve")


def _draw(canvas: Image.Image, thing: Thing, *, sketch: bool) -> Pixels:
    """Draw one object into the canvas; returns how far it covers each sample (0 or 255)."""
    side = canvas.width
    shape = [(part, _corners(part.points, thing, side)) for part in parts(thing.category)]
    unit = 0.5 * thing.size * side
    # In pixels of a picture of 48, so that larger pictures look the same.
    edge = side / 48 * (1.1 if sketch else 0.6)
    # `cover` is the whole object with its rim, `body` what takes its colour or skin.
    cover = Image.new("L", canvas.size, 0)
    body = Image.new("L", canvas.size, 0)
    on_canvas, on_cover, on_body = map(ImageDraw.Draw, (canvas, cover, body))
    rim = (20, 20, 24) if sketch else _rim(thing)
    # First the rims of all parts, then what they hold: the outline goes round the whole object and
    # not through it.
    for part, corners in shape:
        for target, colour in ((on_canvas, rim), (on_cover, 255)):
            if part.stroke:
                _stroke(target, corners, colour, part.stroke * unit + 2 * edge)
            else:
                target.polygon(corners, fill=colour)
                _stroke(target, corners, colour, 2 * edge)
    own = None if thing.colour is None else COLOURS[thing.colour]
    for part, corners in shape:
        # Black where a skin goes, which is pasted over the body. Where parts of another colour lie
        # above the body, they are taken out of it.
        _fill(on_canvas, part, corners, unit, part.colour or own or (0, 0, 0))
        _fill(on_body, part, corners, unit, 0 if part.colour else 255)
    if thing.skin is not None:
        _dress(canvas, body, thing)
    return np.asarray(cover)


def _fill(
    draw: ImageDraw.ImageDraw,
    part: Part,
    corners: list[tuple[float, float]],
    unit: float,
    colour: Colour | int,
) -> None:
    if part.stroke:
        _stroke(draw, corners, colour, part.stroke * unit)
    else:
        draw.polygon(corners, fill=colour)


def _rim(thing: Thing) -> Colour:
    """The outline's colour: darker than the object, lighter for black ones."""
    # A skin has no single colour that could be darkened.
    if thing.colour is None:
        return (35, 32, 38)
    if thing.colour == "black":
        return (120, 120, 128)
    red, green, blue = (int(0.55 * c) for c in COLOURS[thing.colour])
    return (red, green, blue)


def _dress(canvas: Image.Image, body: Image.Image, thing: Thing) -> None:
    """Paint the skin over the body's samples."""
    box = body.getbbox()
    if box is None or thing.skin is None:
        return
    side, half = canvas.width, 0.5 * thing.size * canvas.width
    # `_corners` turned round, at the middle of each sample.
    x = (np.arange(box[0], box[2], dtype=np.float32) + 0.5 - thing.x * side) / half
    y = (np.arange(box[1], box[3], dtype=np.float32) + 0.5 - thing.y * side) / half
    cos, sin = math.cos(math.radians(thing.tilt)), math.sin(math.radians(thing.tilt))
    u = (cos * x[None, :] + sin * y[:, None]) / np.float32(math.sqrt(thing.stretch))
    v = (cos * y[:, None] - sin * x[None, :]) * np.float32(math.sqrt(thing.stretch))
    colours = thing.skin.paint(u, v, BADGES[thing.category])
    canvas.paste(Image.fromarray(colours), box[:2], body.crop(box))
