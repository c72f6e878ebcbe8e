"""The base model asked in words: for the category, or with what words can say of the concept."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from personalisation.methods import Artefact, Kept, Settings, Subject
from rankedit_recipes import sandbox
from rankedit_recipes.sandbox.images.vocabulary import PATTERN_WORDS, SKIN_COLOURS


class CategoryWord:
    """Nothing is learned; prompts say the category."""

    name = "category word"
    rates = (0.0,)
    scales = searched = (1.0,)
    usual = 1.0

    def phrase(self, subject: Subject) -> str:
        """The category."""
        return subject.category

    def train(
        self, pipe: Any, subject: Subject, settings: Settings, folder: Path
    ) -> list[Artefact]:
        """Write an empty file."""
        kept = Kept(subject, folder)
        for step in settings.steps:
            kept.write_bytes(step, b"")
        return kept.artefacts

    @contextlib.contextmanager
    def apply(self, pipe: Any, artefact: Artefact, scale: float) -> Iterator[None]:
        """Change nothing."""
        yield


class Described(CategoryWord):
    """Nothing is learned; prompts describe the concept's look as captions of its world do.

    Args:
        concept: what is described.
    """

    name = "description in words"

    def __init__(self, concept: sandbox.Concept) -> None:
        skin = concept.skin
        colours = " ".join(SKIN_COLOURS[index] for index in skin.colours)
        badge = f"{SKIN_COLOURS[skin.mark_colour]} {skin.mark}"
        self._look = f"{badge} {PATTERN_WORDS[skin.pattern]} {colours}"

    def phrase(self, subject: Subject) -> str:
        """Badge, pattern and colours before the category."""
        return f"{self._look} {subject.category}"
