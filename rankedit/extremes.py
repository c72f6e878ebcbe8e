"""Vectors of extreme energy: how they are told from the others, and how they are kept.

Pretrained language models have *massive activations* (attention sinks): in some layers the first
token of a text is hundreds of times as long as any other, always in the same direction. One such
vector in a hundred has nearly all of the trace of `E[xᵀx]`, and every figure in units of the trace
is then about that vector. The reasons for what is done here, and what was measured, are in
docs/decisions/extreme-vectors.md.

Source: Sun et al., "Massive activations in large language models", arXiv 2402.17762.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rankedit.errors import ShapeError
from rankedit.shapes import Keys, check_finite, describe

# A vector is extreme if its energy ‖x‖² is this many times that of three quarters of all vectors:
# five times as long. One in a hundred of just below that length adds a quarter to the trace.
EXTREME = 25.0
_QUANTILE = 0.75
# Fewer vectors tell nothing about what is usual.
FEWEST = 64
# Directions that are kept, and rows that may wait to be summed up in them. Sinks have one or two.
_KEPT, _MOST = 32, 128
# The two leading bits of a float64's fraction and its exponent: four bins to each factor of two.
_SHIFT, _BINS = 50, 1 << 13


@dataclass(eq=False)
class Energies:
    """Histogram of the energies `‖x‖²` of rows: mergeable exactly, whatever the order.

    Attributes:
        counts: `[8192]` weights by bin, float64.
        rows: number of rows, not their weight.
    """

    counts: Tensor
    rows: int = 0

    @classmethod
    def on(cls, device: torch.device | str) -> Energies:
        """An empty one."""
        return cls(torch.zeros(_BINS, dtype=torch.float64, device=device))

    def add_(self, energies: Tensor, weights: Tensor | None) -> None:
        """Add rows by their energies `[n]`, float64, with the weights that they count with."""
        # Positive numbers have the order of their bits: no logarithm, and no bin is missing.
        bins = energies.view(torch.int64) >> _SHIFT
        ones = torch.ones_like(energies) if weights is None else weights
        self.counts.index_add_(0, bins, ones)
        self.rows += len(energies)

    def merge_(self, other: Energies) -> None:
        """Add another one."""
        self.counts += other.counts.to(self.counts.device)
        self.rows += other.rows

    def to(self, device: torch.device | str) -> Energies:
        """A copy on a device."""
        return Energies(self.counts.to(device, copy=True), self.rows)

    def bound(self) -> float:
        """The energy above which a vector is extreme; infinite while too few were seen."""
        # Rows of zeros say nothing about the usual length: they are padding, or dead.
        usual = self.counts[1:].cumsum(0)
        if self.rows < FEWEST or not float(usual[-1]):
            return math.inf
        index = 1 + int(torch.searchsorted(usual, _QUANTILE * usual[-1]))
        # The upper end of the bin, which is at most a quarter above what is in it.
        end = torch.tensor((index + 1) << _SHIFT, dtype=torch.int64).view(torch.float64)
        return EXTREME * float(end)

    def state(self) -> Tensor:
        """Bins that are not empty, their weights, and the number of rows: `[2, m + 1]`, float64."""
        bins = self.counts.nonzero()[:, 0]
        filled = torch.stack([bins.double(), self.counts[bins]])
        return torch.cat([filled, filled.new_tensor([[_BINS], [self.rows]])], 1)

    @classmethod
    def from_state(cls, state: Tensor) -> Energies:
        """From `state()`.

        Raises:
            ShapeError: it is none.
        """
        energies = cls.on(state.device)
        whole = state.ndim == 2 and state.shape[0] == 2 and bool((state == state.trunc())[0].all())
        if not whole or not bool(((state >= 0) & (state[:1] <= _BINS)).all()):
            raise ShapeError(
                f"SecondMoment.from_state: energies must be bins below {_BINS} and their weights, "
                f"got {describe(state)}; the state is damaged."
            )
        inside = state[0] < _BINS
        energies.counts.index_add_(0, state[0, inside].long(), state[1, inside].double())
        energies.rows = int(state[1, ~inside].sum())
        return energies


@dataclass(eq=False)
class Extremes:
    """Sums over the vectors of extreme energy, in few directions.

    Attributes:
        rows: `[r, dim]`, float64, with `rowsᵀ rows = Σw xᵀx`: the vectors themselves while they are
            few, then their principal directions.
        total: `Σw x [dim]`.
        scalars: `Σw`, `Σw²`, `Σw‖x‖⁴`.
    """

    rows: Tensor
    total: Tensor = field(repr=False)
    scalars: Tensor = field(repr=False)

    @classmethod
    def none(cls, dim: int, device: torch.device | str) -> Extremes:
        """Of no vectors."""
        empty = torch.zeros(0, dim, dtype=torch.float64, device=device)
        return cls(empty, empty.new_zeros(dim), empty.new_zeros(3))

    def __bool__(self) -> bool:
        return len(self.rows) > 0

    @property
    def count(self) -> float:
        """`Σw`: how many there are."""
        return float(self.scalars[0])

    @property
    def energy(self) -> float:
        """`Σw‖x‖²` in the directions that are kept."""
        return float(self.rows.square().sum())

    def add_(self, rows: Tensor, weights: Tensor | None) -> Tensor:
        """Add vectors `[n, dim]`, float64.

        Returns:
            Rows `[m, dim]` whose squares are no longer kept here and must be kept elsewhere, most
            often none: what is left of the vectors beside their principal directions.
        """
        w = rows.new_ones(len(rows)) if weights is None else weights
        fourth = w * rows.square().sum(1).square()
        self.scalars = self.scalars + torch.stack([w.sum(), w.square().sum(), fourth.sum()])
        self.total = self.total + w @ rows
        return self._kept(rows * w.sqrt()[:, None])

    def merge_(self, other: Extremes) -> Tensor:
        """Add others; see `add_` for what is returned."""
        self.scalars = self.scalars + other.scalars.to(self.scalars.device)
        self.total = self.total + other.total.to(self.total.device)
        return self._kept(other.rows.to(self.rows.device))

    def _kept(self, more: Tensor) -> Tensor:
        left = [more[:0]]
        for some in more.split(_MOST):
            self.rows = torch.cat([self.rows, some])
            if len(self.rows) > _MOST:
                turned = principal(self.rows)
                self.rows = turned[:_KEPT].clone()
                left.append(turned[_KEPT:])
        return torch.cat(left)

    def directions(self, usual: float) -> Keys:
        """Principal directions `[r, dim]` of unit length that make these vectors extreme.

        As many as it takes until what is left of them is no longer than usual vectors.

        Args:
            usual: mean energy of the other vectors.
        """
        turned = principal(self.rows)
        squares = turned.square().sum(1)
        left = squares.flip(0).cumsum(0).flip(0)  # of each direction and those after it
        chosen = turned[left > usual * self.count]
        return torch.nn.functional.normalize(chosen, eps=1e-300)

    def to(self, device: torch.device | str) -> Extremes:
        """A copy on a device."""
        return Extremes(*(t.to(device, copy=True) for t in (self.rows, self.total, self.scalars)))

    def state(self) -> dict[str, Tensor]:
        """All sums as named tensors."""
        return {"extreme_rows": self.rows, "extreme_total": self.total, "extremes": self.scalars}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], dim: int) -> Extremes:
        """From `state()`.

        Raises:
            ShapeError: sums of another shape, not finite, or a negative count.
        """
        call = "SecondMoment.from_state"
        parts = [state[name].double() for name in ("extreme_rows", "extreme_total", "extremes")]
        for part, shape in zip(parts, ([len(parts[0]), dim], [dim], [3]), strict=True):
            if list(part.shape) != shape:
                raise ShapeError(f"{call}: extremes must have shape {shape}, got {describe(part)}.")
            check_finite(call, "extremes", part)
        if bool((parts[2] < 0).any()) or len(parts[0]) > _MOST:
            raise ShapeError(
                f"{call}: extremes must be at most {_MOST} rows and sums that are not negative, "
                f"got {len(parts[0])} rows and {parts[2].tolist()}; the state is damaged."
            )
        return cls(*parts)


def principal(rows: Tensor) -> Tensor:
    """Rows `[r, dim]` turned so that they are orthogonal, the longest first; `rowsᵀ rows` stays."""
    # Turned from the left, which keeps every digit of the sum of squares, however exact the turn
    # is: no singular vector is divided by a singular value.
    if not len(rows):
        return rows
    scale = rows.abs().max()
    turn = torch.linalg.eigh(rows / scale @ (rows / scale).T).eigenvectors.flip(1)
    return turn.T @ rows
