"""Solving with the Gram matrix of keys, however close to dependent they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rankedit.errors import SolveError

# A key of unit length whose part beside the earlier keys has a square below this is nearly
# dependent: the Gram matrix, which squares what it is made of, no longer tells it apart.
_NEARLY = 1e-12

# Singular values of unit keys below this are rounding: 1e-16, times 1e5 at a condition of 1e10.
_DEPENDENT = 1e-9

# Dependent equality keys must agree on their values to this, relative.
_AGREEMENT = 1e-6


@dataclass(frozen=True)
class GramSystem:
    """`(Y Yᵀ + S) Λ = R`, solved for `U` with `Yᵀ Λ = Pᵀ U`, rows P well conditioned.

    Attributes:
        rows: `P = T Y [r, m]`; r is the number of independent keys.
        transform: `T [r, n]` with `T (Y Yᵀ + S) Tᵀ ≈ I`.
        softness: S as a vector `[n]`.
        lengths: `√(Y Yᵀ + S)_jj [n]`.
        remark: what is unusual about the keys, in words.
    """

    rows: Tensor
    transform: Tensor
    softness: Tensor
    lengths: Tensor
    remark: str

    @classmethod
    def of(cls, whitened: Tensor, softness: Tensor) -> GramSystem:
        """From `Y [n, m]`, the keys in coordinates where the metric is the identity.

        All rows are scaled to unit length first, so that the lengths of the keys do not matter.
        """
        squares = whitened.square().sum(1) + softness
        lengths = torch.where(squares > 0, squares, 1.0).sqrt()
        scaled, soft = whitened / lengths[:, None], softness / lengths.square()
        # More equalities than coordinates are dependent: no n x n matrix is made to learn that.
        few = int((soft == 0).sum()) <= scaled.shape[1]
        lower = _root(scaled @ scaled.T + soft.diag()) if few else None
        if lower is not None:
            identity = torch.eye(len(lower)).to(lower)
            transform, remark = torch.linalg.solve_triangular(lower, identity, upper=False), ""
        else:
            transform, remark = _transform(scaled, soft)
        transform = transform / lengths
        return cls(transform @ whitened, transform, softness, lengths, remark)

    def solve(self, lacking: Tensor, seen: Tensor, names: Sequence[str]) -> Tensor:
        """U `[r, out]`.

        Args:
            lacking: R `[n, out]`.
            seen: `Y Pᵀ [n, r]` as the caller will compute it from what becomes of P; refinement
                against it makes the equalities hold for that, rounding included.
            names: what to call each row in a message.

        Raises:
            SolveError: keys without softness are dependent, and ask for different values.
        """
        system = seen + (self.transform * self.softness).T
        solution = lacking.new_zeros(len(self.rows), lacking.shape[1])
        for _ in range(4):
            missing = lacking - system @ solution
            solution = solution + self.transform @ missing
        if len(self.rows) < len(lacking):
            missing = (lacking - system @ solution) / self.lengths[:, None]
            self._check_agreement(missing, lacking, names)
        return solution

    def _check_agreement(self, missing: Tensor, lacking: Tensor, names: Sequence[str]) -> None:
        wanted = lacking / self.lengths[:, None]
        if float(missing.norm()) <= _AGREEMENT * float(wanted.norm()):
            return
        raise SolveError(
            f"solve_edit: {names[int(missing.norm(dim=1).argmax())]} depends linearly on others "
            "and asks for a value that contradicts theirs; drop one of them (or of the keys in "
            "hold), or pass softness > 0 to compromise."
        )


def _root(gram: Tensor) -> Tensor | None:
    lower, info = torch.linalg.cholesky_ex(gram)
    well = int(info) == 0 and float(lower.diagonal().square().min()) > _NEARLY
    return lower if well else None


def _transform(scaled: Tensor, soft: Tensor) -> tuple[Tensor, str]:
    # The Gram matrix is never formed here: small singular values would be lost in it.
    # Columns of keys without softness would be zero: with many keys, most of the matrix.
    stacked = torch.cat([scaled, soft.sqrt().diag()[:, soft > 0]], 1)
    left, values, _ = torch.linalg.svd(stacked, full_matrices=False)
    kept = values > _DEPENDENT * values[0]
    transform = (left[:, kept] / values[kept]).T
    if int(kept.sum()) < len(scaled):
        return transform, "the keys are linearly dependent; their values agree"
    return transform, (
        "the keys are nearly dependent under the metric (smallest singular value of unit keys "
        f"{float(values[-1]):.1e}); the edit may be large"
    )
