"""Which setting of a method goes into the table: what a search on other concepts found best."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rankedit_recipes import sandbox

from personalisation.fronts import balance
from personalisation.methods import Method
from personalisation.world import Plan

SHARED = {f"DreamBooth-LoRA, rank {rank}": "DreamBooth-LoRA, rank 4" for rank in (1, 16)}
"""Methods that take the setting of another one where the plan says so."""


@dataclass(frozen=True)
class Choice:
    """A method's setting, found by the search."""

    rate: float
    step: int
    scale: float


def chosen(
    method: Method,
    plan: Plan,
    methods: Mapping[str, Method],
    searched: Path,
    concepts: Sequence[sandbox.Concept],
) -> Choice | None:
    """The setting with the best harmonic mean of the two fidelities in the search.

    Args:
        method: the method.
        plan: whether there is a search, and over what.
        methods: all of them by name.
        searched: folder with the results of the search.
        concepts: those of the search.

    Returns:
        The setting; None while the search is not done.
    """
    if not plan.search:
        rate = sorted(method.rates)[len(method.rates) // 2]
        return Choice(rate, plan.steps[-1], method.usual)
    if plan.shared and method.name in SHARED:
        return chosen(methods[SHARED[method.name]], plan, methods, searched, concepts)
    totals: dict[Choice, list[tuple[float, float]]] = {}
    for concept in concepts:
        for rate in method.rates[-plan.rates :]:
            file = searched / slug(method.name) / f"{concept.name}-{rate:g}.json"
            if not file.exists():
                return None
            for row in json.loads(file.read_text())["result"]:
                key = Choice(row["rate"], row["step"], row["scale"])
                marks = row["marks"]
                means = [statistics.mean(marks[name]) for name in ("identity", "text")]
                totals.setdefault(key, []).append((balance(*means), sum(means)))
    # Where nothing of the concept is found at any setting, the sum decides.
    return max(totals, key=lambda key: tuple(map(statistics.mean, zip(*totals[key], strict=True))))


def slug(name: str) -> str:
    """A name for folders."""
    return "".join(c if c.isalnum() else "-" for c in name.lower()).strip("-")
