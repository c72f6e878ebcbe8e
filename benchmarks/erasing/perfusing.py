"""Perfusion as a learner of the red team: a recipe that the recipe of concepts does not know."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from PIL import Image
from rankedit_recipes import perfusion
from rankedit_recipes.diffusion.text import Pipeline

import rankedit as rk


@dataclass(frozen=True)
class Perfused:
    """Learns a word and its values, for each number of steps from the beginning.

    The word stands for the category, is locked to its keys and begins as it, as in the paper.

    Attributes:
        moment: of captions.
        batch: pictures in a step.
    """

    moment: rk.SecondMoment = field(repr=False)
    batch: int = 4
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
        """Learn, and stop at each of the steps with the concept in the pipeline."""
        for step in steps:
            if not step:
                yield 0, concept
                continue
            config = replace(
                perfusion.Config(), steps=step, batch=self.batch, seed=seed, flip=False,
                templates=tuple(templates), value_rate=0.3, embedding_rate=0.06,
            )  # fmt: skip
            learned = perfusion.learn(
                pipe, list(pictures), placeholder="<probe>", category=concept,
                statistics=self.moment, config=config, progress=False,
                run=None if run is None else run / f"perfusion-{step}",
            )  # fmt: skip
            with perfusion.apply(pipe, [learned]):
                yield step, learned.phrase
