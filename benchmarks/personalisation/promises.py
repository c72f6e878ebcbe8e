"""What the Perfusion recipe promises, one question at a time; answers are kept in a folder."""

from __future__ import annotations

import hashlib
import itertools
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from baselines import CategoryWord, Described
from rankedit_recipes import perfusion, sandbox
from rankedit_recipes.diffusion.parts import Parts
from rankedit_recipes.perfusion.applying.base import base_of
from rankedit_recipes.perfusion.locks import PRESETS
from torch import Tensor

from personalisation.costs import picture_times, step_times
from personalisation.measures import Marks
from personalisation.pairs import asked as pair_prompts
from personalisation.prompts import Prompt
from personalisation.world import World
from rankedit.atomic import atomic_write

GATES: Mapping[str, Mapping[str, Any]] = {
    "the paper's gate": {"floor": None},
    "the normalised gate": {"normalised": True, "floor": None},
    "the concept's own dead zone": {},
}
"""Ways to keep a concept from what it is not asked for."""

ONE_PHOTO_STEPS = 200
"""One photo is learned sooner, and learned by heart after that."""

FIGURES = ("identity", "right", "category", "scene", "other", "colour", "relation", "text")
"""What is asked of pictures; `right`: nearest to its own photos among those of all concepts."""

Means = dict[str, float]


