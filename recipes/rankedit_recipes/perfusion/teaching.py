"""Perfusion as one who teaches a model what an edit took out, for `concepts.probe`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from PIL import Image

import rankedit as rk
from rankedit_recipes.diffusion.text import Pipeline
from rankedit_recipes.perfusion.applying.apply import apply
from rankedit_recipes.perfusion.learning.config import Config
from rankedit_recipes.perfusion.learning.training import learn


@dataclass(frozen=True)
class Teacher:
    """A learner for `concepts.probe(..., learners=[...])`: a word and its values, learned anew.

    The word stands for the category, is locked to its keys and begins as it, as in the paper. For
    each number of steps it is learned from the beginning, for its rates fall towards the last one.

    Attributes:
        statistics: what `second_moment` gave for captions.
        config: of the learning; steps, seed and templates are those of the probe.
        word: that is learned.
    """

    statistics: rk.SecondMoment = field(repr=False)
    config: Config = field(default_factory=Config)
    word: str = "<probe>"
    name = "Perfusion"

    def __call__(
        self,
        pipe: Pipeline,
        pictures: Sequence[Image.Image],
        concept: str,
        templates: Sequence[str],
        steps: Sequence[int],
        *,
        seed: int,
        run: Path | None,
    ) -> Iterator[tuple[int, str]]:
        """Learn, and stop at each of the steps with the concept in the pipeline.

        Args:
            pipe: the edited pipeline; as it was when the iterator is closed.
            pictures: of the concept.
            concept: the erased word, which is the category.
            templates: prompts with one `{}` to learn in.
            steps: ascending; at 0 the erased word itself is asked for.
            seed: of what learning draws.
            run: folder for checkpoints; None for none.

        Yields:
            A step, and what stands for the concept in prompts.
        """
        for step in steps:
            if not step:
                yield 0, concept
                continue
            config = replace(self.config, steps=step, seed=seed, templates=tuple(templates))
            learned = learn(
                pipe, list(pictures), placeholder=self.word, category=concept,
                statistics=self.statistics, config=config, progress=False,
                run=None if run is None else run / f"perfusion-{step}",
            )  # fmt: skip
            with apply(pipe, [learned]):
                yield step, learned.phrase
