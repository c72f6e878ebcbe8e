"""UltraEdit: no search and no statistics, one step along the gradient. Gu et al., arXiv 2505.14679.

With k what the projection reads and g the loss's gradient by what it gives, at the tokens of an
answer, and hats for features normalised by the mean and deviation of all edits so far:

    v = −η ‖k̂‖² ĝ,        ΔWᵀ = (KᵀK + I)⁻¹ KᵀV

It is the one equation with M = I, softness 1, and what the keys lack given by V.

Deviations: solved in the dual where keys are fewer than inputs; where keys and gradients come from
is left to the caller, so that it is a function and no `--method`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

import rankedit as rk


@dataclass
class Features:
    """Mean and deviation of each feature over all rows ever seen (the paper's lifelong ones)."""

    count: int = 0
    mean: Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.float64))
    squares: Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.float64))

    def seen(self, rows: Tensor) -> Tensor:
        """Count rows `[n, dim]` in, and give them normalised; dead features as zeros."""
        rows = rows.detach().double().cpu()
        count, apart = self.count + len(rows), rows.mean(0) - self.mean
        between = apart.square() * (self.count * len(rows) / count)
        self.squares = self.squares + (rows - rows.mean(0)).square().sum(0) + between
        self.mean, self.count = self.mean + apart * (len(rows) / count), count
        deviation = (self.squares / max(count - 1, 1)).sqrt()
        return (rows - self.mean) / deviation.where(deviation > 0, torch.inf)


def ultraedit(
    layer: object, keys: Tensor, gradients: Tensor, seen: tuple[Features, Features], rate: float
) -> rk.LowRank:
    """The edit of one projection; `seen` (of keys, of gradients) goes from one edit to the next."""
    size, direction = (f.seen(rows) for f, rows in zip(seen, (keys, gradients), strict=True))
    steps = -rate * size.square().sum(1, keepdim=True) * direction
    values = rk.linear_output(layer, keys).double() + steps.to(keys.device)
    return rk.solve_edit(layer, keys, values, rk.Metric.identity(keys.shape[1]), softness=1.0)
