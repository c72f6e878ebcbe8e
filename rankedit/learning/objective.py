"""What a search for values minimises: the user's loss, a divergence, and a penalty."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from rankedit.errors import ShapeError, SolveError
from rankedit.learning.sites import Sites
from rankedit.models.reaching import not_called
from rankedit.shapes import check_kind, describe, is_number

Loss: TypeAlias = Callable[[], Tensor | tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class ValueSearch:
    """How values are searched for. The defaults are those of ROME (arXiv 2202.05262) for GPT-J.

    With the value `v = v₀ + δ`, the search minimises, for each request,

        loss + kl · KL(p ‖ p₀) + decay · ‖δ‖/‖v₀‖²        subject to  ‖δ‖ ≤ clamp · ‖v₀‖

    Attributes:
        steps: how often the loss is evaluated; there is one update less, so that the values
            returned are values of which the loss is known.
        learning_rate: of Adam, for the values.
        key_learning_rate: of Adam, for keys, if they are learned; None for the same.
        clamp: largest length of the change, in lengths of the initial value; None for no limit.
        decay: weight of the change's length. As in ROME, the length itself and not its square.
        kl: weight of the divergence from the distributions at the start, if the loss returns any.
        stop_below: a request stops when its total is below this; None for never.
        patience: a request stops after so many steps without a new lowest total; None for never.
    """

    steps: int = 20
    learning_rate: float = 0.5
    key_learning_rate: float | None = None
    clamp: float | None = 4.0
    decay: float = 0.5
    kl: float = 0.0625
    stop_below: float | None = 0.05
    patience: int | None = None

    def __post_init__(self) -> None:
        given = vars(self)
        optional = {n for n in ("key_learning_rate", "clamp", "patience") if given[n] is None}
        positive = {"steps", "learning_rate", "key_learning_rate", "clamp", "patience"} - optional
        numbers = {name: given[name] for name in given if name in positive | {"decay", "kl"}}
        wrong = {
            name: value
            for name, value in numbers.items()
            if not is_number(value) or value < 0 or (name in positive and value == 0)
        }
        # A search of 2.5 steps would never come to its end.
        wrong |= {} if isinstance(self.steps, int) else {"steps": self.steps}
        check_kind("ValueSearch", "stop_below", self.stop_below, int, float, optional=True)
        if wrong:
            raise ShapeError(
                "ValueSearch: learning rates, clamp, steps and patience must be positive, decay "
                f"and kl not negative, all finite; got {str(wrong)[:300]}."
            )


@dataclass(frozen=True)
class Terms:
    """What is minimised: the part that runs the model, and the penalty; both `[g]`."""

    loss: Tensor
    penalty: Tensor

    @property
    def totals(self) -> Tensor:
        """Their sum, for each request."""
        return self.loss + self.penalty


class Objective:
    """The user's loss with what the options add to it.

    Args:
        placed: where values are learned.
        loss: the user's loss.
        options: weights of the terms.
    """

    def __init__(self, placed: Sites, loss: Loss, options: ValueSearch) -> None:
        self._placed, self._loss, self._options = placed, loss, options
        self._reference: Tensor | None = None
        self._checked = False

    def evaluate(self) -> Terms:
        """Run the loss, and add what the options say."""
        returned = self._loss()
        value, logits = returned if isinstance(returned, tuple) else (returned, None)
        self._check(value)
        # In float32 whatever the model runs in: bfloat16 would round a loss to three digits.
        parts = value.float().reshape(-1)
        if logits is not None:
            parts = parts + self._options.kl * self._divergence(logits, len(parts))
        return Terms(parts, self._penalty(parts))

    def _check(self, value: object) -> None:
        if not isinstance(value, Tensor) or value.ndim > 1 or not value.is_floating_point():
            raise ShapeError(
                "optimise_value: loss must return one number or a vector with one for each "
                f"request, as a tensor, got {describe(value)}; return losses.mean() or "
                "losses.sum(1)."
            )
        for site in self._placed.all:
            if value.ndim and len(value) != site.count:
                raise ShapeError(
                    f"optimise_value: loss must have one entry for each of the {site.count} values "
                    f"of {site.name!r}, or be one number, got {describe(value)}."
                )
        # Only after the loss has run once is it known which sites it reaches, and their lengths.
        if not self._checked:
            self._checked = True
            missed = self._placed.missed()
            if missed:
                remedy = "let it run the model, not a compiled copy of it"
                raise SolveError(not_called("optimise_value", missed, "by the loss", remedy))
            for shifted in self._placed.shifted:
                shifted.check_requests()
            self._check_lengths()

    def _check_lengths(self) -> None:
        # Both divide by the length, so that zero would give NaN, many steps later.
        relative = self._options.decay > 0 or self._options.clamp is not None
        for site in self._placed.all:
            if relative and bool((site.lengths() == 0).any()):
                raise SolveError(
                    f"optimise_value: an initial value of {site.name!r} is zero, but clamp and "
                    "decay are relative to its length; pass options with clamp=None and decay=0."
                )

    def _divergence(self, logits: Tensor, count: int) -> Tensor:
        """`KL(p ‖ p₀) [count]`, the mean over the rows of each request."""
        if logits.ndim != 2 or logits.shape[0] % count:
            raise ShapeError(
                f"optimise_value: logits must be [n·k, classes] for n = {count} losses, got "
                f"{describe(logits)}."
            )
        now = logits.float().log_softmax(-1)
        # The first call is made before any update: its distributions are the unedited model's.
        if self._reference is None:
            self._reference = now.detach()
        return (now.exp() * (now - self._reference)).sum(-1).reshape(count, -1).mean(1)

    def _penalty(self, like: Tensor) -> Tensor:
        penalty = torch.zeros_like(like)
        if self._options.decay:
            for site in self._placed.all:
                length = site.penalised()
                # One number for all requests: every request's penalty counts in it.
                length = length if len(length) == len(like) else length.sum()
                penalty = penalty + self._options.decay * length.to(like)
        return penalty
