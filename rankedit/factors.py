"""A factorised positive definite matrix on a subspace: the numerics beneath `Metric`."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from rankedit.errors import ShapeError, SolveError
from rankedit.products import add_gram_, add_square_, pieces
from rankedit.shapes import Covariance, check_rows, describe
from rankedit.subspace import Subspace

# Woodbury pays while the additions are fewer than a quarter of the width; and it subtracts numbers
# that agree to half of log10(gain) digits, so that a large gain asks for a new factorisation.
_WOODBURY_SHARE = 0.25
_WOODBURY_GAIN = 1e6


@dataclass(frozen=True)
class Factors:
    """`M = scale·L Lᵀ + EᵀE` in the coordinates of a subspace.

    All methods take and give rows of coordinates `[n, subspace.coordinate_dim]`, float64.

    Attributes:
        space: the subspace.
        lower: Cholesky factor L; the identity if None.
        scale: factor of `L Lᵀ`.
        extra: E, the rows added; none if None.
    """

    space: Subspace
    lower: Tensor | None = None
    scale: float = 1.0
    extra: Tensor | None = None

    @classmethod
    def of(cls, space: Subspace, matrix: Covariance, ridge: float | None = None) -> Factors:
        """Factorise a matrix given in the coordinates of a subspace; see `cholesky` for ridge."""
        return cls(space, cholesky(matrix, ridge))

    def scaled(self, factor: float) -> Factors:
        """`factor·M`."""
        extra = None if self.extra is None else self.extra * math.sqrt(factor)
        return replace(self, scale=self.scale * factor, extra=extra)

    def extended(self, rows: Tensor, roots: Tensor) -> Factors:
        """`M + rowsᵀ diag(roots)² rows`, by the Woodbury identity or a new factorisation.

        Args:
            rows: vectors of the surrounding space `[n, dim]`, of any dtype.
            roots: `[n]`.
        """
        count = rows.shape[0] + len(self._rows())
        if count <= _WOODBURY_SHARE * self.space.rank:
            added = self.space.coordinates(rows.double() * roots[:, None])
            extra = added if self.extra is None else torch.cat([self.extra, added])
            factors = replace(self, extra=extra)
            if factors._gain <= _WOODBURY_GAIN:
                return factors
        return self._refactored(rows, roots)

    def _refactored(self, rows: Tensor, roots: Tensor) -> Factors:
        space, extra = self.space.explicit(self._rows())
        matrix = rows.new_zeros(space.rank, space.rank, dtype=torch.float64)
        if len(extra):
            add_gram_(matrix, extra)
        for piece, weights in pieces(rows, roots):
            scaled = piece.to(torch.float64, copy=True).mul_(weights[:, None])
            add_gram_(matrix, space.coordinates(scaled))
        if self.lower is None:
            matrix.diagonal().add_(self.scale)
        else:
            add_square_(matrix, self.lower, self.scale)
        return Factors.of(space, matrix)

    @property
    def device(self) -> torch.device | None:
        """Where the factors live; None if there are none (the identity)."""
        held = (self.lower, self.extra, self.space.rows)
        return next((tensor.device for tensor in held if tensor is not None), None)

    # ---------------------------------------------------------------- products

    def solve(self, c: Tensor) -> Tensor:
        """`c M⁻¹`."""
        return self.unwhiten(self.whiten(c))

    def whiten(self, c: Tensor) -> Tensor:
        """`c B` with `B Bᵀ = M⁻¹`."""
        if self.lower is not None:
            c = torch.linalg.solve_triangular(self.lower, c.T, upper=False).T
        c = c / math.sqrt(self.scale)
        if self.extra is None:
            return c
        basis, root = self._correction
        inside = c @ basis
        shrunk = torch.linalg.solve_triangular(root, inside.T, upper=False).T
        return c + (shrunk - inside) @ basis.T

    def unwhiten(self, c: Tensor) -> Tensor:
        """`c Bᵀ`."""
        if self.extra is not None:
            basis, root = self._correction
            inside = c @ basis
            shrunk = torch.linalg.solve_triangular(root.T, inside.T, upper=True).T
            c = c + (shrunk - inside) @ basis.T
        if self.lower is not None:
            c = torch.linalg.solve_triangular(self.lower.T, c.T, upper=True).T
        return c / math.sqrt(self.scale)

    def apply(self, c: Tensor) -> Tensor:
        """`c M`."""
        base = c if self.lower is None else (c @ self.lower) @ self.lower.T
        base = base * self.scale
        return base if self.extra is None else base + (c @ self.extra.T) @ self.extra

    def half(self, c: Tensor) -> Tensor:
        """`c H` with `H Hᵀ = M`."""
        base = c if self.lower is None else c @ self.lower
        base = base * math.sqrt(self.scale)
        return base if self.extra is None else torch.cat([base, c @ self.extra.T], 1)

    @cached_property
    def _whitened_extra(self) -> Tensor:
        rows = self._rows()
        return replace(self, extra=None).whiten(rows)

    @cached_property
    def _correction(self) -> tuple[Tensor, Tensor]:
        # Woodbury's identity in halves. With H Hᵀ = scale·L Lᵀ and the additions seen from there,
        # F = E H⁻ᵀ, Fᵀ = Q T:  M = H (I + FᵀF) Hᵀ  and  I + FᵀF = (I − QQᵀ) + Q (I + T Tᵀ) Qᵀ,
        # whose root is I − QQᵀ + Q C Qᵀ with C the Cholesky factor of I + T Tᵀ.
        basis, triangle = torch.linalg.qr(self._whitened_extra.T)
        square = triangle @ triangle.T
        square.diagonal().add_(1)
        return basis, torch.linalg.cholesky(square)

    @property
    def _gain(self) -> float:
        return float(self._whitened_extra.square().sum(1).max())

    def _rows(self) -> Tensor:
        empty = torch.zeros(0, self.space.coordinate_dim, dtype=torch.float64, device=self.device)
        return empty if self.extra is None else self.extra

    # ---------------------------------------------------------------- figures

    def condition(self) -> float:
        """Condition number in the 1-norm, estimated."""
        if self.lower is None and self.extra is None:
            return 1.0
        size = self.space.coordinate_dim
        return math.prod(one_norm(f, size, self.device) for f in (self.apply, self.solve))

    def effective_rank(self) -> float:
        """`(tr M)² / ‖M‖²_F`."""
        # M = H Hᵀ, hence tr M = ‖H‖²_F, and ‖M‖_F = ‖HᵀH‖_F for whichever product is smaller.
        if self.lower is None and self.extra is None:
            return float(self.space.rank)
        start = torch.eye(self.space.coordinate_dim, dtype=torch.float64, device=self.device)
        half = self.half(self.space.within(start))
        small = half @ half.T if half.shape[0] < half.shape[1] else half.T @ half
        return float(small.trace()) ** 2 / float(small.square().sum())


def checked_matrix(call: str, matrix: Covariance, name: str = "matrix") -> Covariance:
    """The matrix in float64 and exactly symmetric, or an error that names what is wrong with it."""
    check_rows(call, name, matrix)
    if matrix.shape[0] != matrix.shape[1]:
        raise ShapeError(f"{call}: {name} must be square [dim, dim], got {describe(matrix)}.")
    matrix = matrix.detach().double()
    asymmetry = float((matrix - matrix.T).abs().max())
    if asymmetry > 1e-6 * float(matrix.abs().max()):
        raise ShapeError(
            f"{call}: {name} must be symmetric, but entries differ from their transposes by up to "
            f"{asymmetry:.2g}; a second moment is xᵀx of row vectors x."
        )
    return (matrix + matrix.T) / 2


def cholesky(matrix: Covariance, ridge: float | None = None) -> Tensor:
    """Lower factor L with `matrix = L Lᵀ`, or an error that names the ridge to use.

    Args:
        matrix: symmetric; what is above the diagonal is not read.
        ridge: the one that is in the matrix already; None if the caller has no such argument.
    """
    lower, info = torch.linalg.cholesky_ex(matrix)  # reads the lower triangle only
    if int(info) == 0 and bool((lower.diagonal() > 0).all()):
        return lower
    eigenvalues = torch.linalg.eigvalsh(matrix)
    mean = max(float(matrix.trace()) / matrix.shape[0], 0.0)
    if mean == 0:
        raise SolveError("Metric: the statistics are all zero; collect some data first.")
    needed = 2 * max(-float(eigenvalues[0]) / mean, 0.0) + 1e-10  # printed to one digit
    remedy = "start from a metric with a larger ridge"
    if ridge is not None:
        remedy = f"pass ridge={2 * ridge + needed:.1g} or more, use shrinkage"
    raise SolveError(
        "Metric: the statistics must be positive definite, but their smallest eigenvalue is "
        f"{float(eigenvalues[0]):.2g} at a mean of {mean:.2g}; {remedy}, or collect more data."
    )


def short_hash(text: str) -> str:
    """The first 16 hexadecimal digits of the SHA-256 hash."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def hash_of(rows: Tensor) -> str:
    """Short hash of a tensor's bytes."""
    return hashlib.sha256(rows.cpu().resolve_neg().contiguous().numpy().tobytes()).hexdigest()[:16]


def fingerprint(matrix: Covariance, settings: str) -> str:
    """Short hash of statistics and of what was made of them."""
    # The diagonal and 64 rows tell two sets of statistics apart and cost nothing to hash. They are
    # taken before any sum over them, whose rounding differs between machines.
    step = -(-matrix.shape[0] // 64)
    return short_hash(hash_of(torch.cat([matrix.diagonal()[None], matrix[::step]])) + settings)


def one_norm(operator: Callable[[Tensor], Tensor], size: int, device: torch.device | None) -> float:
    """Estimated 1-norm of a symmetric operator `[size, size]`, given by its action on rows."""
    from scipy.sparse.linalg import LinearOperator, onenormest

    def product(columns: object) -> object:
        rows = torch.as_tensor(columns, dtype=torch.float64).reshape(size, -1).T
        return operator(rows.to(device)).T.cpu().numpy()

    symmetric = LinearOperator(
        (size, size), matvec=product, rmatvec=product, matmat=product, rmatmat=product, dtype=float
    )
    # One column at a time is Hager's algorithm, which draws no random numbers.
    return float(onenormest(symmetric, t=1))
