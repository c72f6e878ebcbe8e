"""The study as units of work that several processes share and that are done once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rankedit_recipes import sandbox

from personalisation import judging
from personalisation.choosing import SHARED, slug
from personalisation.pairs import PAIRED, paired, pairs_of
from personalisation.retraining import RETRAININGS, methods_of, retrained
from personalisation.study import Study

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


def units_of(study: Study) -> list[Unit]:
    """A small complete table first, which then grows concept by concept."""
    concepts = study.world.concepts()
    pairs = pairs_of(concepts, study.plan.pairs)
    found = _search(study)
    for number, concept in enumerate(concepts):
        found += _of_concept(study, number, concept)
        found += [unit for one, two in pairs if two == concept for unit in _pair(study, one, two)]
        # One concept's ablations cost as much as a concept of the table: they lag behind.
        if LAG <= number < LAG + study.plan.ablations:
            found += _ablations(study, concepts[number - LAG])
    late = concepts[max(0, len(concepts) - LAG) : study.plan.ablations]
    found += [unit for concept in late for unit in _ablations(study, concept)]
    return found + _retrainings(study, concepts[: study.plan.retrained])


def _retrainings(study: Study, concepts: list[sandbox.Concept]) -> list[Unit]:
    return [
        Unit(f"{kind.folder}/{slug(name)}/{concept.name}.json",
             lambda k=kind, m=method, c=concept: retrained(k, study, m, c))
        for kind in RETRAININGS
        for concept in concepts
        for name, method in methods_of(kind, study).items()
    ]  # fmt: skip


def _search(study: Study) -> list[Unit]:
    return [
        Unit(f"search/{slug(name)}/{concept.name}-{rate:g}.json",
             lambda m=method, c=concept, r=rate: judging.searched(study, m, c, r))
        for concept in study.world.search_concepts()
        for name, method in study.methods.items()
        if not (study.plan.shared and name in SHARED)
        for rate in method.rates[-study.plan.rates :]
    ]  # fmt: skip


def _of_concept(study: Study, number: int, concept: sandbox.Concept) -> list[Unit]:
    found = [
        Unit(f"main/references/{concept.name}.json", lambda: judging.references(study, concept))
    ]
    for name, method in study.methods.items():
        file = f"main/{slug(name)}/{concept.name}.json"
        found.append(Unit(file, lambda m=method: judging.judged(study, m, concept)))
    if number < ATTENTION:
        found.append(
            Unit(f"attention/{concept.name}.json", lambda: judging.attended(study, concept))
        )
    return found


def _pair(study: Study, one: sandbox.Concept, two: sandbox.Concept) -> list[Unit]:
    return [
        Unit(f"pairs/{slug(name)}/{one.name}+{two.name}.json",
             lambda n=name: paired(study, n, one, two))
        for name in PAIRED
    ]  # fmt: skip


def _ablations(study: Study, concept: sandbox.Concept) -> list[Unit]:
    return [
        Unit(f"ablations/{slug(name)}/{concept.name}.json",
             lambda o=one: judging.ablated(study, o, concept))
        for name, one in study.ablations.items()
    ]  # fmt: skip
