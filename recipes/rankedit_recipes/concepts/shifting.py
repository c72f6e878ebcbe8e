"""Attributes as directions: what they add to a concept's encodings.

UCE's third use (arXiv 2308.14761, debiasing) lets the encoding k of a concept act like
`k + Σ_i α_i a_i`, with a_i an attribute's encoding. Methods that read words alone take a_i so, from
the attribute alone; methods with contexts take what the attribute adds to every token that carries
the concept, `encoding("a red car") − encoding("a car")`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rankedit_recipes.concepts.contexts import filled
from rankedit_recipes.concepts.errors import ConceptsError
from rankedit_recipes.concepts.prompts import aligned_to, read_prompts
from rankedit_recipes.concepts.reading import (
    Rows,
    carried_rows,
    check_words,
    chosen_of,
    templates_of,
)
from rankedit_recipes.concepts.requests import Request
from rankedit_recipes.concepts.settings import Settings
from rankedit_recipes.diffusion.parts import Parts


@dataclass(frozen=True, eq=False)
class Shifts:
    """A concept's keys, and where each attribute moves them.

    Attributes:
        keys: `[n, in]`, float64.
        word: which of them are of the word's last token, `[n]`.
        directions: `[attributes, n, in]`.
        block: which encoder each key is of, `[n]`.
    """

    keys: Tensor
    word: Tensor
    directions: Tensor
    block: Tensor

    def rows(self, amounts: Sequence[float]) -> Rows:
        """Keys that are to act like `k + Σ_i α_i a_i`."""
        along = torch.tensor(amounts, dtype=torch.float64)
        guides = self.keys + torch.tensordot(along, self.directions, 1)
        return Rows(self.keys, guides, self.word, self.block if bool(self.block.any()) else None)


def read_shifts(parts: Parts, request: Request, settings: Settings) -> Shifts:
    """The keys of a concept that is to be balanced, and its attributes' directions."""
    check_words(parts, [*request.words, *request.to])
    templates = shown_templates(parts, request, settings)
    within = settings.contexts or bool(request.contexts)
    read = [
        _within(parts, request, template, word, settings)
        if within
        else _alone(parts, request, template, word, settings)
        for word in request.words
        for template in templates
    ]
    keys, word, directions, block = zip(*read, strict=True)
    return Shifts(torch.cat(keys), torch.cat(word), torch.cat(directions, 1), torch.cat(block))


def shown_templates(parts: Parts, request: Request, settings: Settings) -> list[str]:
    """Contexts that do not name an attribute themselves.

    Raises:
        ConceptsError: there is none.
    """
    every = templates_of(parts, request, settings)
    found = [t for t in every if not set(t.split()) & set(request.to)]
    if not found:
        raise ConceptsError(
            f"edit: every context of {request.name!r} names one of its attributes "
            f"({', '.join(request.to)}); give contexts=['a photo of a {{}}', ...] without them."
        )
    return found


def _alone(
    parts: Parts, request: Request, template: str, word: str, settings: Settings
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    [source] = read_prompts(parts, [filled(template, word)], [word])
    attributes = read_prompts(parts, request.to, request.to)
    chosen = chosen_of(settings, source.word, source.word)
    # The same for every key of an encoder: an encoding of the attribute itself, as published.
    moved = [
        torch.stack([a.vectors[a.spans[block].ends[-1]] for a in attributes])
        for block in source.block[chosen].tolist()
    ]
    return source.vectors[chosen], source.word[chosen], torch.stack(moved, 1), source.block[chosen]


def _within(
    parts: Parts, request: Request, template: str, word: str, settings: Settings
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    phrases = [f"{attribute} {word}" for attribute in request.to]
    source, *others = read_prompts(
        parts, [filled(template, text) for text in (word, *phrases)], [word, *phrases]
    )
    guides = [other.vectors[aligned_to(source, other)] for other in others]
    directions = torch.stack([guide - source.vectors for guide in guides])
    carried = torch.stack([carried_rows(source, guide, settings) for guide in guides]).any(0)
    chosen = chosen_of(settings, source.word, carried)
    block = source.block[chosen]
    return source.vectors[chosen], source.word[chosen], directions[:, chosen], block
