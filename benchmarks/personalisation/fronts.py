"""Fronts in the plane of two fidelities, the area under them, and how sure a mean is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other one equals or beats in both coordinates, by the first of them."""
    kept: list[tuple[float, float]] = []
    for x, y in sorted(set(points), reverse=True):
        if not kept or y > kept[-1][1]:
            kept.append((x, y))
    return kept[::-1]


def hypervolume(
    points: Sequence[tuple[float, float]], reference: tuple[float, float] = (0.0, 0.0)
) -> float:
    """Area of what the points dominate, above and to the right of a reference.

    Args:
        points: both coordinates are better the higher.
        reference: points that are not above it in both coordinates count nothing.
    """
    above = [(x, y) for x, y in points if x > reference[0] and y > reference[1]]
    area, left = 0.0, reference[0]
    for x, y in front(above):
        area += (x - left) * (y - reference[1])
        left = x
    return area


def bootstrap(groups: Sequence[Sequence[float]], *, draws: int = 2000, seed: int = 0) -> Numbers:
    """Means of resampled data `[draws]`: groups (concepts) are drawn, then members (pictures).

    The statistic is the mean over groups of the mean over members, so that groups of different
    sizes count alike. Empty groups are left out.

    Args:
        groups: numbers of each group.
        draws: how many resamples.
        seed: of the draws; the same groups are drawn for the same seed and number of groups.

    Raises:
        ValueError: there is nothing to resample.
    """
    kept = [np.asarray(group, dtype=np.float64) for group in groups if len(group)]
    if not kept:
        raise ValueError("bootstrap: at least one group with a number is expected, got none.")
    chosen = resampled(len(kept), draws=draws, seed=seed)
    rng = np.random.default_rng([seed, 1])
    means = np.stack(
        [group[rng.integers(len(group), size=(*chosen.shape, len(group)))].mean(-1)
         for group in kept]
    )  # fmt: skip
    picked: Numbers = np.take_along_axis(means, chosen[None], 0)[0].mean(1)
    return picked


def resampled(count: int, *, draws: int = 2000, seed: int = 0) -> NDArray[np.int64]:
    """Which groups each resample draws, `[draws, count]`."""
    return np.random.default_rng([seed, count]).integers(count, size=(draws, count))


def interval(values: Numbers, level: float = 0.95) -> tuple[float, float]:
    """The middle of a bootstrap's distribution: a percentile interval; values may be infinite."""
    outside = 50 * (1 - level)
    low, high = np.percentile(values, [outside, 100 - outside], method="inverted_cdf")
    return float(low), float(high)


def balance(first: float, second: float) -> float:
    """Harmonic mean; 0 if one of the two is not positive."""
    return 2 * first * second / (first + second) if min(first, second) > 0 else 0.0
