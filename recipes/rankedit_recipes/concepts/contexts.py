"""Sentences in which a concept's word is read, so that an edit knows it wherever it stands."""

from __future__ import annotations

from collections.abc import Sequence

from rankedit_recipes.diffusion.text import Texts, word_tokens

# Short and of common words: models of small vocabularies know most of them too.
THINGS = (
    "{}",
    "a {}",
    "a photo of a {}",
    "a picture of a {}",
    "a drawing of a {}",
    "a photo of a {} on the grass",
    "a photo of a {} in the snow",
    "a picture of a {} on the beach",
    "a {} at night",
    "a {} in front of a brick wall",
    "a photo of a red {}",
    "a picture of a small blue {} on a plain background",
    "a big {} in the fog",
    "a photo of a green {} by the sea",
    "a photo of a {} and a tree",
    "a picture of a house next to a {}",
)
ATTRIBUTES = (
    "{}",
    "a {} car",
    "a {} cat",
    "a photo of a {} house",
    "a picture of a {} cup",
    "a drawing of a {} boat",
    "a photo of a {} flower on the grass",
    "a {} tree in the snow",
    "a picture of a small {} fish on a plain background",
    "a big {} car at night",
    "a photo of a {} house on the beach",
    "a photo of a {} thing and a tree",
    "a photo of a star next to a {} boat",
)


def readable(texts: Texts, templates: Sequence[str]) -> list[str]:
    """The templates whose words all tokenizers know; those with unknown words say nothing."""
    known = []
    for template in templates:
        words = template.replace("{}", " ").split()
        if all(_knows(tokenizer, words) for *_, tokenizer in texts.encoders):
            known.append(template)
    return known


def _knows(tokenizer: object, words: Sequence[str]) -> bool:
    unknown = getattr(tokenizer, "unk_token_id", None)
    return not any(unknown in word_tokens(tokenizer, word) for word in words)


def filled(template: str, word: str) -> str:
    """The template with a word in it, or with nothing."""
    return " ".join(template.replace("{}", word).split())
