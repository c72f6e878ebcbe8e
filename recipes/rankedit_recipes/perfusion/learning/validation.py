"""Judging a concept while it is learned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from rankedit_recipes.diffusion.generating import Sampling
from rankedit_recipes.diffusion.scoring import Scorer
from rankedit_recipes.perfusion.prompts import VALIDATION_PROMPTS


@dataclass(frozen=True)
class Validation:
    """How a concept is judged while it is learned, and which state is kept.

    Attributes:
        scorer: gives picture and text similarity; the state with the best harmonic mean is kept.
        prompts: templates with `{}` for the concept.
        sampling: how the pictures are made.
    """

    scorer: Scorer
    prompts: Sequence[str] = VALIDATION_PROMPTS
    sampling: Sampling = field(default_factory=Sampling)
