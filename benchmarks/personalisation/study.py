"""The study as units of work that several processes share and that are done once."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baselines import METHODS, CategoryWord, Described
from rankedit_recipes import sandbox
from torch import Tensor

from personalisation.ablations import Ablation, ablations
from personalisation.attention import studied
from personalisation.choosing import SHARED, Choice, chosen, slug
from personalisation.measures import real_photos
from personalisation.methods import Artefact, Method, trained
from personalisation.pairs import PAIRED, paired, pairs_of
from personalisation.perfusions import Perfusion
from personalisation.prompts import Prompt, crossed, prompts_for, truth
from personalisation.retraining import RETRAININGS, methods_of, retrained
from personalisation.world import World

Asked = list[tuple[Prompt, int]]
LAG = 2
"""How many concepts of the table come before the ablations of a concept."""
ATTENTION = 2
"""Concepts whose attention is recorded, the first ones."""


@dataclass(frozen=True)
class Unit:
    """One piece of work; its result is a JSON file.

    Attributes:
        file: of the result, relative to the study's folder.
        work: gives the result; None if something that it needs is not there yet.
    """

    file: str
    work: Callable[[], Any]


class Study:
    """All units in the order in which they are worth doing.

    Args:
        folder: where everything is kept.
        world: the world.
    """

    def __init__(self, folder: Path, world: World) -> None:
        self.folder, self.world, self.plan = folder, world, world.plan
        self.perfusion = Perfusion(world.moment)
        self.methods: dict[str, Method] = {"Perfusion": self.perfusion, **METHODS}
        self.ablations = ablations(world.moment, world.captions, world.statistics)

    def units(self) -> list[Unit]:
        """A small complete table first, which then grows concept by concept."""
        concepts = self.world.concepts()
        pairs = pairs_of(concepts, self.plan.pairs)
        found = self._search()
        for number, concept in enumerate(concepts):
            found += self._of_concept(number, concept)
            found += [unit for one, two in pairs if two == concept for unit in self._pair(one, two)]
            # One concept's ablations cost as much as a concept of the table: they lag behind.
            if LAG <= number < LAG + self.plan.ablations:
                found += self._ablations(concepts[number - LAG])
        late = concepts[max(0, len(concepts) - LAG) : self.plan.ablations]
        found += [unit for concept in late for unit in self._ablations(concept)]
        return found + self._retrainings(concepts[: self.plan.retrained])

    def _retrainings(self, concepts: list[sandbox.Concept]) -> list[Unit]:
        return [
            Unit(f"{kind.folder}/{slug(name)}/{concept.name}.json",
                 lambda k=kind, m=method, c=concept: retrained(k, self, m, c))
            for kind in RETRAININGS
            for concept in concepts
            for name, method in methods_of(kind, self).items()
        ]  # fmt: skip

    def _search(self) -> list[Unit]:
        return [
            Unit(f"search/{slug(name)}/{concept.name}-{rate:g}.json",
                 lambda m=method, c=concept, r=rate: self.searched(m, c, r))
            for concept in self.world.search_concepts()
            for name, method in self.methods.items()
            if not (self.plan.shared and name in SHARED)
            for rate in method.rates[-self.plan.rates :]
        ]  # fmt: skip

    def _of_concept(self, number: int, concept: sandbox.Concept) -> list[Unit]:
        found = [Unit(f"main/references/{concept.name}.json", lambda: self.references(concept))]
        for name, method in self.methods.items():
            file = f"main/{slug(name)}/{concept.name}.json"
            found.append(Unit(file, lambda m=method: self.judged(m, concept)))
        if number < ATTENTION:
            found.append(Unit(f"attention/{concept.name}.json", lambda: self.attended(concept)))
        return found

    def _pair(self, one: sandbox.Concept, two: sandbox.Concept) -> list[Unit]:
        return [
            Unit(f"pairs/{slug(name)}/{one.name}+{two.name}.json",
                 lambda n=name: paired(self, n, one, two))
            for name in PAIRED
        ]  # fmt: skip

    def _ablations(self, concept: sandbox.Concept) -> list[Unit]:
        return [
            Unit(f"ablations/{slug(name)}/{concept.name}.json",
                 lambda o=one: self.ablated(o, concept))
            for name, one in self.ablations.items()
        ]  # fmt: skip

    # ------------------------------------------------------------------ settings

    def searched(self, method: Method, concept: sandbox.Concept, rate: float) -> list[dict]:
        """Train with one rate and judge every step and scale on a concept of the search."""
        folder = self.folder / "trained" / slug(method.name) / f"{concept.name}-{rate:g}"
        made = trained(method, self.world.pipe, self.world.subject(concept),
                       self.world.settings(rate), folder)  # fmt: skip
        asked = self.world.searched(concept)
        found = []
        for artefact in made:
            for scale in method.searched:
                marks = self.marks(method, artefact, scale, concept, asked)
                found.append({"rate": rate, "step": artefact.step, "scale": scale, "marks": marks})
        return found

    def choice(self, method: Method) -> Choice | None:
        """The setting that the search chose; None while it is not done."""
        return chosen(self, method)

    # ------------------------------------------------------------------ the table

    def artefacts(self, method: Method, concept: sandbox.Concept, choice: Choice) -> list[Artefact]:
        """A method's files of a concept of the study."""
        folder = self.folder / "trained" / slug(method.name) / f"{concept.name}-{choice.rate:g}"
        settings = self.world.settings(choice.rate)
        return trained(method, self.world.pipe, self.world.subject(concept), settings, folder)

    def judged(self, method: Method, concept: sandbox.Concept) -> dict | None:
        """All points of a method on a concept, and the further figures of its chosen setting."""
        choice = self.choice(method)
        if choice is None:
            return None
        made = self.artefacts(method, concept, choice)
        if method is self.perfusion:
            made, choice = made[-1:], Choice(choice.rate, made[-1].step, choice.scale)
        scales = list(method.scales) if self.plan.every_scale or method is self.perfusion else []
        points = []
        for artefact in made:
            for scale in dict.fromkeys([*scales, choice.scale]):
                final = (artefact.step, scale) == (choice.step, choice.scale)
                asked = self.world.asked(concept) if final else self.world.curve(concept)
                seeds = self.plan.seeds if final else 1
                marks = self.marks(method, artefact, scale, concept, asked, seeds)
                points.append({"step": artefact.step, "scale": scale, "marks": marks})
        best = next(artefact for artefact in made if artefact.step == choice.step)
        cost = json.loads((best.file.parent / "training.json").read_text())
        share = choice.step / self.plan.steps[-1]
        return {
            "choice": vars(choice),
            "points": points,
            "off": self.off(method, best, choice.scale, concept),
            "kilobytes": best.bytes / 1000,
            "train_seconds": cost["seconds"] * share,
            "train_megabytes": cost["megabytes"],
            "overhead": self.overhead(method, best, choice.scale),
        }

    def marks(
        self, method: Method, artefact: Artefact, scale: float, concept: sandbox.Concept,
        asked: Asked, seeds: int = 1,
    ) -> dict[str, list]:  # fmt: skip
        """What the judges say about one setting."""
        with method.apply(self.world.sampler, artefact, scale):
            pixels = self.world.draw(asked, method.phrase(artefact.subject))
        marks = self.world.judges.marks(concept, pixels, [prompt for prompt, _ in asked])
        if seeds > 1:
            marks["diversity"] = self.world.judges.diversity(pixels, seeds)
        return _rounded(marks)

    def references(self, concept: sandbox.Concept) -> dict[str, dict]:
        """The ends of the scale: the base model, and real photos."""
        world, asked = self.world, self.world.asked(concept)
        prompts = [prompt for prompt, _ in asked]
        word = CategoryWord()
        made = trained(word, world.pipe, world.subject(concept), world.settings(0.0),
                       self.folder / "trained" / "category-word" / concept.name)  # fmt: skip
        copies = real_photos(concept, len(prompts), seed=9)
        drawn = truth(concept, prompts, seed=3)
        found = {
            **{
                one.name: self.marks(one, made[-1], 1.0, concept, asked, self.plan.seeds)
                for one in (word, Described(concept))
            },
            "prompts drawn with the concept": self.seen(concept, drawn, prompts),
            "photos whatever the prompt": self.seen(concept, copies, prompts),
        }
        off = world.judges.kept(
            world.base(concept, world.off(concept), 0), _prompts(world.off(concept))
        )
        leak = world.judges.identity(concept, world.draw(world.plain(concept), concept.category))
        return {"marks": found, "off": _rounded({"off_kept": off, "leak": leak})}

    def seen(self, concept: sandbox.Concept, pixels: Tensor, prompts: list[Prompt]) -> dict:
        """Marks of pictures that no pipeline made."""
        marks = self.world.judges.marks(concept, pixels, prompts)
        if self.plan.seeds > 1:
            marks["diversity"] = self.world.judges.diversity(pixels, self.plan.seeds)
        return _rounded(marks)

    def off(
        self, method: Method, artefact: Artefact, scale: float, concept: sandbox.Concept
    ) -> dict[str, list]:
        """What a concept in the pipeline does to prompts without it."""
        world, asked, plain = self.world, self.world.off(concept), self.world.plain(concept)
        before, reseeded = (world.base(concept, asked, shift) for shift in (0, 5_000_000))
        with method.apply(world.sampler, artefact, scale):
            pixels = world.draw(asked, "")
            own = world.draw(plain, concept.category)
        changed = (pixels.float() - before.float()).abs().mean((1, 2, 3))
        usual = (reseeded.float() - before.float()).abs().mean()
        return _rounded({
            "off_kept": world.judges.kept(pixels, _prompts(asked)),
            "off_changed": (changed / usual).tolist(),
            "leak": world.judges.identity(concept, own),
        })  # fmt: skip

    def overhead(self, method: Method, artefact: Artefact, scale: float, pairs: int = 5) -> float:
        """Time of a picture with the concept over that without, in turns, in float32."""
        asked, pipe = [(Prompt("a photo of a house on the grass", "grass"), 1)], self.world.pipe
        ratios = []
        for _ in range(pairs):
            bare = _seconds(lambda: self.world.draw(asked, "", pipe))
            with method.apply(pipe, artefact, scale):
                ratios.append(_seconds(lambda: self.world.draw(asked, "", pipe)) / bare)
        return statistics.median(ratios)

    # ------------------------------------------------------------------ attention, ablations

    def attended(self, concept: sandbox.Concept, count: int = 8) -> dict[str, Any] | None:
        """Attention of the word for the concept, by method, in pictures with a second object."""
        prompts = [p for p in prompts_for(concept.category, 3 * count) if p.other][:count]
        asked = crossed(prompts, 1, first=40_000)
        word = CategoryWord()
        found = {word.name: studied(self.world, concept, concept.category, asked)}
        for name in ("textual inversion", "Perfusion"):
            method = self.methods[name]
            choice = self.choice(method)
            if choice is None:
                return None
            made = [a for a in self.artefacts(method, concept, choice) if a.step == choice.step]
            with method.apply(self.world.sampler, made[-1], choice.scale):
                own = made[-1].subject
                found[name] = studied(self.world, concept, method.phrase(own), asked, own.word)
        return found

    def ablated(self, one: Ablation, concept: sandbox.Concept) -> list[dict] | None:
        """Perfusion with a change, at a few scales."""
        choice = self.choice(self.perfusion)
        if choice is None:
            return None
        if one.untrained:
            made = self.artefacts(self.perfusion, concept, choice)[-1]
        else:
            folder = self.folder / "trained" / "ablations" / slug(one.method.name) / concept.name
            subject = one.given(self.world.subject(concept, one.photos))
            settings = self.world.settings(choice.rate)
            made = trained(one.method, self.world.pipe, subject, settings, folder)[-1]
        asked = self.world.curve(concept)
        own = one.method.scales is not Perfusion.scales
        scales = one.method.scales if own else self.plan.ablation_scales
        return [
            {"scale": s, "marks": self.marks(one.method, made, s, concept, asked)} for s in scales
        ]


def _prompts(asked: Asked) -> list[Prompt]:
    return [prompt for prompt, _ in asked]


def _rounded(marks: Mapping[str, Sequence[float | None]]) -> dict[str, list]:
    return {
        name: [None if mark is None else round(mark, 4) for mark in row]
        for name, row in marks.items()
    }


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
