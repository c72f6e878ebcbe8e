"""How soon a concept is back: it is taught to the edited model anew, and asked for on the way."""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, cast

from PIL import Image

from rankedit.atomic import atomic_write
from rankedit.progress import Advance
from rankedit_recipes.concepts.edited import Edited
from rankedit_recipes.concepts.errors import ConceptsError
from rankedit_recipes.concepts.probing.judging import Judge
from rankedit_recipes.diffusion.generating import Sampling, generate
from rankedit_recipes.diffusion.text import Pipeline


class Learner(Protocol):
    """What can teach a pipeline a concept from a few pictures, such as `TextualInversion`.

    Attributes:
        name: in reports.
    """

    @property
    def name(self) -> str:
        """In reports."""

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
        """Teach a concept, and pause at each of the steps with what was learned in the pipeline.

        Args:
            pipe: the edited pipeline, to be left as it was when the iterator is closed.
            pictures: of the concept.
            concept: the erased word.
            templates: prompts with one `{}` to learn in.
            steps: ascending; 0 is before anything was learned.
            seed: of everything that is drawn.
            run: folder for its states, so that an interrupted call goes on; None for none.

        Yields:
            A step, and what stands for the concept in prompts.
        """


@dataclass(frozen=True, eq=False)
class Point:
    """What was there after so many steps.

    Attributes:
        step: of learning.
        shown: how far pictures show the concept, in the mean.
        pictures: those.
    """

    step: int
    shown: float
    pictures: tuple[Image.Image, ...] = field(repr=False)


@dataclass(frozen=True, eq=False)
class Curve:
    """How a concept comes back by one learner.

    Attributes:
        concept: what was erased.
        learner: its name.
        before: how far pictures of its own word show it without the edit.
        points: by rising steps.
        examples: it was learned from.
    """

    concept: str
    learner: str
    before: float
    points: tuple[Point, ...]
    examples: tuple[Image.Image, ...] = field(repr=False, default=())

    def back(self, share: float = 0.5) -> float | None:
        """Steps until pictures show it at so large a share of before; None if they never do.

        Between two points it is taken to rise in a straight line.
        """
        goal, last = share * self.before, None
        for point in self.points:
            if point.shown >= goal:
                if last is None:
                    return float(point.step)
                part = (goal - last.shown) / (point.shown - last.shown)
                return last.step + part * (point.step - last.step)
            last = point
        return None

    def __str__(self) -> str:
        back = self.back()
        told = ", ".join(f"{p.shown:.0%} after {p.step}" for p in self.points)
        end = "not back to half" if back is None else f"back to half after {back:.0f} steps"
        return f"{self.before:.0%} before the edit; {told}; {end}"


def check_steps(steps: Sequence[int]) -> None:
    """Refuse steps that do not rise.

    Raises:
        ConceptsError: says what is expected.
    """
    whole = all(isinstance(step, int) and step >= 0 for step in steps)
    if not steps or not whole or list(steps) != sorted(set(steps)):
        raise ConceptsError(
            f"probe: steps must be whole numbers that rise, such as (0, 50, 200), got {steps!r}."
        )


@dataclass(frozen=True)
class Teaching:
    """What all curves of one probe share.

    Attributes:
        pipe: the pipeline.
        edited: the edit.
        judge: of the pictures.
        steps: at which pictures are made.
        sampling: how.
        seed: of what is drawn.
        run: folder of what is kept; None for nothing.
        advance: called after each point.
    """

    pipe: Pipeline
    edited: Edited
    judge: Judge
    steps: tuple[int, ...]
    sampling: Sampling | None
    seed: int
    run: Path | None
    advance: Advance

    def curve(
        self,
        learner: Learner,
        concept: str,
        examples: Sequence[Image.Image],
        templates: Sequence[str],
        pictures: int,
        before: float,
    ) -> Curve:
        """Teach the edited model a concept and look at every step.

        Args:
            learner: teaches.
            concept: the erased word.
            examples: pictures to learn from.
            templates: of the prompts that are asked for and learned in.
            pictures: of each prompt.
            before: how far the unedited model shows it.
        """
        folder = self._folder(learner, concept, examples)
        points = []
        with self.edited.attach(self.pipe), contextlib.ExitStack() as stack:
            taught = learner(
                self.pipe, examples, concept, templates, self.steps, seed=self.seed, run=folder
            )
            # A generator that is left behind would leave the word in the pipeline.
            stack.callback(cast("Generator[tuple[int, str]]", taught).close)
            for step, phrase in taught:
                prompts = [t.format(phrase) for t in templates for _ in range(pictures)]
                seeds = [i % pictures for i in range(len(prompts))]
                made = kept_pictures(
                    self.pipe, prompts, seeds, self.sampling, folder, f"after {step}"
                )
                scores = self.judge(made, concept)
                points.append(Point(step, sum(map(float, scores)) / len(made), tuple(made)))
                self.advance(f"{concept}, {learner.name}, {step} steps: {points[-1].shown:.0%}")
        return Curve(concept, learner.name, before, tuple(points), tuple(examples))

    def _folder(
        self, learner: Learner, concept: str, examples: Sequence[Image.Image]
    ) -> Path | None:
        """Of one learning; another edit, learner, seed or picture has another one."""
        if self.run is None:
            return None
        told = f"{learner!r} {concept} {self.seed} {self.steps} {self.edited.digest()}"
        known = hashlib.sha256(told.encode())
        for picture in examples:
            known.update(picture.tobytes())
        folder = self.run / f"{learner.name.replace(' ', '-')}-{known.hexdigest()[:12]}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder


def kept_pictures(
    pipe: Pipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    sampling: Sampling | None,
    run: Path | None,
    name: str,
) -> list[Image.Image]:
    """Pictures from a folder, where a run before has left those of the same prompts and noise."""
    how = sampling or Sampling()
    if run is None:
        return generate(pipe, prompts, seeds, how)
    made: list[Image.Image] = []
    for start in range(0, len(prompts), how.batch):
        part = slice(start, start + how.batch)
        known = hashlib.sha256(f"{name} {prompts[part]} {seeds[part]} {how}".encode())
        files = [run / f"{known.hexdigest()[:16]}-{i}.png" for i in range(len(prompts[part]))]
        if not all(file.exists() for file in files):
            for file, picture in zip(
                files, generate(pipe, prompts[part], seeds[part], how), strict=True
            ):
                stream = io.BytesIO()
                picture.save(stream, "PNG")
                with atomic_write(file) as temporary:
                    temporary.write_bytes(stream.getvalue())
        made += [Image.open(file).convert("RGB") for file in files]
    return made
