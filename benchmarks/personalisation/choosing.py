"""Which setting of a method goes into the table: what a search on other concepts found best."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

from personalisation.fronts import balance
from personalisation.methods import Method

if TYPE_CHECKING:
    from personalisation.study import Study

SHARED = {f"DreamBooth-LoRA, rank {rank}": "DreamBooth-LoRA, rank 4" for rank in (1, 16)}
"""Methods that take the setting of another one where the plan says so."""


@dataclass(frozen=True)
class Choice:
    """A method's setting, found by the search."""

    rate: float
    step: int
    scale: float


def chosen(study: Study, method: Method) -> Choice | None:
    """The setting with the best harmonic mean of the two fidelities in the search.

    None while the search is not done.
    """
    plan = study.plan
    if not plan.search:
        rate = sorted(method.rates)[len(method.rates) // 2]
        return Choice(rate, plan.steps[-1], method.usual)
    if plan.shared and method.name in SHARED:
        return chosen(study, study.methods[SHARED[method.name]])
    totals: dict[Choice, list[tuple[float, float]]] = {}
    for concept in study.world.search_concepts():
        for rate in method.rates[-plan.rates :]:
            file = study.folder / f"search/{slug(method.name)}/{concept.name}-{rate:g}.json"
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
