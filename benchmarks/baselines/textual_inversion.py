"""Textual inversion (Gal et al., arXiv 2208.01618): one new word, and nothing else is learned."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from personalisation.methods import Artefact, Kept, Settings, Subject
from personalisation.training import fit, task_of
from rankedit_recipes.diffusion.freezing import frozen
from rankedit_recipes.diffusion.parts import Parts
from rankedit_recipes.diffusion.text import word_tokens
from rankedit_recipes.diffusion.words import NewWords, embedding_of
from safetensors.torch import load_file
from torch import Tensor


def first_rows(pipe: Any, category: str) -> list[Tensor]:
    """The embedding of the category's word in each text encoder: where new words begin."""
    return [
        embedding_of(encoder, word_tokens(tokenizer, category)[-1]).to(Parts(pipe).device)
        for _, encoder, tokenizer in Parts(pipe).text.encoders
    ]


def row_names(rows: list[Tensor]) -> dict[str, Tensor]:
    """Rows by the names that they have in files."""
    return {f"embedding.{index}": row for index, row in enumerate(rows)}


def rows_of(tensors: dict[str, Tensor]) -> list[Tensor]:
    """Rows out of a file."""
    names = sorted(name for name in tensors if name.startswith("embedding."))
    return [tensors[name].float() for name in names]


class TextualInversion:
    """Scales go from the category's embedding (0) to the learned one (1)."""

    name = "textual inversion"
    rates = (5e-4, 2e-3, 8e-3)
    scales = searched = (0.5, 0.75, 1.0)
    usual = 1.0

    def phrase(self, subject: Subject) -> str:
        """The new word."""
        return subject.word

    def train(
        self, pipe: Any, subject: Subject, settings: Settings, folder: Path
    ) -> list[Artefact]:
        """Learn the word's embedding; as diffusers' script, without clipping of gradients."""
        rows = [row.requires_grad_() for row in first_rows(pipe, subject.category)]
        kept = Kept(subject, folder)
        with frozen(Parts(pipe), checkpointing=False), contextlib.ExitStack() as stack:
            words = NewWords(Parts(pipe).text, {subject.word: rows})
            stack.callback(words.remove)
            task = task_of(pipe, subject.photos, subject.word, masked=settings.masked)
            fit(pipe, [{"params": rows}], [task], settings,
                lambda step: kept.write(step, row_names(rows)), clip=0.0)  # fmt: skip
        return kept.artefacts

    def apply(
        self, pipe: Any, artefact: Artefact, scale: float
    ) -> contextlib.AbstractContextManager[None]:
        """Put the word in."""
        return self.together(pipe, [artefact], scale)

    @contextlib.contextmanager
    def together(self, pipe: Any, artefacts: Sequence[Artefact], scale: float) -> Iterator[None]:
        """Put several words in."""
        rows = {
            artefact.subject.word: [
                torch.lerp(first, row.to(first), scale)
                for first, row in zip(
                    first_rows(pipe, artefact.subject.category),
                    rows_of(load_file(artefact.file)),
                    strict=True,
                )
            ]
            for artefact in artefacts
        }
        words = NewWords(Parts(pipe).text, rows)
        try:
            yield
        finally:
            words.remove()
