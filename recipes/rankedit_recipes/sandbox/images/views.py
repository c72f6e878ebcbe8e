"""Pictures for training and testing the judges: drawn, disturbed, cropped to one object."""

import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from .identity import crop
from .judge import as_input
from .renderer import render
from .scenes import Scene, Thing, draw_pair, draw_single
from .skins import MARKS, PALETTE, PATTERNS, Skin
from .vocabulary import CATEGORIES


def pixels_of(scenes: Sequence[Scene], size: int = 48) -> Tensor:
    """Draw scenes.

    Args:
        scenes: What to draw.
        size: Pixels a side.

    Returns:
        Pictures, [n, size, size, 3].
    """
    return torch.from_numpy(np.stack([render(scene, size).pixels for scene in scenes]))


def disturbed(pixels: Tensor, rng: random.Random) -> Tensor:
    """Network input with a little noise, so that a judge does not look for perfect pixels."""
    pictures = as_input(pixels)
    generator = torch.Generator().manual_seed(rng.getrandbits(62))
    noise = torch.randn(pictures.shape, generator=generator)
    # Another level for each picture: clean ones must be judged as well.
    level = 0.08 * torch.rand(len(pictures), 1, 1, 1, generator=generator)
    return pictures + level * noise


def changed_skin(skin: Skin, rng: random.Random) -> Skin:
    """A skin that differs from another in one element: the nearest thing to a wrong identity.

    Args:
        skin: The skin.
        rng: Chooses the element and its new value.

    Returns:
        Another skin.
    """
    # With a colour that it has elsewhere, neighbours could be the same, which no skin's are.
    unused = [i for i in range(len(PALETTE)) if i not in (*skin.colours, skin.mark_colour)]
    element = rng.choice(("colour", "pattern", "mark", "mark_colour"))
    if element == "colour":
        at = rng.randrange(len(skin.colours))
        colours = tuple(rng.choice(unused) if i == at else c for i, c in enumerate(skin.colours))
        return replace(skin, colours=colours)
    if element == "pattern":
        return replace(skin, pattern=rng.choice([p for p in PATTERNS if p != skin.pattern]))
    if element == "mark":
        return replace(skin, mark=rng.choice([m for m in MARKS if m != skin.mark]))
    return replace(skin, mark_colour=rng.choice(unused))


def dressed_scene(rng: random.Random, category: str, skin: Skin) -> tuple[Scene, Thing]:
    """A random picture of an object with a given skin, alone or beside another.

    Args:
        rng: Source of randomness.
        category: The object's category.
        skin: Its skin.

    Returns:
        The scene and the object in it.
    """
    if rng.random() < 0.4:
        other = rng.choice([c for c in CATEGORIES if c != category])
        scene = draw_pair(rng, ((category, None, skin), (other, "red", None)))
        return scene, scene.things[0]
    scene = draw_single(rng)
    thing = replace(scene.things[0], category=category, colour=None, skin=skin)
    return replace(scene, things=(thing,)), thing


def views(rng: random.Random, skins: Sequence[Skin], category: str, size: int) -> Tensor:
    """One crop of each skin, in a scene of its own.

    Args:
        rng: Source of randomness.
        skins: The skins.
        category: The category that wears them.
        size: Pixels a side of the pictures.

    Returns:
        Crops, as the embedding sees them, [skins, 3, CROP, CROP].
    """
    scenes, boxes = [], []
    for skin in skins:
        scene, thing = dressed_scene(rng, category, skin)
        scenes.append(scene)
        # In use, places are found by the attribute judge, and are never quite right.
        shake = [rng.gauss(0, 0.012) for _ in range(3)]
        boxes.append([thing.x + shake[0], thing.y + shake[1], thing.size + shake[2]])
    return crop(disturbed(pixels_of(scenes, size), rng), torch.tensor(boxes))
