"""Symmetric matrices as packed triangles, and what processes must agree on to add moments."""

from __future__ import annotations

import torch
from torch import Tensor

from rankedit.errors import StatisticsError
from rankedit.shapes import Covariance

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


def check_same_dim(
    dim: int, device: torch.device | str, group: torch.distributed.ProcessGroup | None
) -> None:
    """Refuse to reduce moments of different widths, on every process at once."""
    extremes = torch.tensor([dim, -dim], device=device)
    torch.distributed.all_reduce(extremes, op=torch.distributed.ReduceOp.MAX, group=group)
    largest, smallest = int(extremes[0]), -int(extremes[1])
    if largest != smallest:
        raise StatisticsError(
            f"SecondMoment.all_reduce_: all processes must hold the same width, got {smallest} to "
            f"{largest}; reduce the moments of one projection at a time, in the same order."
        )
