"""Perfusion as a method of the study: one training, a gate for the scale."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rankedit_recipes import perfusion
from rankedit_recipes.perfusion.commands.opening import SANDBOX_CONFIG
from rankedit_recipes.perfusion.locks import PRESETS, Floor, Lock
from rankedit_recipes.perfusion.naming import Naming

import rankedit as rk
from personalisation.methods import Artefact, Kept, Settings, Subject

BIASES = (1.4, 1.2, 1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4)
"""From text first to concept first."""


class Perfusion:
    """The scale is the gate's bias: lower lets more of the concept through.

    Args:
        statistics: of what cross-attention reads, over captions.
        name: as tables show it.
        config: of the recipe, by default the sandbox's; steps, batch, seed, flips and rates come
            from the study.
        lock: at inference; the concept's own by default.
        temperature: of the gate at inference.
        floor: of the dead zone at inference; the concept's own by default.
    """

    rates: Sequence[float] = (0.1, 0.3, 0.9)
    scales: Sequence[float] = BIASES
    searched: Sequence[float] = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)
    usual = PRESETS["coarse"].bias

    def __init__(
        self,
        statistics: rk.SecondMoment,
        name: str = "Perfusion",
        config: perfusion.Config | None = None,
        *,
        lock: Lock | None = None,
        temperature: float = PRESETS["local"].temperature,
        floor: Floor = "own",
    ) -> None:
        self.statistics, self.name = statistics, name
        self.config = config or SANDBOX_CONFIG
        self.lock, self.temperature, self.floor = lock, temperature, floor

    def phrase(self, subject: Subject) -> str:
        """The new word, before the category if it is an adjective."""
        return Naming(subject.word, subject.category, self.config.adjective).phrase

    def configured(self, settings: Settings) -> perfusion.Config:
        """The recipe's settings for the study's; the word's rate is a fifth, as in the paper."""
        return replace(
            self.config,
            steps=settings.steps[-1],
            batch=settings.batch,
            seed=settings.seed,
            flip=settings.flip,
            decay=settings.decay,
            value_rate=settings.rate,
            embedding_rate=settings.rate / 5,
        )

    def train(
        self, pipe: Any, subject: Subject, settings: Settings, folder: Path
    ) -> list[Artefact]:
        """Learn the concept; only the last state is kept: the gate does the rest."""
        made = self.learn(pipe, subject, self.configured(settings))
        kept = Kept(subject, folder)
        scratch = folder / "concept.tmp"
        made.save(scratch)
        kept.write_bytes(settings.steps[-1], scratch.read_bytes())
        scratch.unlink()
        return kept.artefacts

    def learn(self, pipe: Any, subject: Subject, config: perfusion.Config) -> perfusion.Concept:
        """The recipe's own call."""
        return perfusion.learn(
            pipe, list(subject.photos), placeholder=subject.word, category=subject.category,
            statistics=self.statistics, config=config, progress=False,
        )  # fmt: skip

    def apply(
        self, pipe: Any, artefact: Artefact, scale: float
    ) -> contextlib.AbstractContextManager[None]:
        """Put the concept in, with the scale as bias."""
        return self.together(pipe, [artefact], scale)

    @contextlib.contextmanager
    def together(self, pipe: Any, artefacts: Sequence[Artefact], scale: float) -> Iterator[None]:
        """Several concepts, merged by the joint projection."""
        concepts = [perfusion.Concept.load(artefact.file) for artefact in artefacts]
        how = {"temperature": self.temperature, "lock": self.lock, "floor": self.floor}
        with perfusion.apply(pipe, concepts, bias=scale, **how):
            yield
