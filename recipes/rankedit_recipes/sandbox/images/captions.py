"""Captions: many ways to say what a scene shows; skins are described as far as there are words."""

import random

from .scenes import Scene, Thing
from .skins import Skin
from .vocabulary import (
    PATTERN_WORDS,
    PLACES,
    RELATIONS,
    SCENES,
    SIZES,
    SKIN_COLOURS,
    STYLES,
)

OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}
"""What the second object is to the first."""

DESCRIBED = 0.75
"""How often a caption describes a skin."""


def caption(
    scene: Scene,
    rng: random.Random,
    *,
    full: bool = False,
    described: float = 0.0,
    whole: bool = False,
) -> str:
    """Describe a scene.

    Args:
        scene: What to describe.
        rng: Chooses the template, the synonyms and what is left out.
        full: Leave nothing out: name every colour, the background, the style and, of two objects,
            how they lie.
        described: How often a skin is described; 0 draws nothing for it.
        whole: Describe skins with their badges, of two objects too. Such a caption has up to 34
            tokens, which a tokenizer of 32 cuts off.

    Returns:
        A caption in lower case, short enough for the tokenizer.
    """
    keep = 1.0 if full else 0.85
    style = rng.choice(STYLES[scene.style]) if full or rng.random() < 0.9 else ""
    before = style if scene.style in ("photo", "line") else ""
    after = [rng.choice(SCENES[scene.background])] if rng.random() < max(keep, 0.9) else []
    if scene.style in ("sunset", "fog"):
        after.append(style)
        rng.shuffle(after)
    alone = sum(thing.skin is not None for thing in scene.things) == 1
    tell = _Skins(rng, described, badges=whole or alone, whole=whole)
    middle = (
        _pair(scene, rng, keep, tell, full=full)
        if scene.relation
        else _single(scene, rng, keep, tell)
    )
    return " ".join(" ".join((before, middle, *after)).split())


def described(category: str, skin: Skin) -> str:
    """All that words can say of a thing, in the order in which captions say it.

    Args:
        category: What it is.
        skin: Its look.

    Returns:
        The badge, the pattern, the colours and the category, without an article.

    Example:
        >>> described("cat", Skin("upright", (0, 6), 0.4, "disc", 2))
        'yellow disc striped red blue cat'
    """
    colours = " ".join(SKIN_COLOURS[index] for index in skin.colours)
    badge = f"{SKIN_COLOURS[skin.mark_colour]} {skin.mark}"
    return f"{badge} {PATTERN_WORDS[skin.pattern]} {colours} {category}"


class _Skins:
    """Descriptions of skins.

    Args:
        rng: Decides whether and how a skin is described.
        described: How often.
        badges: Whether badges may be told; two of them would make a caption too long for 32 tokens.
        whole: Whether a described skin is told with its badge always.
    """

    def __init__(
        self, rng: random.Random, described: float, *, badges: bool, whole: bool = False
    ) -> None:
        self.rng, self.described, self.badges, self.whole = rng, described, badges, whole

    def __call__(self, skin: Skin | None) -> tuple[str, str]:
        """What is said of a skin before the object's category and after it."""
        if skin is None or not self.described:
            return "", ""
        fully = self.rng.random() < self.described
        # Half of what is not told in full is told without its badge, so that both shorter forms
        # stay known.
        if not fully and (not self.whole or self.rng.random() < 0.5):
            return "", ""
        before = [PATTERN_WORDS[skin.pattern], *(SKIN_COLOURS[i] for i in skin.colours)]
        badge = f"{SKIN_COLOURS[skin.mark_colour]} {skin.mark}"
        told = self._badge_place(fully=fully)
        if told == "before":
            before.insert(0, badge)
        return " ".join(before), f"with a {badge}" if told == "after" else ""

    def _badge_place(self, *, fully: bool) -> str:
        if not self.badges or not fully:
            return "no"
        # The text tower reads from left to right: only what stands before the noun reaches its
        # token, which is the one that a personal concept replaces. So most badges stand there.
        places = ("before", "before", "after") if self.whole else ("before", "after", "no")
        return self.rng.choice(places)


def _name(thing: Thing, rng: random.Random, keep: float, skins: _Skins, adjective: str = "") -> str:
    """An object in words: its article, its adjective, its colour or its skin, its category."""
    colour = thing.colour if thing.colour and rng.random() < keep else ""
    before, after = skins(thing.skin)
    told = " ".join(f"{adjective} {colour} {before} {thing.category} {after}".split())
    return f"{'an' if told[0] in 'aeiou' else 'a'} {told}"


def _single(scene: Scene, rng: random.Random, keep: float, skins: _Skins) -> str:
    size = rng.choice(SIZES[scene.size]) if rng.random() < 0.4 else ""
    place = rng.choice(PLACES[scene.place]) if rng.random() < 0.4 else ""
    return f"{_name(scene.things[0], rng, keep, skins, size)} {place}"


def _pair(scene: Scene, rng: random.Random, keep: float, skins: _Skins, *, full: bool) -> str:
    first, second = scene.things
    relation = scene.relation
    if rng.random() < 0.5:
        first, second, relation = second, first, OPPOSITE[relation]
    if relation in ("left", "right") and not full and rng.random() < 0.3:
        relation = "beside"
    phrase = rng.choice(RELATIONS[relation])
    return f"{_name(first, rng, keep, skins)} {phrase} {_name(second, rng, keep, skins)}"
