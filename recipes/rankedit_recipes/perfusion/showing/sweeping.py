"""One training, many settings of the gate: the trade-off between concept and text."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from rankedit.progress import progress as show_progress
from rankedit_recipes.diffusion.captions import listed_texts
from rankedit_recipes.diffusion.generating import Sampling, generate
from rankedit_recipes.diffusion.scoring import Scorer, Scores
from rankedit_recipes.diffusion.text import Pipeline
from rankedit_recipes.perfusion.applying.applied import ConceptLike
from rankedit_recipes.perfusion.applying.apply import apply
from rankedit_recipes.perfusion.concept import Concept
from rankedit_recipes.perfusion.locks import HeldLock
from rankedit_recipes.perfusion.prompts import VALIDATION_PROMPTS, filled, in_words

# From where the concept wins to where the text does, around the paper's 0.6 to 0.75.
BIASES = (0.3, 0.5, 0.6, 0.7, 0.8, 1.0)
# The paper's, of training and of making pictures.
TEMPERATURES = (0.1, 0.15)


@dataclass(frozen=True)
class Point:
    """One setting of the gate and how it scores.

    Attributes:
        bias: of the gate.
        temperature: of the gate.
        scores: mean over prompts and seeds.
    """

    bias: float
    temperature: float
    scores: Scores


def sweep(
    pipe: Pipeline,
    concept: ConceptLike,
    photos: Sequence[Image.Image],
    scorer: Scorer,
    *,
    prompts: Sequence[str] = VALIDATION_PROMPTS,
    biases: Sequence[float] = BIASES,
    temperatures: Sequence[float] = TEMPERATURES,
    seeds: Sequence[int] = (0,),
    lock: HeldLock | None = None,
    sampling: Sampling | None = None,
    progress: bool = True,
) -> list[Point]:
    """Scores for every bias and temperature; nothing is trained or loaded again.

    Args:
        pipe: the pipeline, without concepts in it.
        concept: a concept or its file.
        photos: of the concept, for the scorer.
        scorer: gives picture and text similarity.
        prompts: templates with `{}` for the concept.
        biases: to try.
        temperatures: to try.
        seeds: of the pictures of each prompt; the same for every setting.
        lock: as in `apply`.
        sampling: how pictures are made.
        progress: show it.

    Returns:
        A point for each setting, temperatures inside biases.
    """
    loaded = concept if isinstance(concept, Concept) else Concept.load(concept)
    pairs = list(itertools.product(listed_texts("sweep", "prompts", prompts), seeds))
    asked = filled([prompt for prompt, _ in pairs], loaded.phrase)
    words = in_words([prompt for prompt, _ in pairs], loaded.category)
    chosen = [seed for _, seed in pairs]
    settings = list(itertools.product(biases, temperatures))
    points = []
    with (
        apply(pipe, loaded, lock=lock) as applied,
        show_progress("sweep", len(settings), shown=progress) as advance,
    ):
        for bias, temperature in settings:
            # In place: nothing is attached or compiled anew between settings.
            applied.set(bias=bias, temperature=temperature)
            scores = scorer(generate(pipe, asked, chosen, sampling), words, photos)
            points.append(Point(bias, temperature, scores))
            advance(f"bias {bias:g}: picture {scores.picture:.3f}, text {scores.text:.3f}")
    return points


def pareto_front(points: Sequence[Point]) -> list[Point]:
    """The points that no other one beats in both scores, from text first to concept first."""

    def beaten(point: Point) -> bool:
        return any(
            other.scores.picture >= point.scores.picture
            and other.scores.text >= point.scores.text
            # Two that are equal would beat each other, and neither would be on the front.
            and other.scores != point.scores
            for other in points
        )

    return sorted((p for p in points if not beaten(p)), key=lambda p: p.scores.picture)
