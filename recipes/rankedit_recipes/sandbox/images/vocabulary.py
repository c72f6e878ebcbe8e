"""The words of the picture world: what can be drawn and how captions name it.

Everything that a caption may say is listed here, so that the tokenizer, the captions, the judges
and the documentation cannot disagree. Of a skin, captions can name the kind of pattern, the colours
and the badge, as captions of real pictures do; how wide its stripes are and where they begin has no
words.
"""

from collections.abc import Mapping

Colour = tuple[int, int, int]

CATEGORIES: tuple[str, ...] = (
    "cup",
    "house",
    "tree",
    "fish",
    "car",
    "cat",
    "star",
    "mushroom",
    "flower",
    "boat",
)
"""What an object can be."""

COLOURS: Mapping[str, Colour] = {
    "red": (214, 38, 38),
    "orange": (245, 140, 25),
    "yellow": (247, 222, 50),
    "green": (40, 160, 60),
    "blue": (45, 85, 215),
    "purple": (140, 55, 170),
    "white": (244, 244, 244),
    "black": (38, 38, 42),
}
"""What colour an object without a skin can have."""

SCENES: Mapping[str, tuple[str, ...]] = {
    "plain": ("on a plain background", "in a studio"),
    "grass": ("on the grass", "in a meadow"),
    "snow": ("in the snow", "on a snowy day"),
    "beach": ("on the beach", "by the sea"),
    "night": ("at night", "under the stars"),
    "brick": ("in front of a brick wall", "by a brick wall"),
}
"""Backgrounds and the phrases for them."""

STYLES: Mapping[str, tuple[str, ...]] = {
    "photo": ("a photo of", "a picture of", ""),
    "line": ("a line drawing of", "a sketch of"),
    "sunset": ("at sunset", "in the evening light"),
    "fog": ("in the fog", "in the mist"),
}
"""Styles; the first two kinds stand before the objects, the others after them."""

RELATIONS: Mapping[str, tuple[str, ...]] = {
    "left": ("to the left of", "left of"),
    "right": ("to the right of", "right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
    "beside": ("next to", "beside", "and"),
}
"""How the first object lies to the second; `beside` leaves the side open."""

SIZES: Mapping[str, tuple[str, ...]] = {"small": ("small", "little"), "big": ("big", "large")}
"""Sizes of a single object."""

PLACES: Mapping[str, tuple[str, ...]] = {
    "left": ("on the left",),
    "middle": ("in the middle",),
    "right": ("on the right",),
}
"""Places of a single object."""

PATTERN_WORDS: Mapping[str, str] = {
    "across": "banded",
    "upright": "striped",
    "diagonal": "slanted",
    "spots": "spotted",
    "halves": "halved",
    "checks": "checked",
    "rings": "ringed",
}
"""What captions call the patterns of skins."""

SKIN_COLOURS: tuple[str, ...] = (
    *("red", "orange", "yellow", "green", "teal", "cyan"),
    *("blue", "purple", "pink", "brown", "white", "black"),
)
"""What captions call the colours of skins, in the palette's order."""

MARK_WORDS: tuple[str, ...] = ("disc", "square", "diamond", "cross")
"""What captions call badges."""

EXTRA_WORDS: tuple[str, ...] = (
    *("the", "my", "this", "one", "two", "with", "near", "toy", "object", "thing", "scene"),
    *("background", "image", "drawing", "pattern", "nice", "new", "old", ","),
)
"""Words that users write although no caption needs them."""

_PHRASES = (SCENES, STYLES, RELATIONS, SIZES, PLACES)


def words() -> list[str]:
    """Every word about things, places and styles, sorted, without special tokens.

    Returns:
        The words.

    Example:
        >>> "cat" in words(), "striped" in words()
        (True, False)
    """
    # Sorted, so that a new word here moves the numbers that trained weights know: all of them must
    # be trained again. Words for skins came later, and are listed behind for that reason
    # (docs/decisions/words-for-skins.md).
    known = {"a", "an", *CATEGORIES, *COLOURS, *EXTRA_WORDS}
    for table in _PHRASES:
        for phrases in table.values():
            known.update(word for phrase in phrases for word in phrase.split())
    return sorted(known)


def skin_words() -> list[str]:
    """The words that only descriptions of skins need, sorted.

    Returns:
        The words; none of them is in `words()`.

    Example:
        >>> "striped" in skin_words(), "red" in skin_words()
        (True, False)
    """
    return sorted({*PATTERN_WORDS.values(), *SKIN_COLOURS, *MARK_WORDS} - set(words()))
