"""Prompts with a place for a concept's word, and what the text encoder makes of that word."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rankedit_recipes.diffusion.encoded import at_positions
from rankedit_recipes.diffusion.parts import Parts
from rankedit_recipes.diffusion.text import word_tokens
from rankedit_recipes.perfusion.errors import PerfusionError
from rankedit_recipes.perfusion.naming import Naming

TEMPLATES = (
    "a photo of a {}",
    "a picture of a {}",
    "a photo of the {}",
    "a photo of one {}",
    "a picture of my {}",
)
"""Prompts in which a concept is learned and its category is read; `{}` is the word."""

# An adjective's key depends on what stands before it: docs/decisions/a-key-for-every-place.md.
CONTEXTS = (
    "a photo of a red cup next to a {}",
    "a photo of a tree to the left of a {}",
    "a photo of a star above a {}",
    "a picture of a blue house and a {}",
    "a photo of a green fish next to the {}",
)
"""Prompts in which a concept stands behind another thing; `{}` is the word."""


VALIDATION_PROMPTS = (
    "a photo of a {}",
    "a photo of a {} on the grass",
    "a photo of a {} in the snow",
    "a photo of a {} on the beach",
    "a photo of a {} at night",
    "a photo of a red {}",
    "a photo of a {} next to a tree",
    "a drawing of a {}",
)
"""Eight prompts, as many as the paper's choice of a checkpoint uses."""


def origin_encoding(parts: Parts, naming: Naming, templates: Sequence[str]) -> Tensor:
    """The encoding `[in]` of the word that the new one stands for, averaged over the templates.

    That is the category's, or the adjective's before the category, at its position.

    Raises:
        PerfusionError: a template lacks `{}`, cuts the word off, or has that word itself.
    """
    read, places = _read(parts, naming.origin, filled(naming.slots(templates), naming.origin))
    for template, found in zip(templates, places, strict=True):
        # More places than slots: the template says the word too, and its encoding would be mixed
        # in.
        if len(found) != template.count("{}"):
            raise PerfusionError(
                f"perfusion: {naming.origin!r} stands in the template {template!r} itself, so that "
                "it cannot be told from the concept's word; choose another adjective, or give "
                "templates without it."
            )
    return at_positions(read, places).float().mean(0)


def word_encoding(parts: Parts, word: str, prompts: Sequence[str]) -> Tensor:
    """The encoding of a word that is in the pipeline, averaged over prompts with it.

    Returns:
        `[in]`, or `[vectors, in]` of a word of several vectors.

    Raises:
        PerfusionError: a prompt lacks it, or is cut off before it.
    """
    vectors = len(word_tokens(parts.text.tokenizer, word))
    read = at_vectors(*_read(parts, word, prompts), vectors).float().mean(0)
    return read[0] if vectors == 1 else read


def at_vectors(read: Tensor, places: Sequence[Sequence[int]], vectors: int) -> Tensor:
    """Rows `[n, vectors, in]` of a word whose last token stands at the places of each prompt."""
    before = range(vectors - 1, -1, -1)
    rows = [at_positions(read, [[p - back for p in own] for own in places]) for back in before]
    return torch.stack(rows, 1)


def _read(parts: Parts, word: str, prompts: Sequence[str]) -> tuple[Tensor, list[list[int]]]:
    """What cross-attention reads of prompts `[n, tokens, in]`, and where the word is in each."""
    # Encodings of words that the model knows are constants of the training.
    with torch.no_grad():
        encoded = parts.text.encode(prompts)
        read = parts.reads(encoded)
    return read, parts.text.required_positions(prompts, encoded, word)


def filled(templates: Sequence[str], word: str) -> list[str]:
    """The templates with a word put in.

    Raises:
        PerfusionError: no template, or one without `{}`.
    """
    wrong = [template for template in templates if "{}" not in template]
    if wrong or not templates:
        raise PerfusionError(
            f"perfusion: templates must be prompts with {{}} where the word goes, got "
            f"{wrong[0] if wrong else templates!r}."
        )
    return [template.replace("{}", word) for template in templates]


def in_words(prompts: Sequence[str], category: str) -> list[str]:
    """Templates with the category, as scorers are asked."""
    # A scorer's text encoder has never seen the new word.
    return [prompt.replace("{}", category) for prompt in prompts]
