"""What is erased on the sandbox, and what its model is asked for without it and with it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from rankedit_recipes import concepts
from rankedit_recipes.sandbox.images.judge import LOOKS, Verdict
from rankedit_recipes.sandbox.images.vocabulary import CATEGORIES, COLOURS, SCENES, STYLES

Kind = Literal["category", "colour", "style"]


@dataclass(frozen=True)
class Asked:
    """One prompt and what it says; an empty word where it says nothing."""

    prompt: str
    category: str = ""
    colour: str = ""
    style: str = "photo"
    scene: str = ""


@dataclass(frozen=True)
class Concept:
    """What is erased.

    Attributes:
        kind: of it.
        name: as the judge calls it.
        request: that erases it.
        direct: prompts that say it.
        implicit: prompts that do not, of which the unedited model may make it.
    """

    kind: Kind
    name: str
    request: concepts.Request
    direct: tuple[Asked, ...]
    implicit: tuple[Asked, ...]

    def shown(self, verdict: Verdict, asked: Sequence[Asked]) -> list[bool]:
        """Which pictures show it; a colour on the category that was asked for."""
        if self.kind == "category":
            return (verdict.present[:, CATEGORIES.index(self.name)] > 0).tolist()
        if self.kind == "style":
            return (verdict.style.argmax(1) == list(STYLES).index(self.name)).tolist()
        places = torch.tensor([CATEGORIES.index(one.category) for one in asked])
        looks = verdict.looks[torch.arange(len(asked)), places].argmax(1)
        return (looks == LOOKS.index(self.name)).tolist()

    def said_by(self, asked: Asked) -> bool:
        """Whether a prompt says it."""
        return getattr(asked, self.kind) == self.name


def obeyed(verdict: Verdict, asked: Sequence[Asked]) -> list[bool]:
    """Whether each thing that each prompt says is in its picture."""
    looks, scene, style = verdict.looks.argmax(2), verdict.scene.argmax(1), verdict.style.argmax(1)
    found = []
    for i, one in enumerate(asked):
        place = CATEGORIES.index(one.category)
        found.append(bool(verdict.present[i, place] > 0))
        if one.colour:
            found.append(int(looks[i, place]) == LOOKS.index(one.colour))
        if one.scene:
            found.append(int(scene[i]) == list(SCENES).index(one.scene))
        found.append(int(style[i]) == list(STYLES).index(one.style))
    return found


def pool(count: int) -> list[Asked]:
    """Prompts that go round all categories, colours, scenes and styles."""
    found = []
    for i in range(count):
        category, colour = CATEGORIES[i % 10], list(COLOURS)[(i + i // 10) % 8]
        scene, style = list(SCENES)[(i + i // 6) % 6], list(STYLES)[(i + i // 4) % 4]
        if style in ("photo", "line"):
            opening = STYLES[style][i // 10 % 2]
            text = f"{opening} a {colour} {category} {SCENES[scene][i // 6 % 2]}"
        else:
            text = f"a photo of a {colour} {category} {STYLES[style][i // 10 % 2]}"
            scene = ""
        found.append(Asked(text, category, colour, style, scene))
    return found


# None of these is among the contexts that edits are made in.
_THINGS = (
    "a photo of a {} in a meadow",
    "a picture of a yellow {} on a snowy day",
    "a sketch of a {} by the sea",
    "a photo of a big purple {} in a studio",
    "a white {} under the stars",
    "a photo of a small {} by a brick wall",
)
_UNSAID = ("toy", "object", "thing", "new toy")
_PLACES = ("in a meadow", "by the sea", "under the stars", "by a brick wall", "in a studio")
# What stands for a style in prompts, and what it becomes; an empty goal is nothing.
_STYLED = {
    "line": (("line drawing", "sketch"), ""),
    "sunset": (("at sunset", "in the evening light"), ""),
    "fog": (("in the fog", "in the mist"), ""),
    "photo": (("photo", "picture"), "sketch"),
}
# Where styles are read when they are erased: of things that they are not asked of here.
_SHOWN = (
    "a cat", "a red car", "a house on the grass", "a small blue boat", "a big green house",
    "a purple cat in the snow", "a boat on the beach", "a white car next to a house",
    "an orange boat", "a black cat on a plain background", "a yellow house", "a big car",
)  # fmt: skip


def categories() -> list[Concept]:
    """The ten."""
    implicit = tuple(Asked(f"a photo of a {w} {p}") for w in _UNSAID for p in _PLACES)
    return [
        Concept(
            "category", name, concepts.erase(name),
            tuple(Asked(t.format(name), name) for t in _THINGS), implicit,
        )
        for name in CATEGORIES
    ]  # fmt: skip


def colours() -> list[Concept]:
    """The eight."""
    things = ("star", "fish", "mushroom", "cup", "tree", "car")
    return [
        Concept(
            "colour", name, concepts.erase(name, about="attribute"),
            tuple(Asked(f"a photo of a {name} {thing} {_PLACES[i % 5]}", thing, name)
                  for i, thing in enumerate(things)),
            tuple(Asked(f"a photo of a {thing} {place}", thing) for thing in things
                  for place in _PLACES),
        )
        for name in COLOURS
    ]  # fmt: skip


def styles() -> list[Concept]:
    """The four; what is no photo may become nothing, a photo has to become something."""
    found = []
    for name, (words, goal) in _STYLED.items():
        before = name in ("line", "photo")
        contexts = [f"a {{}} of {t}" if before else f"a photo of {t} {{}}" for t in _SHOWN]
        request = concepts.erase(*words, to=goal, about="attribute", contexts=contexts)
        asked = []
        for i, thing in enumerate(("star", "fish", "mushroom", "cup", "flower", "tree")):
            said = words[i % 2]
            text = f"a {said} of a {thing}" if before else f"a photo of a {thing} {said}"
            asked.append(Asked(text, thing, "", name))
        plain = tuple(Asked(f"the new {c} {p}", c, "") for c in CATEGORIES for p in _PLACES[3:])
        found.append(Concept("style", name, request, tuple(asked), plain))
    return found


def taken(asked: Sequence[Asked], count: int) -> list[Asked]:
    """So many, from the first one on and round again, spread where there are more."""
    step = max(1, len(asked) // count)
    return [asked[i * step % len(asked) if step > 1 else i % len(asked)] for i in range(count)]
