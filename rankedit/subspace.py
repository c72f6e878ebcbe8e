"""Subspaces of the input space, stored by whichever basis is smaller.

A subspace is the whole space, the span of orthonormal rows, or the orthogonal complement of such a
span. The null space of a layer's statistics often has nine tenths of all directions: keeping its
complement takes a tenth of the memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rankedit.errors import ShapeError, SolveError
from rankedit.shapes import Basis, Covariance, is_number


@dataclass(frozen=True)
class Subspace:
    """A subspace of `R^dim`; vectors in it are handled by coordinates.

    Attributes:
        dim: width of the surrounding space.
        rows: `[r, dim]` orthonormal, float64; None for the whole space.
        removed: the subspace is the complement of the span of `rows`, not the span. Coordinates are
            then those of the surrounding space.
    """

    dim: int
    rows: Basis | None = None
    removed: bool = False

    @classmethod
    def whole(cls, dim: int) -> Subspace:
        """All of `R^dim`."""
        return cls(dim)

    @classmethod
    def spanned_by(cls, rows: Basis) -> Subspace:
        """The span of independent rows `[r, dim]`.

        Raises:
            SolveError: the rows are linearly dependent (to an angle of 1e-10).
        """
        # `eps` only guards rows of zeros, which the pivot then refuses.
        q, r = torch.linalg.qr(torch.nn.functional.normalize(rows, eps=1e-300).T)
        # The rows have unit length, so that a pivot is the sine of a row's angle to earlier ones.
        if rows.shape[0] > rows.shape[1] or float(r.diagonal().abs().min()) <= 1e-10:
            raise SolveError(
                f"Metric.restricted: the {rows.shape[0]} basis rows must be linearly independent "
                f"in {rows.shape[1]} dimensions; drop the redundant ones (torch.linalg.svd)."
            )
        return cls(rows.shape[1], q.T.contiguous())

    def without(self, rows: Tensor) -> Subspace:
        """What of the subspace is orthogonal to rows `[r, dim]` of unit length."""
        # Parts of rows inside that are rounding have no direction; the subspace lacks them already.
        _, values, directions = torch.linalg.svd(self.projected(rows), full_matrices=False)
        directions = directions[values > 1e-10]
        if self.rows is None or self.removed:
            known = directions[:0] if self.rows is None else self.rows
            return Subspace(self.dim, torch.cat([known, directions]), removed=True)
        inside = Subspace(len(self.rows), directions @ self.rows.T, removed=True)
        return Subspace(self.dim, inside.basis() @ self.rows)

    @property
    def rank(self) -> int:
        """Dimension of the subspace."""
        if self.rows is None:
            return self.dim
        return self.dim - self.rows.shape[0] if self.removed else self.rows.shape[0]

    @property
    def coordinate_dim(self) -> int:
        """Number of coordinates by which vectors of the subspace are handled."""
        return self.dim if self.rows is None or self.removed else self.rows.shape[0]

    def coordinates(self, x: Tensor) -> Tensor:
        """Coordinates of the orthogonal projection of the rows of `x [n, dim]`."""
        if self.rows is None:
            return x
        inside = x @ self.rows.T
        return x - inside @ self.rows if self.removed else inside

    def ambient(self, coordinates: Tensor) -> Tensor:
        """The vectors `[n, dim]` that have these coordinates."""
        if self.rows is None or self.removed:
            return self.coordinates(coordinates)
        return coordinates @ self.rows

    def projected(self, x: Tensor) -> Tensor:
        """Orthogonal projection of the rows of `x [n, dim]` onto the subspace."""
        return self.ambient(self.coordinates(x))

    def share(self, x: Tensor) -> Tensor:
        """Share `[n]` of the squared length of the rows of `x [n, dim]` that lies inside."""
        squares = x.square().sum(1)
        inside = squares if self.rows is None else self.projected(x).square().sum(1)
        return inside / squares.where(squares > 0, 1.0)

    def within(self, coordinates: Tensor) -> Tensor:
        """The rows with their part outside the subspace removed, where coordinates can have one."""
        return self.coordinates(coordinates) if self.removed else coordinates

    def basis(self) -> Basis:
        """Orthonormal rows spanning the subspace `[rank, dim]`, float64."""
        if self.rows is None:
            return torch.eye(self.dim, dtype=torch.float64)
        if not self.removed:
            return self.rows
        # Householder QR: the columns beyond the given ones complete them to a basis.
        complete = torch.linalg.qr(self.rows.T, mode="complete").Q
        return complete[:, self.rows.shape[0] :].T.contiguous()

    def explicit(self, coordinates: Tensor) -> tuple[Subspace, Tensor]:
        """The subspace by a basis of its own, and the coordinates of the same vectors there."""
        if not self.removed:
            return self, coordinates
        basis = self.basis()
        return Subspace(self.dim, basis), coordinates @ basis.T


def null_space(
    matrix: Covariance, *, relative: float | None = None, energy: float | None = None
) -> Subspace:
    """Directions along which a second moment is (nearly) zero, by a relative or an energy cut.

    Args:
        matrix: symmetric positive semi-definite `[dim, dim]`, float64.
        relative: eigenvalues of at most `relative·λ_max` count as zero.
        energy: the smallest eigenvalues adding up to at most `energy·tr` count as zero.

    Raises:
        ShapeError: not exactly one of the two cuts, or outside [0, 1).
        SolveError: no direction is left under the cut.
    """
    cut = relative if energy is None else energy
    one = (relative is None) != (energy is None) and is_number(cut)
    if not one or cut is None or not 0 <= cut < 1:
        raise ShapeError(
            "Metric.null_space: give exactly one of relative=... and energy=..., in [0, 1), got "
            f"relative={relative}, energy={energy}; 1e-6 relative is the noise floor of float32."
        )
    eigenvalues, columns = torch.linalg.eigh(matrix)
    # Rounding leaves eigenvalues of about -1e-17 of the largest, which count as zero.
    positive = eigenvalues.clamp_min(0)
    if energy is None:
        free = int((positive <= cut * positive[-1]).sum())
    else:
        free = int((positive.cumsum(0) <= cut * positive.sum()).sum())
    if free == 0:
        raise SolveError(
            f"Metric.null_space: no direction is free under the cut {cut:g}: the smallest "
            f"eigenvalue is {float(positive[0] / positive[-1]):.2g} of the largest; raise the cut."
        )
    dim = matrix.shape[0]
    # Whichever basis is smaller: a null space of nine tenths is kept by its complement.
    if free <= dim // 2:
        return Subspace(dim, columns[:, :free].T.contiguous())
    return Subspace(dim, columns[:, free:].T.contiguous(), removed=True)
