"""How much statistics still change, as edits see it."""

from __future__ import annotations

from rankedit.errors import ShapeError, StatisticsError
from rankedit.metric import Metric
from rankedit.moments import SecondMoment
from rankedit.shapes import check_kind


def relative_change(
    before: SecondMoment, after: SecondMoment, *, ridge: float | None = None
) -> float:
    """`‖A^½ (C' − C) A^½‖_F / √d`: how much edits change that are made with C in place of C'.

    With C' of the data before and `A = M⁻¹` of the metric after it, this is the root mean square
    change of `k A` relative to its length, both measured in M, over keys k that are like the data.
    The norm of `C' − C` itself tells nothing of directions with little energy, which decide what
    becomes of an edit. Where the data are n Gaussian vectors of which the share q came last, about
    `√(q d / ((1 − q) n))` is expected: to halve it takes four times the data.

    Args:
        before: statistics of the first part of the data, such as nine tenths.
        after: statistics of all of it.
        ridge: as in `Metric.from_moment`.

    Raises:
        ShapeError: different widths.
        StatisticsError: one of them has seen no vector.
    """
    for name, moment in {"before": before, "after": after}.items():
        check_kind("relative_change", name, moment, SecondMoment)
        if not moment.count:
            raise StatisticsError(
                f"relative_change: {name} must have seen vectors, got none; call update with data."
            )
    if before.dim != after.dim:
        raise ShapeError(
            "relative_change: before and after must have the same width, got "
            f"{before.dim} and {after.dim}; they belong to different projections."
        )
    metric = Metric.from_moment(after, ridge=ridge)
    half = metric.whiten((before.matrix - after.matrix).to(metric.device))
    return float(metric.whiten(half.T).norm()) / after.dim**0.5
