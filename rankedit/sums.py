"""The sums behind a second moment, and the products that go into them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rankedit.packing import Triangle

# Beyond this share of the energy in the mean, float32 would cost the covariance more than about a
# hundred units of its last digit. Of fewer vectors the mean says nothing, and float64 costs little.
_MEAN_SHARE, _FEW = 0.9, 64

# How products of rows are computed; sums are in float64 always.
Products = Literal["float32", "float64"]


@dataclass(eq=False)
class Sums:
    """`Σw xᵀx`, `Σw x`, and the three numbers `Σw`, `Σw²`, `Σw‖x‖⁴`; all in float64."""

    outer: Triangle
    total: Tensor
    scalars: Tensor

    @classmethod
    def zero(cls, dim: int, device: torch.device | str | None = None) -> Sums:
        """Of no vectors."""
        total = torch.zeros(dim, dtype=torch.float64, device=device or "cpu")
        return cls(Triangle(dim, total.device), total, total.new_zeros(3))

    def add_(self, rows: Tensor, weights: Tensor | None, energies: Tensor) -> None:
        """Add vectors `[n, dim]`, float64 or float32, with their energies `‖x‖² [n]`, float64."""
        w = energies.new_ones(rows.shape[0]) if weights is None else weights
        fourth = w * energies.square()
        self.scalars += torch.stack([w.sum(), w.square().sum(), fourth.sum()])
        weighted = rows if weights is None else rows * weights[:, None].to(rows.dtype)
        self.outer.add_product_(rows, weighted)
        self.total += weighted.sum(0)

    def merge_(self, other: Sums) -> None:
        """Add other sums."""
        self.outer.add_(other.outer)
        self.total += other.total.to(self.total.device)
        self.scalars += other.scalars.to(self.scalars.device)

    def to(self, device: torch.device | str) -> Sums:
        """A copy on a device."""
        moved = (t.to(device, copy=True) for t in (self.total, self.scalars))
        return Sums(self.outer.to(device), *moved)

    def flat(self) -> Tensor:
        """All numbers one behind the other."""
        return torch.cat([self.outer.packed(), self.total, self.scalars])

    @classmethod
    def from_flat(cls, flat: Tensor, dim: int) -> Sums:
        """From `flat()`."""
        packed, total, scalars = flat.split([dim * (dim + 1) // 2, dim, 3])
        return cls(Triangle.from_packed(packed, dim), total.clone(), scalars.clone())


def measured(rows: Tensor, products: Products, device: torch.device) -> tuple[Tensor, Tensor]:
    """Vectors `[n, dim]` in the precision in which their products are computed, and `‖x‖² [n]`.

    Float32 only where the vectors are no finer than that, and spread about the origin: of vectors
    whose mean is far longer than they differ, rounding in units of the mean would leave nothing of
    the covariance.
    """
    coarse = rows.dtype != torch.float64 and products == "float32" and _exact(device)
    if coarse:
        narrow = rows.to(device, torch.float32)
        energies = torch.linalg.vecdot(narrow, narrow)
        # bfloat16 and float32 hold numbers whose squares float32 does not.
        if bool(torch.isfinite(energies).all()) and _spread(narrow, energies):
            return narrow, energies.double()
    wide = rows.to(device, torch.float64)
    return wide, wide.square().sum(1)


def _spread(rows: Tensor, energies: Tensor) -> bool:
    """Whether the vectors' mean has at most a known share of their energy; unknown of a few."""
    least = energies.mean() * (1 - _MEAN_SHARE)
    return len(rows) >= _FEW and bool(energies.mean() - rows.mean(0).square().sum() >= least)


def _exact(device: torch.device) -> bool:
    """Whether products of float32 are computed in float32: TF32 keeps 10 bits, bfloat16 8."""
    if torch.get_float32_matmul_precision() != "highest":
        return False
    return device.type != "cuda" or not torch.backends.cuda.matmul.allow_tf32
