"""Edits that are told of each call where and when they act: the protocol, and the plainest one.

The constants of an edit say what is added; which rows of a sequence are meant, and at which time of
a sampler, differs from call to call: docs/decisions/told-of-a-call.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from rankedit.errors import ShapeError
from rankedit.products import bound, full_precision, sum_of_products
from rankedit.protocol import Edit, KeyOutputs, precision
from rankedit.shapes import Inputs, Outputs, check_count, check_finite, check_kind, describe

ROWS = "rows"
TIME = "time"
_NUMBERS = "numbers"


@runtime_checkable
class ToldEdit(Edit, Protocol):
    """An edit that reads tensors of each call beside its constants.

    `Attachment.tell` gives them; `added` finds them among its tensors. One of them is `rows [batch,
    tokens, ...]`: the edit is handed as many rows of the sequence, `x [batch, tokens, in]`, and
    nothing is added to any other.
    """

    @property
    def told(self) -> frozenset[str]:
        """Names of what it reads of a call, `rows` among them."""

    @property
    def last(self) -> bool:
        """Whether its rows are the last of a sequence; they are the first otherwise."""


@dataclass(frozen=True, eq=False)
class PlacedEdit:
    """Vectors that are added to chosen rows of a sequence, by an amount that follows the time.

        y[b, p] = W x[b, p] + Σ_j rows[b, p, j] · Σ_k hat_k(time[b]) targets[j, k]

    with `hat_k` the piecewise linear function that is 1 at the time `k/(knots − 1)` and 0 at all
    others of these. It reads of each call `rows [batch, tokens, n]` (`[batch, tokens]` for one
    vector): any number, 0 where nothing is added; and of edits with knots `time [batch]` or one
    number, in 0 to 1, beyond which it stays what it is there.

    `==` asks whether two edits are one object.

    Args:
        targets: `[n, knots, out]`, or `[n, out]` for what is the same at all times; may require
            gradients.
        in_features: width of the projection's inputs, which are not read.
        last: whether `rows` are the last of a sequence that holds others before them.

    Raises:
        ShapeError: shapes that do not match.

    Example:
        >>> import torch, rankedit as rk
        >>> layer = torch.nn.Linear(2, 1, bias=False)
        >>> _ = layer.weight.data.zero_()
        >>> with rk.attach(layer, PlacedEdit(torch.tensor([[[1.0], [3.0]]]), 2)) as attachment:
        ...     attachment.tell(rows=torch.tensor([[0.0, 1.0]]), time=0.5)
        ...     layer(torch.ones(1, 3, 2)).flatten().tolist()
        [0.0, 2.0, 0.0]
    """

    targets: Tensor
    in_features: int
    last: bool = False
    linear_in: ClassVar[tuple[str, ...]] = ("targets",)

    def __post_init__(self) -> None:
        check_kind("PlacedEdit", "targets", self.targets, Tensor)
        check_count("PlacedEdit", "in_features", self.in_features)
        check_kind("PlacedEdit", "last", self.last, bool)
        floating = self.targets.is_floating_point()
        if self.targets.ndim not in (2, 3) or not self.targets.numel() or not floating:
            raise ShapeError(
                "PlacedEdit: targets must be [n, out] or [n, knots, out] numbers, got "
                f"{describe(self.targets)}."
            )
        check_finite("PlacedEdit", "targets", self.targets.detach())

    @property
    def out_features(self) -> int:
        """Width of the outputs."""
        return self.targets.shape[-1]

    @property
    def knots(self) -> int:
        """Times at which each vector is given; 1 for what is the same at all times."""
        return self.targets.shape[1] if self.targets.ndim == 3 else 1

    @property
    def told(self) -> frozenset[str]:
        """`rows`, and `time` with several knots."""
        return frozenset({ROWS, TIME} if self.knots > 1 else {ROWS})

    @property
    def form(self) -> str:
        """What of its arithmetic is not in its tensors; see `Attachment.refresh`."""
        return f" on the {'last' if self.last else 'first'} rows"

    def bind(self, outputs: KeyOutputs) -> dict[str, Tensor]:
        """`targets`, and the knots' numbers; what the layer gives does not matter."""
        dtype = precision(outputs)
        tensors = {"targets": bound(self.targets, dtype)}
        if self.knots > 1:
            numbers = torch.arange(self.knots, dtype=dtype, device=self.targets.device)
            tensors[_NUMBERS] = numbers
        return tensors

    def added(self, x: Inputs, tensors: Mapping[str, Tensor]) -> Outputs:
        """What the formula adds to `W x`."""
        return sum_of_products(x, self.terms(x, tensors))

    def terms(self, x: Inputs, tensors: Mapping[str, Tensor]) -> tuple[tuple[Tensor, Tensor], ...]:
        """`rows[b, p, j]·hat_k(time[b])`, `[batch, tokens, n·knots]`, with the targets."""
        targets = tensors["targets"]
        with full_precision(x):
            rows = tensors[ROWS].to(targets.dtype)
            rows = rows[..., None] if rows.ndim == 2 else rows
            if rows.shape[-1] != len(targets):
                raise ShapeError(
                    f"PlacedEdit: rows must be [batch, tokens, {len(targets)}], one number for "
                    f"each vector, got {list(rows.shape)}; tell(rows=...) gives them."
                )
            if self.knots > 1:
                weights = hats(tensors[TIME].to(targets.dtype), tensors[_NUMBERS])
                rows = (rows[..., None] * weights.reshape(-1, 1, 1, self.knots)).flatten(2)
        return ((rows, targets.reshape(-1, targets.shape[-1])),)

    def settings(self) -> frozenset[str]:
        """Nothing but the strength, which every attached edit has."""
        return frozenset()


def hats(time: Tensor, numbers: Tensor) -> Tensor:
    """Weights `[batch, knots]` of piecewise linear interpolation, even knots from 0 to 1.

    Args:
        time: `[batch]` or a number; beyond 0 and 1 as there.
        numbers: of the knots, 0 to knots − 1; at least two.
    """
    last = len(numbers) - 1
    apart = (time.reshape(-1, 1) * last).clamp(0, last) - numbers
    return (1 - apart.abs()).clamp_min(0)
