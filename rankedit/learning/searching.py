"""The state of a search for values: its steps, when it stops, and what it found."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rankedit.errors import SolveError
from rankedit.gated import GatedEdit
from rankedit.learning.objective import Terms, ValueSearch
from rankedit.learning.shifting import ShiftedOutput
from rankedit.learning.sites import GatedValues, Sites
from rankedit.shapes import Keys, Values


@dataclass(frozen=True)
class StepReport:
    """What `on_step` is told after each evaluation of the loss.

    Attributes:
        step: number of the evaluation, from 0.
        totals: what is minimised, for each request `[n]`, or `[1]` if the loss is one number.
        stopped: which requests have stopped, now or before.
    """

    step: int
    totals: Tensor
    stopped: Tensor


OnStep = Callable[[StepReport], bool | Tensor | None]


@dataclass(frozen=True)
class LearnedValues:
    """The result of a search.

    Attributes:
        values: by projection, the values `[n, out]`, without the layer's bias: as `solve_edit`
            and `GatedEdit` take them.
        initial: what they were at the start.
        keys: the keys `[n, in]` of the edits whose keys were learned.
        edits: the gated edits with what was learned.
        totals: what was minimised, `[evaluations, n]` (or `[evaluations, 1]`).
        reasons: why each request stopped: `"low enough"`, `"no progress"`, `"told to"` (by
            `on_step`) or `"steps"`.
    """

    values: dict[str, Values]
    initial: dict[str, Values]
    keys: dict[str, Keys]
    edits: dict[str, GatedEdit]
    totals: Tensor
    reasons: tuple[str, ...]


class ValueSearchError(SolveError):
    """The loss or its gradient is not finite.

    Attributes:
        best: the values with the lowest totals before that; None if it was so from the start.
    """

    def __init__(self, message: str, best: LearnedValues | None) -> None:
        super().__init__(message)
        self.best = best


@dataclass
class _Snapshot:
    """Learned tensors by site, row by row from the step with the lowest total."""

    totals: Tensor
    values: dict[str, Values]
    keys: dict[str, Keys]


class Search:
    """The state of one search."""

    def __init__(self, placed: Sites, options: ValueSearch) -> None:
        self._placed, self._options = placed, options
        groups = [{"params": [site.leaf for site in placed.all], "lr": options.learning_rate}]
        if placed.keys():
            rate = options.key_learning_rate or options.learning_rate
            groups.append({"params": placed.keys(), "lr": rate})
        self._adam = torch.optim.Adam(groups)
        self._totals: list[Tensor] = []
        self._best: _Snapshot | None = None
        self._since_best = torch.zeros(0)
        self._reasons: list[str] = []

    # ---------------------------------------------------------------- when to stop

    def judge(self, totals: Tensor, on_step: OnStep | None) -> None:
        """Note the totals, and which requests stop."""
        # Before anything is noted: NaN compares as false, and would look like no progress.
        if not bool(totals.isfinite().all()):
            raise self._not_finite("loss", totals)
        if not self._reasons:
            self._reasons = [""] * len(totals)
            self._since_best = torch.zeros(len(totals))
        self._totals.append(totals.cpu())
        self._note_best(totals.cpu())
        low, patience = self._options.stop_below, self._options.patience
        self._stop("low enough", totals.cpu() < (-math.inf if low is None else low))
        self._stop("no progress", self._since_best >= (math.inf if patience is None else patience))
        if on_step is not None:
            report = StepReport(len(self._totals) - 1, totals.cpu(), self._stopped())
            told = on_step(report)
            self._stop("told to", torch.as_tensor(False if told is None else told).cpu())
        # Last, so that a request that became low enough in the final step says so.
        if len(self._totals) == self._options.steps:
            self._stop("steps", torch.tensor(data=True))

    def _stop(self, reason: str, which: Tensor) -> None:
        chosen = which.bool().expand(len(self._reasons)).tolist()
        pairs = zip(self._reasons, chosen, strict=True)
        self._reasons = [reason if not old and stop else old for old, stop in pairs]

    def _stopped(self) -> Tensor:
        return torch.tensor([bool(reason) for reason in self._reasons])

    @property
    def finished(self) -> bool:
        """Whether every request has stopped."""
        return all(self._reasons)

    def _note_best(self, totals: Tensor) -> None:
        values = {site.name: site.values() for site in self._placed.all}
        keys = self._keys()
        if self._best is None:
            self._best = _Snapshot(totals.clone(), values, keys)
            return
        better = totals < self._best.totals
        self._since_best = torch.where(better, 0, self._since_best + 1)
        self._best.totals[better] = totals[better]
        for kept, new in ((self._best.values, values), (self._best.keys, keys)):
            for name, rows in new.items():
                chosen = better.expand(len(rows)).to(rows.device)
                kept[name][chosen] = rows[chosen]

    def _not_finite(self, what: str, tensor: Tensor) -> ValueSearchError:
        rows = tensor.reshape(len(tensor), -1).isfinite().all(1).logical_not().nonzero().flatten()
        best = self._best
        return ValueSearchError(
            f"optimise_value: the {what} of requests {rows.tolist()} became NaN or infinite at "
            f"step {len(self._totals)}; lower the learning rate, or compute the loss in float32. "
            "The best values before are in this error's `best`.",
            None if best is None else self._result(best.values, best.keys),
        )

    # ---------------------------------------------------------------- the step

    def gradients(self, terms: Terms) -> list[Tensor]:
        """Gradients of the objective for all that is learned; the model's parameters get none."""
        leaves = [*(site.leaf for site in self._placed.all), *self._placed.keys()]
        # Loss and penalty apart: a penalty alone would hide that the loss does not reach a site.
        # `autograd.grad`, not `backward`: nothing else in the model gets a gradient.
        found: tuple[Tensor | None, ...] = (None,) * len(leaves)
        if terms.loss.requires_grad:
            found = torch.autograd.grad(terms.loss.sum(), leaves, allow_unused=True)
        penalties: tuple[Tensor | None, ...] = (None,) * len(leaves)
        if terms.penalty.requires_grad:
            penalties = torch.autograd.grad(terms.penalty.sum(), leaves, allow_unused=True)
        names = [site.name for site in self._placed.all]
        result = []
        for number, (gradient, penalty) in enumerate(zip(found, penalties, strict=True)):
            if gradient is None:
                name = names[number] if number < len(names) else "the keys"
                raise SolveError(
                    f"optimise_value: the loss does not depend on the values at {name!r}: it runs "
                    "the projection under no_grad, inside reentrant checkpointing "
                    "(use_reentrant=False passes gradients on), or in its first call alone."
                )
            total = gradient if penalty is None else gradient + penalty
            if not bool(total.isfinite().all()):
                raise self._not_finite("gradient", total)
            result.append(total)
        return result

    @torch.no_grad()
    def update(self, gradients: list[Tensor]) -> None:
        """One step of Adam for the requests that go on, and the clamp."""
        leaves = [*(site.leaf for site in self._placed.all), *self._placed.keys()]
        # Adam moves a row without a gradient too, by its momentum: rows that have stopped are put
        # back.
        before = [leaf.clone() for leaf in leaves]
        for leaf, gradient in zip(leaves, gradients, strict=True):
            leaf.grad = gradient
        self._adam.step()
        self._adam.zero_grad()
        for site in self._placed.all:
            self._clamp(site)
        stopped = self._stopped()
        for leaf, old in zip(leaves, before, strict=True):
            rows = stopped.expand(len(leaf)).to(leaf.device)
            leaf[rows] = old[rows]

    def _clamp(self, site: ShiftedOutput | GatedValues) -> None:
        if self._options.clamp is None:
            return
        change = site.change()
        limit = self._options.clamp * site.lengths()[:, None]
        length = change.norm(dim=1, keepdim=True)
        if bool((length > limit).any()):
            # A projection onto the ball after each step, as ROME does; not a term of the loss.
            factor = torch.where(length > limit, limit / length, 1.0)
            site.set_change(change * factor)

    # ---------------------------------------------------------------- the result

    def _keys(self) -> dict[str, Keys]:
        gated = self._placed.gated
        return {s.name: s.keys.detach().clone() for s in gated if s.keys is not None}

    def result(self) -> LearnedValues:
        """The values as they are now."""
        return self._result({site.name: site.values() for site in self._placed.all}, self._keys())

    def _result(self, values: dict[str, Values], keys: dict[str, Keys]) -> LearnedValues:
        return LearnedValues(
            values=values,
            initial={site.name: site.initial_values() for site in self._placed.all},
            keys=keys,
            edits={
                site.name: site.edit_with(values[site.name], keys.get(site.name))
                for site in self._placed.gated
            },
            totals=torch.stack(self._totals),
            reasons=tuple(self._reasons),
        )
