"""Perfusion with one part changed at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import torch
from rankedit_recipes import perfusion
from rankedit_recipes.diffusion.parts import Parts
from rankedit_recipes.diffusion.words import NewWords
from rankedit_recipes.perfusion.applying.joining import GateForm, joint_edits, settings_of
from rankedit_recipes.perfusion.commands.opening import SANDBOX_CONFIG
from rankedit_recipes.perfusion.learning import training
from rankedit_recipes.perfusion.learning.learner import Learner

import rankedit as rk
from personalisation.methods import Artefact, Subject
from personalisation.perfusions import Perfusion

PLAIN = "as it is"
"""The recipe without a change, which the others are compared with."""


class ZeroValues(Learner):
    """Values begin at zero, not at what the layer makes of the category; rates stay the same."""

    def __init__(self, parts: Parts, *args: Any) -> None:
        super().__init__(parts, *args)
        with torch.no_grad():
            for name in set(parts.targets.values) & set(self.targets):
                self.targets[name].zero_()


class Ungated(Learner):
    """The gate is a straight line: a plain rank-one edit (ROME)."""

    def edits(self, key: torch.Tensor | None = None) -> dict[str, rk.Edit]:
        """The edits with the identity for a gate."""
        line = rk.Identity()
        return {name: edit.with_gate(line) for name, edit in super().edits(key).items()}


class Changed(Perfusion):
    """Perfusion with another learner.

    Args:
        statistics: as Perfusion's.
        name: as tables show it.
        learner: the class that holds what is learned.
    """

    def __init__(self, statistics: rk.SecondMoment, name: str, learner: type[Learner]) -> None:
        super().__init__(statistics, name)
        self._learner = learner

    def learn(self, pipe: Any, subject: Subject, config: perfusion.Config) -> perfusion.Concept:
        """The recipe's own call, with the learner exchanged."""
        with mock.patch.object(training, "Learner", self._learner):
            return super().learn(pipe, subject, config)


class GateOff(Changed):
    """The ROME limit; the scale is the strength of the edit."""

    scales: Sequence[float] = (0.5, 0.75, 1.0, 1.25)

    def __init__(self, statistics: rk.SecondMoment, name: str) -> None:
        super().__init__(statistics, name, Ungated)

    @contextlib.contextmanager
    def together(self, pipe: Any, artefacts: Sequence[Artefact], scale: float) -> Iterator[None]:
        """The concepts' edits without their gates."""
        concepts = [perfusion.Concept.load(artefact.file) for artefact in artefacts]
        settings = settings_of(concepts, None, None, None, 1.0)
        gated = joint_edits(Parts(pipe), concepts, settings, GateForm(floor=None))
        edits = {name: edit.with_gate(rk.Identity()) for name, edit in gated.items()}
        words = NewWords(Parts(pipe).text, {c.trigger: c.embeddings for c in concepts})
        try:
            with rk.attach(Parts(pipe).denoiser.module, edits, strength=scale):
                yield
        finally:
            words.remove()


@dataclass(frozen=True)
class Ablation:
    """One change.

    Attributes:
        method: Perfusion with the change.
        photos: how many are given.
        masks: whether the photos have masks.
        untrained: nothing is trained: the study's own concept file is applied differently.
    """

    method: Perfusion
    photos: int = 5
    masks: bool = True
    untrained: bool = False

    def given(self, subject: Subject) -> Subject:
        """The subject as this ablation sees it."""
        if self.masks:
            return subject
        bare = tuple(perfusion.Photo(p.name, p.image) for p in subject.photos)
        return replace(subject, photos=bare)


def ablations(
    moment: rk.SecondMoment,
    captions: Sequence[str],
    statistics: Callable[[Sequence[str]], rk.SecondMoment],
) -> Mapping[str, Ablation]:
    """All of them by name.

    Args:
        moment: the study's statistics.
        captions: that they are of.
        statistics: makes statistics of captions.
    """
    flat = rk.SecondMoment(moment.dim, provenance=moment.provenance)
    flat.update(torch.eye(moment.dim))

    def changed(name: str, **config: Any) -> Ablation:
        return Ablation(Perfusion(moment, name, replace(SANDBOX_CONFIG, **config)))

    def of(name: str, other: rk.SecondMoment) -> Ablation:
        return Ablation(Perfusion(other, name))

    found = [
        Ablation(Perfusion(moment, PLAIN), untrained=True),
        Ablation(Perfusion(moment, "global lock", lock="global"), untrained=True),
        changed("all keys locked", lock="local"),
        changed("all keys trained", lock="trained"),
        changed("word as the noun", adjective=""),
        changed("word as the noun, all keys locked", adjective="", lock="local"),
        changed("word as the noun, all keys trained", adjective="", lock="trained"),
        Ablation(GateOff(moment, "gate off (ROME)")),
        Ablation(Perfusion(moment, "mask off"), masks=False),
        Ablation(Perfusion(moment, "one photo"), photos=1),
        Ablation(Changed(moment, "values from zero", ZeroValues)),
        of("covariance = identity", flat),
        changed("training bias 0.6", bias=0.6),
        changed("training bias 0.9", bias=0.9),
        changed("training temperature 0.05", temperature=0.05),
        changed("training temperature 0.2", temperature=0.2),
        of("10 captions", statistics(captions[:10])),
        of("100 captions", statistics(captions[:100])),
        of("1,000 captions", statistics(captions[:1000])),
        Ablation(
            Perfusion(moment, "temperature 0.1 at inference", temperature=0.1), untrained=True
        ),
        changed("key gradient", key_gradient=True),
        changed("key of first places only", contexts=()),
        Ablation(Perfusion(moment, "no dead zone", floor=None), untrained=True),
    ]
    return {one.method.name: one for one in found}
