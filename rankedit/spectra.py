"""From a moment to the matrix of a metric: shrinkage, ridges, and what must be guarded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rankedit.errors import ShapeError
from rankedit.extremes import principal
from rankedit.factors import hash_of, short_hash
from rankedit.moments import SecondMoment
from rankedit.shapes import Covariance, is_number

# Share of tr(C)/dim that rounding of the activations leaves as noise on the eigenvalues of C, with
# a margin: bfloat16 was measured at 2e-6, float32 products under TF32 and float16 at 6e-8.
NOISE_FLOOR = {
    torch.bfloat16: 1e-5,
    torch.float16: 1e-6,
    torch.float32: 1e-6,
    torch.float64: 1e-12,
}
# Energy of a guarded direction, in units of tr(C), at which it is held as good as hard. Beyond it
# the factorisation would lose digits and the edit would not become another one.
_HELD = 1e6
# Below so many directions all eigenvalues cost less than looking for one.
_SMALL = 64


def shrunk(
    moment: SecondMoment,
    shrinkage: float | Callable[[SecondMoment], float] | None,
    *,
    centred: bool,
) -> Covariance:
    """`(1 − s) C + s μ I` with `μ = tr(C)/dim`.

    Raises:
        ShapeError: the intensity s is outside [0, 1].
    """
    given = 0.0 if shrinkage is None else shrinkage
    intensity = given(moment) if callable(given) else given
    if not is_number(intensity) or not 0 <= intensity <= 1:
        raise ShapeError(
            f"Metric.from_moment: shrinkage must be in [0, 1], got {intensity}; pass a number, "
            "or a function such as rankedit.ledoit_wolf."
        )
    matrix = moment.covariance if centred else moment.matrix
    mean_eigenvalue = matrix.trace() / moment.dim
    matrix = matrix * (1 - intensity)
    matrix.diagonal().add_(intensity * mean_eigenvalue)
    return matrix


def noise_floor(matrix: Covariance, dtype: torch.dtype) -> float:
    """A ridge, in units of `tr(matrix)/dim`, above the noise that rounding leaves.

    It is `NOISE_FLOOR` of the activations' dtype, or four times the most negative eigenvalue where
    that is more. Products in float32 leave such eigenvalues where few vectors lie in a space of
    many directions and one direction has most of their energy: the noise is in units of that.
    """
    floor = NOISE_FLOOR[dtype]
    if dtype is torch.float64:  # whose products are never narrowed
        return floor
    mean = float(matrix.trace()) / len(matrix)
    return max(floor, -4 * _lowest_eigenvalue(matrix, floor * mean) / mean) if mean > 0 else floor


def _lowest_eigenvalue(matrix: Covariance, shift: float) -> float:
    """The lowest eigenvalue, to a hundredth of its distance from `-shift`."""
    from scipy.sparse.linalg import LinearOperator, eigsh

    size = len(matrix)
    shifted = matrix.clone()
    shifted.diagonal().add_(shift)
    lower, info = torch.linalg.cholesky_ex(shifted)
    if int(info) != 0 or size < _SMALL:
        return float(torch.linalg.eigvalsh(matrix)[0])

    def solve(column: object) -> object:
        right = torch.as_tensor(column, dtype=torch.float64).reshape(size, 1).to(matrix.device)
        return torch.cholesky_solve(right, lower).cpu().numpy()

    # Lanczos from a fixed vector: the same figure each time.
    start = torch.randn(size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    inverse = LinearOperator((size, size), matvec=solve, dtype=float)
    (top,) = eigsh(inverse, k=1, v0=start.numpy(), tol=0.01, return_eigenvectors=False)
    return 1 / float(top) - shift


@dataclass(frozen=True)
class Guard:
    """What an edit must leave alone though the spectrum of the ordinary vectors does not show it.

    Attributes:
        rows: E `[r, dim]` with `EᵀE = Σ xᵀx/n` over the vectors of extreme energy, to be added to
            M; or their directions, if hard.
        hard: whether nothing may move along the rows.
    """

    rows: Tensor
    hard: bool = False

    @classmethod
    def of(cls, moment: SecondMoment, *, hard: bool = False) -> Guard | None:
        """For the extreme vectors of a moment; None if there are none."""
        if not moment.extremes:
            return None
        directions = moment.extreme_keys()
        if hard and directions is not None:
            return cls(directions, hard=True)
        rows = principal(moment.extremes.rows) / moment.count**0.5
        most = (_HELD * float(moment.matrix.trace())) ** 0.5
        return cls(rows / (rows.norm(dim=1, keepdim=True) / most).clamp_min(1))

    def scaled(self, factor: float) -> Guard:
        """For `factor·M`."""
        return self if self.hard else replace(self, rows=self.rows * factor**0.5)

    def marked(self, fingerprint: str) -> str:
        """The fingerprint of what is guarded."""
        return short_hash(f"{fingerprint} beside {hash_of(self.rows)}")
