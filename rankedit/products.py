"""Products with many rows, in float64 and in pieces: rows are never held in float64 all at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from rankedit.shapes import Inputs, Outputs

# Numbers that are converted at once: 16 MB, which the C library keeps for the next ones, where 32
# would come fresh from the system each time; and rows enough for products at full speed.
_NUMBERS, _FEWEST_ROWS = 1 << 21, 512
# Columns of a symmetric matrix that are computed at once, from the diagonal down.
_COLUMNS = 256
# Binary digits between the norms of up and down from which on an edit is run balanced, and units of
# a dtype's last digit that rounding to it may cost.
_APART, DIGITS = 60, 4
_AS_IT_IS = nullcontext()


def pieces(rows: Tensor, other: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Some of the rows of both at a time."""
    some = max(_NUMBERS // rows.shape[1], _FEWEST_ROWS)
    return zip(rows.split(some), other.split(some), strict=True)


def product(rows: Tensor, columns: Tensor) -> Tensor:
    """`rows @ columns` in float64, for rows `[n, dim]` of any dtype; passes gradients on."""
    # `out=` has no gradient.
    if rows.requires_grad or columns.requires_grad:
        return rows.double() @ columns
    result = columns.new_empty(len(rows), columns.shape[1])
    for piece, out in pieces(rows, result):
        torch.mm(piece.double(), columns, out=out)
    return result


def transposed_product(left: Tensor, rows: Tensor) -> Tensor:
    """`left.T @ rows` in float64, for rows `[n, dim]` of any dtype and left `[n, m]` in float64."""
    result = left.new_zeros(left.shape[1], rows.shape[1])
    for piece, weights in pieces(rows, left):
        result.addmm_(weights.T, piece.double())
    return result


def add_gram_(matrix: Tensor, rows: Tensor) -> None:
    """`matrix += rows.T @ rows` on and below the diagonal; what is above is left unspecified."""
    for start, stop in _blocks(len(matrix)):
        matrix[start:, start:stop].addmm_(rows[:, start:].T, rows[:, start:stop])


def add_square_(matrix: Tensor, lower: Tensor, factor: float) -> None:
    """`matrix += factor · lower @ lower.T` on and below the diagonal, for a triangular matrix."""
    for start, stop in _blocks(len(matrix)):
        left, right = lower[start:, :stop], lower[start:stop, :stop]
        matrix[start:, start:stop].addmm_(left, right.T, alpha=factor)


def _blocks(dim: int) -> list[tuple[int, int]]:
    return [(start, min(start + _COLUMNS, dim)) for start in range(0, dim, _COLUMNS)]


def row_norms(rows: Tensor) -> Tensor:
    """Norms of the rows, whose squares may be out of range."""
    peaks = rows.abs().amax(dim=1).clamp_min(torch.finfo(rows.dtype).tiny)
    return peaks * (rows / peaks[:, None]).norm(dim=1)


def holds(dtype: torch.dtype, *factors: Tensor) -> bool:
    """Whether every row of the factors keeps its digits in a dtype."""
    for rows in factors:
        if torch.promote_types(dtype, rows.dtype) != dtype:
            # Relative to the row: what of it is too small for the dtype may be all of it.
            wide = rows.detach()
            lost = row_norms(wide - wide.to(dtype).to(wide.dtype))
            if not bool((lost <= DIGITS * torch.finfo(dtype).eps * row_norms(wide)).all()):
                return False
    return True


def lopsided(ups: Tensor, downs: Tensor) -> bool:
    """Whether rows are so far apart in length that what is between them may leave float32."""
    first, second = row_norms(ups).double(), row_norms(downs).double()
    apart = (first.log2() - second.log2()).abs() > _APART
    return bool((apart & (first > 0) & (second > 0)).any())


def bound(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor in the dtype asked for; one that an optimiser changes as it is, not a copy."""
    learns = tensor.requires_grad and tensor.is_leaf and tensor.dtype == torch.float32
    return tensor if learns else tensor.to(dtype)


def full_precision(x: Inputs) -> AbstractContextManager[None]:
    """Autocast off where it is on: to enter its context costs as much as a small edit."""
    # Asked of all devices first, which takes a fifth of the time (torch 2.13 says it in private).
    if not torch._C._is_any_autocast_enabled():
        return _AS_IT_IS
    device = x.device.type
    if x.is_meta or not torch.is_autocast_enabled(device):  # meta has no autocast to ask about
        return _AS_IT_IS
    return torch.autocast(device, enabled=False)


def sum_of_products(x: Inputs, terms: Sequence[tuple[Tensor, Tensor]]) -> Outputs:
    """What the terms of a `Factored` edit for x sum to."""
    with full_precision(x):
        products = [coefficients @ rows for coefficients, rows in terms]
        return products[0] if len(products) == 1 else sum(products[1:], products[0])
