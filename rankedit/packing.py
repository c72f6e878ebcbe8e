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


def coarser(a: torch.dtype, b: torch.dtype) -> torch.dtype:
    """The one of two dtypes that rounds more."""
    # Float dtypes narrower than those listed (8-bit formats) are coarser than all of them.
    known = [dtype if dtype in COARSENESS else torch.bfloat16 for dtype in (a, b)]
    return min(known, key=COARSENESS.index)


def packed_triangle(matrix: Covariance) -> Tensor:
    """Upper triangle of a symmetric matrix, row by row: `[dim, dim]` to `[dim·(dim+1)/2]`.

    What is below the diagonal is not read. A matrix product leaves there what differs in the last
    bit; with one triangle only, packing and unpacking at any moment changes no later bit.
    """
    rows, columns = torch.triu_indices(*matrix.shape, device=matrix.device)
    return matrix[rows, columns]


def unpacked(packed: Tensor, dim: int) -> Covariance:
    """The symmetric matrix `[dim, dim]` of an upper triangle `[dim·(dim+1)/2]`."""
    matrix = packed.new_zeros(dim, dim)
    rows, columns = torch.triu_indices(dim, dim, device=packed.device)
    matrix[rows, columns] = packed
    matrix[columns, rows] = packed
    return matrix


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