class Promises:
    """Answers, one for each concept or pair.

    Args:
        world: the base model, its judges and the concepts.
        config: how concepts are learned.
    """

    def __init__(self, world: World, config: perfusion.Config) -> None:
        self.world, self.config = world, config
        # Answers of another base model, other settings or presets are never mistaken for these.
        settings = repr((config.digest(), PRESETS[config.lock])).encode()
        about = f"{base_of(Parts(world.pipe))}-{hashlib.sha256(settings).hexdigest()[:16]}"
        self.folder = world.folder.parent / about

    def kept(self, name: str, answer: Callable[[], Any]) -> Any:
        """An answer from the folder, or worked out and written there."""
        file = self.folder / "answers" / f"{name}.json"
        if not file.exists():
            found = answer()
            file.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(file) as temporary:
                temporary.write_text(json.dumps(found))
        return json.loads(file.read_text())

    # ------------------------------------------------------------------ learning

    def learned(self, concept: sandbox.Concept, photos: int = 5) -> perfusion.Concept:
        """The concept's file, made if it is not there."""
        name = f"{concept.name}-{photos}"
        file = self.folder / "concepts" / f"{name}.safetensors"

        def learn() -> float:
            start = time.perf_counter()
            subject = self.world.subject(concept, photos)
            made = perfusion.learn(
                self.world.pipe, list(subject.photos), placeholder=subject.word,
                category=subject.category, statistics=self.world.moment, progress=False,
                config=self.config if photos > 1 else replace(self.config, steps=ONE_PHOTO_STEPS),
            )  # fmt: skip
            file.parent.mkdir(parents=True, exist_ok=True)
            made.save(file)
            return time.perf_counter() - start

        self.kept(f"seconds-{name}", learn)
        return perfusion.Concept.load(file)

    # ------------------------------------------------------------------ pictures

    def _drawn(
        self, made: Sequence[perfusion.Concept], asked: Sequence[tuple[Prompt, int]], phrase: str,
        **how: Any,
    ) -> Tensor:  # fmt: skip
        if not made:
            return self.world.draw(asked, phrase)
        with perfusion.apply(self.world.sampler, list(made), **how):
            return self.world.draw(asked, phrase)

    def means(self, concept: sandbox.Concept, kind: str, **how: Any) -> Means:
        """Mean figures over new prompts.

        Args:
            concept: which.
            kind: `"word"`: the category's word alone; `"described"`: all that words can say of it;
                `"one"`: learned from one photo; `"beside"`: while a second concept is loaded;
                anything else: learned from five photos.
            how: arguments of `perfusion.apply`.
        """
        told = "-".join([kind, *(f"{name}={value}" for name, value in how.items())])

        def answer() -> Means:
            asked = self.world.asked(concept)
            if kind in ("word", "described"):
                words = CategoryWord() if kind == "word" else Described(concept)
                pixels = self._drawn([], asked, words.phrase(self.world.subject(concept)))
            else:
                made = [self.learned(concept, 1 if kind == "one" else 5)]
                if kind == "beside":
                    made.append(self.learned(self._other(concept)))
                pixels = self._drawn(made, asked, made[0].phrase, **how)
            judges = self.world.judges
            found = _means(judges.marks(concept, pixels, [p for p, _ in asked]))
            near = judges.nearest((concept,), self.world.concepts(), pixels)["both_right"]
            return {**found, "right": statistics.mean(near)}

        return dict(self.kept(f"{concept.name}-{told}", answer))

    def _other(self, concept: sandbox.Concept) -> sandbox.Concept:
        """The next concept of another category."""
        every = self.world.concepts()
        after = every[every.index(concept) + 1 :] + every
        return next(other for other in after if other.category != concept.category)

    def off(self, concept: sandbox.Concept, gate: str) -> float:
        """How much less prompts without the concept change by it than by another seed."""

        def answer() -> float:
            asked = self.world.off(concept)
            base, reseeded = (self.world.base(concept, asked, s).float() for s in (0, 5000))
            made = self.learned(concept)
            inside = self._drawn([made], asked, concept.category, **GATES[gate]).float()
            changed = float((inside - base).abs().mean())
            return float((reseeded - base).abs().mean()) / changed if changed else float("inf")

        return float(self.kept(f"{concept.name}-off-{gate.replace(' ', '-')}", answer))

    def pair(self, one: sandbox.Concept, two: sandbox.Concept, kind: str, **how: Any) -> Means:
        """Two things in one picture: share of pictures that are right, and why not.

        Args:
            one: a concept.
            two: another one.
            kind: `"described"`: all that words can say of them; else learned and merged.
            how: arguments of `perfusion.apply`.
        """
        told = "-".join([kind, *(f"{name}={value}" for name, value in how.items())])

        def answer() -> Means:
            if kind == "described":
                made: list[perfusion.Concept] = []
                words = [Described(c).phrase(self.world.subject(c)) for c in (one, two)]
            else:
                made = [self.learned(one), self.learned(two)]
                words = [concept.phrase for concept in made]
            asked = pair_prompts(words[0], words[1], self.world.plan.pair_pictures)
            pixels = self._drawn(made, asked, "", **how)
            found = self.world.judges.nearest((one, two), self.world.concepts(), pixels)
            return {name: statistics.mean(values) for name, values in found.items()}

        return dict(self.kept(f"pair-{one.name}-{two.name}-{told}", answer))

    def pairs(self) -> list[tuple[sandbox.Concept, sandbox.Concept]]:
        """Pairs of different categories, spread over all that there are."""
        every = list(itertools.combinations(self.world.concepts(), 2))
        apart = [(a, b) for a, b in every if a.category != b.category]
        return apart[:: max(1, len(apart) // self.world.plan.pairs)][: self.world.plan.pairs]

    # ------------------------------------------------------------------ cost

    def costs(self) -> Means:
        """Ratios of times: a step to textual inversion's, a picture to one without concepts."""

        def answer() -> Means:
            one, two = self.pairs()[0]
            world = self.world
            ours, theirs = step_times(world.pipe, world.moment, one)
            made = [self.learned(one), self.learned(two)]
            prompt = Prompt("a photo of a cat on the grass", "grass")
            none, (single, double) = picture_times(
                world.pipe, made, lambda: world.draw([(prompt, 1)], "", world.pipe)
            )
            return {
                "step": ours / theirs, "one": single, "two": double,
                "step_seconds": ours, "picture_seconds": none, "threads": torch.get_num_threads(),
            }  # fmt: skip

        return dict(self.kept("costs", answer))


def _means(marks: Marks) -> Means:
    found = {}
    for name in FIGURES:
        told = [mark for mark in marks.get(name, ()) if mark is not None]
        if told:
            found[name] = statistics.mean(told)
    return found
