"""How far the keys of one fact agree between the contexts that it is edited in."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

from torch import Tensor

import rankedit as rk
from rankedit_recipes.language.requests import Request

DIFFERENT = 0.3
"""Cosine under the metric below which two contexts' keys of one fact count as different."""

_SHOWN = 5


def least_cosines(rows: Tensor, each: int, metric: rk.Metric) -> Tensor:
    """The smallest cosine `[n]` under the metric between two contexts' keys of a fact.

    Args:
        rows: keys `[n·each, in]`, the contexts of each fact next to each other.
        each: number of contexts.
        metric: what a change costs.
    """
    # Under the metric, for that is what decides how much of an edit another key gets.
    seen = metric.whiten(rows)
    lengths = seen.norm(dim=1, keepdim=True)
    # A key of zeros has no direction; dividing by one leaves its cosines at 0.
    directions = (seen / lengths.where(lengths > 0, 1.0)).reshape(-1, each, seen.shape[1])
    # Rounding may put the cosine of a key with itself above 1.
    return (directions @ directions.mT).flatten(1).amin(1).clamp(-1, 1).float().cpu()


def warn_of_different(requests: Sequence[Request], agreement: Mapping[str, Tensor]) -> None:
    """Warn of facts whose keys depend much on what stands before the prompt.

    An edit answers to the mean key: a context whose own key is far from it gets little of it.

    Args:
        requests: n of them.
        agreement: by projection, what `least_cosines` gave `[n]`.

    Warns:
        RankeditWarning: names the projection, the requests that agree least, and remedies.
    """
    for name, cosines in agreement.items():
        order = [i for i in cosines.argsort().tolist() if float(cosines[i]) < DIFFERENT]
        if not order:
            continue
        some = ", ".join(f"{requests[i].label!r} ({float(cosines[i]):.2f})" for i in order[:_SHOWN])
        warnings.warn(
            f"language: in '{name}' the keys of {len(order)} of {len(requests)} requests depend "
            "much on what stands before the prompt (least cosine between contexts under the "
            f"metric, below {DIFFERENT}): {some}{', ...' if len(order) > _SHOWN else ''}. The edit "
            "may not show in some contexts; give more of them (prefixes, or the setting contexts), "
            "or edit another block (layers).",
            rk.RankeditWarning,
            stacklevel=4,
        )
