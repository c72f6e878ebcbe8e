"""Lists of texts: those of a user, and captions where no file of real ones is at hand."""

from __future__ import annotations

import random
from collections.abc import Iterable

from rankedit_recipes.diffusion.errors import PipelineError

_THINGS = (
    "a cat, a dog, a horse, a bird, a teddy bear, a cup of coffee, a wooden chair, a bicycle, "
    "a car, an old house, a tree, a boat, a clock, a pair of shoes, a backpack, a vase of "
    "flowers, a bowl of fruit, a sandwich, a bottle, a guitar, a book, a lamp, a candle, a "
    "fountain, a bridge, a train, a plane, a man, a woman, a child, two people, a group of "
    "friends, a chef, a dancer, a soldier, a robot, a dragon, a castle, a lighthouse, a "
    "mountain, a waterfall, a toy, a statue, a mailbox, a suitcase, a laptop, a phone, a "
    "camera, a sofa, a bed, a window, a door, a street"
)
_PLACES = (
    "on a table, in a garden, at the beach, in the snow, in a forest, on the street, in a "
    "kitchen, in front of a brick wall, in a museum, under a bridge, on a boat, at night, at "
    "sunset, in the rain, in the fog, on the moon, in a desert, by a lake, in a busy market, "
    "on a wooden floor, in a small room, in the city, against a white background, in an open "
    "field, on a shelf"
)
_QUALITIES = (
    "red, blue, green, yellow, black, white, golden, purple, small, big, old, new, broken, "
    "shiny, wooden, metal, glass, striped, dirty, beautiful, strange, tiny, antique, "
    "colourful, fluffy"
)
_STYLES = (
    "a photo of {}, {}, a close-up photo of {}, an oil painting of {}, a drawing of {}, a "
    "black and white picture of {}, a watercolour of {}, a poster with {}, a sketch of {}, a "
    "picture of {}"
)
_RELATIONS = (
    "next to, and, with, behind, on top of, in front of, looking at, holding, without, under"
)


def listed_texts(call: str, name: str, texts: Iterable[str]) -> list[str]:
    """Texts as a list.

    Raises:
        PipelineError: one text alone, whose letters would be taken for texts, or what is none.
    """
    found = None if isinstance(texts, str) or not isinstance(texts, Iterable) else list(texts)
    if found is None or not all(isinstance(text, str) for text in found):
        raise PipelineError(
            f"{call}: {name} must be a list of texts, got {texts!r:.80}; put one text into a list."
        )
    return found


def make_captions(count: int = 4000, seed: int = 0) -> list[str]:
    """Captions of a small grammar: things with qualities, one or two of them, places and styles.

    They are poorer than real ones. Statistics of the captions that a model was trained on are to
    be preferred where there are some.
    """
    rng = random.Random(seed)
    # Duplicates are likely and wanted: they weigh what is common.
    return [_caption(rng) for _ in range(count)]


def _caption(rng: random.Random) -> str:
    text = _thing(rng)
    if rng.random() < 0.4:
        text = f"{text} {_one(rng, _RELATIONS)} {_thing(rng)}"
    if rng.random() < 0.7:
        text = f"{text} {_one(rng, _PLACES)}"
    return _one(rng, _STYLES).replace("{}", text)


def _thing(rng: random.Random) -> str:
    article, _, noun = _one(rng, _THINGS).partition(" ")
    if rng.random() < 0.5 and article in ("a", "an"):
        quality = _one(rng, _QUALITIES)
        # The noun's own article may be the wrong one before the quality.
        return f"{'an' if quality[0] in 'aeiou' else 'a'} {quality} {noun}"
    return f"{article} {noun}"


def _one(rng: random.Random, phrases: str) -> str:
    return rng.choice(phrases.split(", "))
