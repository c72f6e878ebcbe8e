"""Compares what the judge sees in pictures with what their scenes say."""

from collections.abc import Callable, Mapping, Sequence

import torch

from .judge import Verdict
from .scenes import Scene
from .vocabulary import CATEGORIES, COLOURS, SCENES, STYLES

Check = Callable[[Verdict, Sequence[Scene]], list[bool]]


def categories_exact(says: Verdict, scenes: Sequence[Scene]) -> list[bool]:
    """Per picture: are the scene's categories present, and no others?"""
    # A score of 0 is a probability of one half.
    meant = [[c in {t.category for t in scene.things} for c in CATEGORIES] for scene in scenes]
    return ((says.present > 0) == torch.tensor(meant)).all(1).tolist()


def categories_present(says: Verdict, scenes: Sequence[Scene]) -> list[bool]:
    """Per picture: is every category of the scene present?"""
    return [
        all(says.present[row, CATEGORIES.index(t.category)] > 0 for t in scene.things)
        for row, scene in enumerate(scenes)
    ]


def category_likeliest(says: Verdict, scenes: Sequence[Scene]) -> list[bool]:
    """Per picture of one object: is its category the one with the highest score?"""
    meant = [CATEGORIES.index(scene.things[0].category) for scene in scenes]
    return (says.present.argmax(1) == torch.tensor(meant)).tolist()


def colours_right(says: Verdict, scenes: Sequence[Scene]) -> list[bool]:
    """Per picture: has every object its colour? Objects with a skin have none to check."""
    names, right = list(COLOURS), []
    for row, scene in enumerate(scenes):
        things = [thing for thing in scene.things if thing.colour]
        seen = [says.colour(CATEGORIES.index(thing.category))[row] for thing in things]
        right.append(all(names[int(s)] == t.colour for s, t in zip(seen, things, strict=True)))
    return right


def relation_right(says: Verdict, scenes: Sequence[Scene]) -> list[bool]:
    """Per picture of two objects: do they lie to each other as they should?"""
    right = []
    for row, scene in enumerate(scenes):
        first, second = (CATEGORIES.index(thing.category) for thing in scene.things)
        right.append(says.relation(first, second)[row] == scene.relation)
    return right


def scene_right(says: Verdict, scenes: Sequence[Scene]) -> list[bool]:
    """Per picture: is it the scene's background?"""
    meant = torch.tensor([list(SCENES).index(scene.background) for scene in scenes])
    return (says.scene.argmax(1) == meant).tolist()


def style_right(says: Verdict, scenes: Sequence[Scene]) -> list[bool]:
    """Per picture: is it the scene's style?"""
    meant = torch.tensor([list(STYLES).index(scene.style) for scene in scenes])
    return (says.style.argmax(1) == meant).tolist()


def present_and(check: Check) -> Check:
    """A check that also asks that every object is there.

    Args:
        check: Another check.

    Returns:
        Both together.
    """

    # Stricter than counting only the pictures in which every object is found (the weights' README).
    def both(says: Verdict, scenes: Sequence[Scene]) -> list[bool]:
        there = categories_present(says, scenes)
        return [a and b for a, b in zip(there, check(says, scenes), strict=True)]

    return both


OF_DRAWN: Mapping[str, Check] = {
    "category": categories_exact,
    "colour": colours_right,
    "scene": scene_right,
    "style": style_right,
}
"""What the judge must get right on drawn pictures."""

OF_ONE: Mapping[str, Check] = {
    "category": category_likeliest,
    "colour": colours_right,
    "scene": scene_right,
}
"""What generated pictures of one object must get right."""

OF_TWO: Mapping[str, Check] = {
    "both categories present": categories_present,
    "colours bound right": present_and(colours_right),
    "relation right": present_and(relation_right),
}
"""What generated pictures of two objects must get right."""
