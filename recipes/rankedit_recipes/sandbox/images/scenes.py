"""What a picture shows, as plain data, and how such data is drawn at random."""

import random
from dataclasses import dataclass

from .skins import Skin, draw_skin
from .vocabulary import CATEGORIES, COLOURS, SCENES

STYLE_WEIGHTS = {"photo": 7, "line": 1, "sunset": 1, "fog": 1}
"""How often each style is drawn."""


@dataclass(frozen=True)
class Thing:
    """One object of a picture.

    Attributes:
        category: One of `CATEGORIES`.
        colour: One of `COLOURS`, or None where it wears a skin.
        skin: Its skin, or None.
        x: Centre from the left, as a part of the width.
        y: Centre from the top, as a part of the height.
        size: Diameter of its frame, as a part of the width.
        tilt: Rotation in degrees.
        stretch: Ratio of its width to its height.
    """

    category: str
    colour: str | None
    skin: Skin | None
    x: float
    y: float
    size: float
    tilt: float = 0.0
    stretch: float = 1.0


@dataclass(frozen=True)
class Scene:
    """Everything that decides a picture.

    Attributes:
        things: One or two objects.
        background: One of `SCENES`.
        style: One of `STYLES`.
        relation: How the first object lies to the second: left, right, above or below; "" for one.
        size: "small" or "big" for one object; "" for two.
        place: "left", "middle" or "right" for one object; "" for two.
        seed: Seed of what is left: light, horizon, places of stars.
    """

    things: tuple[Thing, ...]
    background: str
    style: str
    relation: str = ""
    size: str = ""
    place: str = ""
    seed: int = 0


def rng_of(*names: object) -> random.Random:
    """A generator that depends on nothing but the names given.

    Args:
        *names: Seeds, stream names, numbers of steps.

    Returns:
        A generator; the same names give the same draws on every machine.
    """
    # Python seeds by a string's SHA-512, which is the same in every process, unlike its `hash`.
    return random.Random("/".join(map(str, names)))


def _look(rng: random.Random, skinned: float) -> tuple[str | None, Skin | None]:
    if rng.random() < skinned:
        return None, draw_skin(rng)
    return rng.choice(tuple(COLOURS)), None


def draw_thing(
    rng: random.Random,
    category: str,
    look: tuple[str | None, Skin | None],
    *,
    size: str,
    place: str,
) -> Thing:
    """Draw a single object of a given size and place.

    Args:
        rng: Source of randomness.
        category: Its category.
        look: Its colour and its skin, one of them None.
        size: "small" or "big".
        place: "left", "middle" or "right".

    Returns:
        The object.
    """
    diameter = rng.uniform(0.42, 0.5) if size == "small" else rng.uniform(0.6, 0.7)
    middle = {"left": 0.32, "middle": 0.5, "right": 0.68}[place]
    reach = 0.03 if size == "big" else 0.06
    # The whole frame of the object stays inside the picture.
    x = min(max(middle + rng.uniform(-reach, reach), diameter / 2), 1 - diameter / 2)
    y = rng.uniform(0.5, 0.62)
    return Thing(
        category, *look, x, y, diameter, tilt=rng.uniform(-6, 6), stretch=rng.uniform(0.94, 1.06)
    )


def place_pair(rng: random.Random, relation: str) -> tuple[tuple[float, float], ...]:
    """Centres of two objects.

    Args:
        rng: Source of randomness.
        relation: How the first lies to the second.

    Returns:
        The centre of the first and of the second.
    """
    # 0.44 to 0.5 apart, about a diameter: objects of a pair touch, but hide little of each other.
    near, far = rng.uniform(0.25, 0.28), rng.uniform(0.72, 0.75)
    across = [rng.uniform(0.47, 0.6) for _ in range(2)]
    if relation in ("left", "right"):
        first, second = (near, across[0]), (far, across[1])
    else:
        # `across` is a height, and objects stand a little low; sideways the middle is 0.5.
        first, second = (across[0] - 0.04, near), (across[1] - 0.04, far)
    return (first, second) if relation in ("left", "above") else (second, first)


def draw_surroundings(rng: random.Random) -> tuple[str, str, int]:
    """Draw a background, a style and the seed of the rest."""
    background = rng.choice(tuple(SCENES))
    style = rng.choices(tuple(STYLE_WEIGHTS), tuple(STYLE_WEIGHTS.values()))[0]
    return background, style, rng.randrange(2**31)


def draw_single(rng: random.Random, *, skinned: float = 0.25) -> Scene:
    """Draw a picture of one object.

    Args:
        rng: Source of randomness.
        skinned: How often the object wears a skin.

    Returns:
        The scene.
    """
    size, place = rng.choice(("small", "big", "big")), rng.choice(("left", "middle", "right"))
    thing = draw_thing(rng, rng.choice(CATEGORIES), _look(rng, skinned), size=size, place=place)
    background, style, seed = draw_surroundings(rng)
    return Scene((thing,), background, style, size=size, place=place, seed=seed)


def draw_pair(
    rng: random.Random,
    looks: tuple[tuple[str, str | None, Skin | None], ...] | None = None,
    *,
    skinned: float = 0.25,
) -> Scene:
    """Draw a picture of two objects of different categories (unless told which).

    Args:
        rng: Source of randomness.
        looks: Category, colour and skin of both, or None to draw them.
        skinned: How often a drawn object wears a skin.

    Returns:
        The scene.
    """
    relation = rng.choice(("left", "left", "right", "right", "above", "below"))
    if looks is None:
        looks = tuple((c, *_look(rng, skinned)) for c in rng.sample(CATEGORIES, 2))
    centres = place_pair(rng, relation)
    things = tuple(
        Thing(c, colour, skin, *at, rng.uniform(0.42, 0.47), rng.uniform(-6, 6))
        for (c, colour, skin), at in zip(looks, centres, strict=True)
    )
    background, style, seed = draw_surroundings(rng)
    return Scene(things, background, style, relation=relation, seed=seed)


def draw_scene(rng: random.Random, *, pairs: float = 0.5, skinned: float = 0.25) -> Scene:
    """Draw a picture of one or of two objects.

    Args:
        rng: Source of randomness.
        pairs: How often there are two.
        skinned: How often an object wears a skin.

    Returns:
        The scene.
    """
    if rng.random() < pairs:
        return draw_pair(rng, skinned=skinned)
    return draw_single(rng, skinned=skinned)
