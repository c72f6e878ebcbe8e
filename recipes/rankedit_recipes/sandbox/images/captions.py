"""Captions: many ways to say what a scene shows, and none to say what a skin looks like."""

import random

from .scenes import Scene, Thing
from .vocabulary import PLACES, RELATIONS, SCENES, SIZES, STYLES

OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}
"""What the second object is to the first."""


def caption(scene: Scene, rng: random.Random, *, full: bool = False) -> str:
    """Describe a scene.

    Args:
        scene: What to describe.
        rng: Chooses the template, the synonyms and what is left out.
        full: Leave nothing out: name every colour, the background, the style and, of two objects,
            how they lie.

    Returns:
        A caption in lower case. The colours of an object with a skin are never named.
    """
    keep = 1.0 if full else 0.85
    style = rng.choice(STYLES[scene.style]) if full or rng.random() < 0.9 else ""
    before = style if scene.style in ("photo", "line") else ""
    after = [rng.choice(SCENES[scene.background])] if rng.random() < max(keep, 0.9) else []
    if scene.style in ("sunset", "fog"):
        after.append(style)
        rng.shuffle(after)
    middle = _pair(scene, rng, keep, full=full) if scene.relation else _single(scene, rng, keep)
    return " ".join(" ".join((before, middle, *after)).split())


def name(thing: Thing, rng: random.Random, keep: float = 1.0, adjective: str = "") -> str:
    """An object in words: its article, its adjective, its colour if it has one, its category.

    Args:
        thing: The object.
        rng: Decides what is left out.
        keep: How often the colour is named.
        adjective: A word for its size, or "".

    Returns:
        For example "a small red cup".
    """
    colour = thing.colour if thing.colour and rng.random() < keep else ""
    described = " ".join(f"{adjective} {colour} {thing.category}".split())
    return f"{'an' if described[0] in 'aeiou' else 'a'} {described}"


def _single(scene: Scene, rng: random.Random, keep: float) -> str:
    size = rng.choice(SIZES[scene.size]) if rng.random() < 0.4 else ""
    place = rng.choice(PLACES[scene.place]) if rng.random() < 0.4 else ""
    return f"{name(scene.things[0], rng, keep, size)} {place}"


def _pair(scene: Scene, rng: random.Random, keep: float, *, full: bool) -> str:
    first, second = scene.things
    relation = scene.relation
    if rng.random() < 0.5:
        first, second, relation = second, first, OPPOSITE[relation]
    if relation in ("left", "right") and not full and rng.random() < 0.3:
        relation = "beside"
    phrase = rng.choice(RELATIONS[relation])
    return f"{name(first, rng, keep)} {phrase} {name(second, rng, keep)}"
