"""Facts that cannot both be had, found before anything is searched for or written."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import rankedit as rk
from rankedit_recipes.language.errors import LanguageError
from rankedit_recipes.language.requests import Request

# Keys closer than this, as a cosine under the metric, move each other's values.
PARALLEL = 0.95
_SHOWN = 5


@dataclass(frozen=True)
class FactConflict:
    """Two facts that cannot both be had, or not without moving each other.

    Attributes:
        first: name of the fact that is there already, or comes first.
        second: name of the other.
        kind: `"same"`: they have the same subject and relation, or the same name. `"parallel"`:
            their keys are nearly parallel, such as those of one subject's relations.
        cosine: of their keys under the metric.
    """

    first: str
    second: str
    kind: str
    cosine: float


def same_facts(there: Mapping[str, Request], new: Sequence[Request]) -> list[FactConflict]:
    """New requests with the name, or the subject and relation, of another fact."""
    taken = {request.key: name for name, request in there.items()}
    found = []
    for request in new:
        other = request.label if request.label in there else taken.get(request.key)
        if other is not None:
            found.append(FactConflict(other, request.label, "same", 1.0))
        # New requests contradict each other too.
        taken.setdefault(request.key, request.label)
    return found


def parallel_keys(
    there: Mapping[str, Tensor], new: Mapping[str, Tensor], metric: rk.Metric, threshold: float
) -> list[FactConflict]:
    """Pairs of a new key and another one, new or not, with a cosine of at least the threshold."""
    names = [*there, *new]
    rows, keys = torch.stack([*there.values(), *new.values()]), torch.stack([*new.values()])
    # A key outside the metric's subspace has no length: its cosines come out as 0.
    lengths = [metric.energy(part).sqrt().clamp_min(1e-300) for part in (rows, keys)]
    cosines = metric.inner(rows, keys) / lengths[0][:, None] / lengths[1]
    return [
        FactConflict(names[i], names[len(there) + j], "parallel", float(cosines[i, j]))
        for i, j in torch.nonzero(cosines.abs() >= threshold).tolist()
        # Each pair of new keys once, and none with itself.
        if i < len(there) + j
    ]


def refuse_same(conflicts: Sequence[FactConflict]) -> None:
    """Refuse to add what is there already, and warn of keys that are nearly parallel.

    Raises:
        LanguageError: some are about what the stream has already.
    """
    same = [conflict for conflict in conflicts if conflict.kind == "same"]
    if same:
        raise LanguageError(
            f"Stream.add: {len(same)} requests are about what the stream has already, such as "
            f"{shown(same)}; use replace, or undo the old ones first."
        )
    if conflicts:
        warnings.warn(
            f"Stream.add: {len(conflicts)} pairs of facts have nearly parallel keys and move "
            f"each other's values: {shown(conflicts)}",
            rk.RankeditWarning,
            stacklevel=3,
        )


def shown(conflicts: Sequence[FactConflict]) -> str:
    """The first few, in words."""
    pairs = [f"{c.first!r} and {c.second!r} ({c.cosine:.2f})" for c in conflicts[:_SHOWN]]
    return "; ".join(pairs) + ("; ..." if len(conflicts) > _SHOWN else "")
