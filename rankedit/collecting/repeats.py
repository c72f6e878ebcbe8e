"""Vectors that come again and again, as padding does that no mask leaves out."""

from __future__ import annotations

import torch
from torch import Tensor

from rankedit.shapes import Inputs

# Padding is most of a short text. A word that is a third of all words is none; and of a few
# vectors many may be equal by chance.
_SHARE, _FEWEST = 1 / 3, 16
# Columns by which rows are told apart before they are compared whole.
_COLUMNS = 64
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def repeated(x: Inputs, mask: Tensor | None) -> int:
    """How often the most frequent vector of `x [..., in]` comes; 0 if that is not suspicious."""
    rows = x.reshape(-1, x.shape[-1])
    if mask is not None:
        rows = rows[mask.reshape(-1).to(rows.device)]
    if len(rows) < _FEWEST:
        return 0
    columns = torch.linspace(0, rows.shape[1] - 1, min(_COLUMNS, rows.shape[1])).long()
    # The bits as integers: sums of those wrap around and are exact, in any order.
    bits = rows[:, columns.to(rows.device)].contiguous().view(_INTEGERS[rows.element_size()]).long()
    factors = torch.arange(1, bits.shape[1] + 1, device=bits.device) * 0x9E3779B1 + 1
    sums = (bits * factors).sum(1)
    _, places, counts = sums.unique(return_inverse=True, return_counts=True)
    if not _is_many(int(counts.max()), len(rows)):
        return 0
    alike = rows[places == counts.argmax()]
    same = int((alike == alike[:1]).all(1).sum())
    return same if _is_many(same, len(rows)) else 0


def _is_many(count: int, of: int) -> bool:
    return count >= _FEWEST and count > _SHARE * of
