"""Symmetric matrices as packed triangles, and batches taken apart into chunks of rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rankedit.errors import ShapeError
from rankedit.shapes import Covariance, Inputs, check_dense, check_finite, check_vectors, describe

# Coarsest first. The relative noise that rounding leaves on the eigenvalues of E[xᵀx] grows in this
# direction, and one coarse batch spoils the sum.
COARSENESS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)

# Rows of a triangle that are computed at once, with the square on the diagonal. Float32 has faster
# products, so that the squares weigh more: 128 takes 0.94 of the time of 256 there.
_STRIPE, _FINE = 256, 128
# Rows whose products are summed in float32: each such sum is then read and added in float64, which
# at 1,024 rows is 3 % of the work at width 1536.
FINE_ROWS = 1024


def coarser(a: torch.dtype, b: torch.dtype) -> torch.dtype:
    """The one of two dtypes that rounds more."""
    # Float dtypes narrower than those listed (8-bit formats) are coarser than all of them.
    known = [dtype if dtype in COARSENESS else torch.bfloat16 for dtype in (a, b)]
    return min(known, key=COARSENESS.index)


class Triangle:
    """A symmetric matrix as its upper triangle, in stripes of rows: half the work and memory.

    Sums are in float64. What a product leaves below the diagonal, in the square at the head of each
    stripe, is never read: it differs in the last bit from what is above. With one triangle only,
    packing and unpacking at any moment changes no later bit.

    Args:
        dim: width.
        device: where.
    """

    def __init__(self, dim: int, device: torch.device | str | None = None) -> None:
        self.dim = dim
        self._stripes = [
            torch.zeros(min(_STRIPE, dim - start), dim - start, dtype=torch.float64, device=device)
            for start in range(0, dim, _STRIPE)
        ]

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self._stripes[0].device

    def add_product_(self, left: Tensor, right: Tensor) -> None:
        """`+= leftᵀ right` for `[n, dim]`, which must be symmetric, in the precision of the two.

        In float32 the products of `FINE_ROWS` rows are summed in float32, everything else in
        float64.
        """
        if left.dtype == torch.float64:
            for stripe, start in zip(self._stripes, range(0, self.dim, _STRIPE), strict=True):
                stripe.addmm_(left[:, start : start + _STRIPE].T, right[:, start:])
            return
        for some, others in zip(left.split(FINE_ROWS), right.split(FINE_ROWS), strict=True):
            self._add_fine(some, others)

    def _add_fine(self, left: Tensor, right: Tensor) -> None:
        # Autocast, in which a model may run, would turn these products into half precision.
        with torch.autocast(left.device.type, enabled=False):
            for start in range(0, self.dim, _FINE):
                product = left[:, start : start + _FINE].T @ right[:, start:]
                inside = start % _STRIPE
                self._stripes[start // _STRIPE][inside : inside + _FINE, inside:] += product

    def add_(self, other: Triangle) -> None:
        """`+=` another one of the same width."""
        for mine, theirs in zip(self._stripes, other._stripes, strict=True):
            mine.add_(theirs.to(mine.device))

    def to(self, device: torch.device | str) -> Triangle:
        """A copy on a device."""
        moved = Triangle(self.dim, device)
        for mine, theirs in zip(moved._stripes, self._stripes, strict=True):
            mine.copy_(theirs)
        return moved

    def matrix(self) -> Covariance:
        """All of it `[dim, dim]`, exactly symmetric."""
        full = torch.zeros(self.dim, self.dim, dtype=torch.float64, device=self.device)
        for stripe, start in zip(self._stripes, range(0, self.dim, _STRIPE), strict=True):
            full[start : start + _STRIPE, start:] = stripe
        upper = full.triu_()
        return upper + upper.triu(1).T

    def trace(self) -> float:
        """Sum of the diagonal."""
        return sum(float(stripe.diagonal().sum()) for stripe in self._stripes)

    def packed(self) -> Tensor:
        """Its entries row by row, `[dim·(dim+1)/2]`."""
        return torch.cat([stripe[self._above(stripe)] for stripe in self._stripes])

    @classmethod
    def from_packed(cls, packed: Tensor, dim: int) -> Triangle:
        """From its entries row by row, in any precision."""
        triangle, at = cls(dim, packed.device), 0
        for stripe in triangle._stripes:
            above = cls._above(stripe)
            size = int(above.sum())
            stripe[above] = packed[at : at + size].double()
            at += size
        return triangle

    @staticmethod
    def _above(stripe: Tensor) -> Tensor:
        return torch.ones(stripe.shape, dtype=torch.bool, device=stripe.device).triu_()


@dataclass(frozen=True)
class Batch:
    """Vectors to be added to a moment, of which only one chunk at a time is copied.

    Attributes:
        rows: `[n, dim]`, as they came.
        kept: `[n]`, which of them count; all if None.
        weights: `[n]`, how often each counts; once if None.
    """

    rows: Tensor
    kept: Tensor | None
    weights: Tensor | None

    @classmethod
    def of(
        cls, call: str, dim: int, x: Inputs, mask: object = None, weights: object = None
    ) -> Batch:
        """Take `x [..., dim]` apart into rows.

        Raises:
            ShapeError: not tensors, of another shape, or negative or infinite weights.
        """
        check_vectors(call, "x", x, dim)
        flat: list[Tensor | None] = []
        for name, value in (("mask", mask), ("weights", weights)):
            if value is None:
                flat.append(None)
                continue
            check_dense(call, name, value)
            if not isinstance(value, Tensor) or value.shape != x.shape[:-1]:
                raise ShapeError(
                    f"{call}: {name} must be a tensor with the shape of x without its last axis, "
                    f"{list(x.shape[:-1])}, got {describe(value)}; use torch.as_tensor."
                )
            flat.append(value.detach().reshape(-1))
            if name == "mask" and not bool(((value == 0) | (value == 1)).all()):
                raise ShapeError(
                    f"{call}: mask must be booleans, or ones (kept) and zeros, got others in "
                    f"{describe(value)}; make it mask == 0 if it is additive, and pass how often "
                    "vectors count as weights=."
                )
        kept, counts = flat
        return cls(x.detach().reshape(-1, dim), kept, _checked_weights(call, counts, kept))

    def chunk(self, start: int, size: int) -> tuple[Tensor, Tensor | None]:
        """Those of `size` rows from `start` that count, and their weights."""
        part = slice(start, start + size)
        rows = self.rows[part]
        weights = None if self.weights is None else self.weights[part]
        if self.kept is None:
            return rows, weights
        # Chosen from a chunk at a time: all kept rows together would be a copy of the batch.
        kept = self.kept[part].bool()
        return (
            rows[kept.to(rows.device)],
            None if weights is None else weights[kept.to(weights.device)],
        )


def _checked_weights(call: str, weights: Tensor | None, kept: Tensor | None) -> Tensor | None:
    if weights is None:
        return None
    counted = weights if kept is None else weights[kept.bool().to(weights.device)]
    check_finite(call, "weights", counted)
    if bool((counted.double() < 0).any()):  # 8-bit numbers cannot be compared
        raise ShapeError(f"{call}: weights must not be negative, got {float(counted.min())}.")
    return weights
