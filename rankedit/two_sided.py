"""Soft constraints under a cost of both sides, `tr(H ΔW M ΔWᵀ)`; see `rankedit.solve_edit`.

Along an eigenvector `H u_i = h_i u_i` the problem is the one-sided one for the row `u_iᵀ ΔW`, with
the softness `h_i S`. With whitened keys `Y = K B`, `S^(-1/2) Y = L σ Pᵀ`, all of them together are

    u_iᵀ ΔW = Σ_m  σ_m / (σ_m² + h_i) · (L_mᵀ S^(-1/2) R u_i) · p_mᵀ Bᵀ

Source: Ikram et al., CrispEdit, arXiv 2602.15823, whose Kronecker-factored curvature is H and M.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rankedit.errors import ShapeError, SolveError
from rankedit.metric import Metric
from rankedit.shapes import Values, check_kind

# Share of what an equality lacks that may lie outside of the subspace: rounding.
_OUTSIDE = 1e-8


def checked_value_metric(call: str, metric: object, values: Values) -> Metric | None:
    """The metric of the values, guarded; None as it is.

    Raises:
        ShapeError: no metric, or not of the values' width.
    """
    check_kind(call, "value_metric", metric, Metric, optional=True)
    if not isinstance(metric, Metric):
        return None
    if metric.dim != values.shape[1]:
        raise ShapeError(
            f"{call}: value_metric must have the width {values.shape[1]} of the values, got "
            f"{metric.dim}; the metric of the keys' width is the argument metric."
        )
    return metric.guarded


@dataclass(frozen=True)
class TwoSided:
    """H in its own directions.

    Attributes:
        costs: `h [r]`, positive.
        directions: `[out, r]`, orthonormal columns.
    """

    costs: Tensor
    directions: Tensor

    @classmethod
    def of(cls, metric: Metric, like: Tensor) -> TwoSided:
        """Of a metric, on the device of a tensor in float64."""
        matrix = metric.apply(torch.eye(metric.dim, dtype=torch.float64, device=metric.device))
        costs, columns = torch.linalg.eigh((matrix + matrix.T) / 2)
        # What a restricted metric forbids is written as zeros, which come first.
        start = metric.dim - metric.rank
        return cls(costs[start:].to(like), columns[:, start:].to(like))

    def check_confined(self, lacking: Values, names: Sequence[str]) -> None:
        """Refuse equalities that the subspace does not allow.

        Raises:
            SolveError: names the worst.
        """
        outside = lacking - lacking @ self.directions @ self.directions.T
        shares = outside.norm(dim=1) / lacking.norm(dim=1).clamp_min(1e-300)
        if float(shares.max()) > _OUTSIDE:
            raise SolveError(
                f"solve_edit: {names[int(shares.argmax())]} must change by something inside the "
                f"subspace of value_metric, but {float(shares.max()):.1e} of what it lacks lies "
                "outside; pass softness > 0 to give what is inside, or a value_metric with a "
                "larger subspace."
            )

    def ridge(self, whitened: Tensor, softness: Tensor, lacking: Values) -> tuple[Tensor, Tensor]:
        """Factors `up [out, m]` and whitened rows `[m, k]` of the edit.

        Args:
            whitened: Y `[n, k]`.
            softness: S `[n]`, positive.
            lacking: R `[n, out]`.
        """
        roots = softness.sqrt()[:, None]
        left, values, rows = torch.linalg.svd(whitened / roots, full_matrices=False)
        wanted = left.T @ (lacking / roots) @ self.directions
        given = wanted * (values[:, None] / (values.square()[:, None] + self.costs))
        return self.directions @ given.T, rows


def beside(rows: Tensor, others: Tensor) -> Tensor:
    """What is left of rows `[n, k]` beside the span of independent others `[r, k]`."""
    basis = torch.linalg.qr(others.T).Q
    for _ in range(2):  # twice is enough: what is left may be short
        rows = rows - (rows @ basis) @ basis.T
    return rows
