"""Values that a projection is to give at chosen tokens, found by shifting its output there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rankedit.errors import ShapeError, SolveError
from rankedit.models.experts import Expert
from rankedit.models.geometry import device_of, geometry, innermost, run
from rankedit.models.projections import find
from rankedit.shapes import Outputs, Values, check_count, check_dense, check_kind, describe


@dataclass(frozen=True)
class OutputSite:
    """Values that a projection is to give at chosen tokens, found by shifting its output there.

    Attributes:
        where: integers of the shape of the projection's output without its last axis (for an
            expert, of what comes to all experts): the number of the request whose shift is added at
            this token, -1 for no shift. Or a function that gives them for each call of the
            projection, or None to leave that call alone.
        count: number of requests.
        scale: `[count]`, a length for each request that all about its shift is relative to: the
            learning rate (to its root mean square over the coordinates), clamp and decay. If None,
            clamp and decay are relative to the initial value and the rate is absolute, as in ROME.
        factor: of the shape of `where`, or a function as there: how much of the shift a token gets;
            all of it if None. An edit that is solved for one key gives others a part of its value.
    """

    where: Tensor | Callable[[], Tensor | None]
    count: int
    scale: Tensor | None = None
    factor: Tensor | Callable[[], Tensor] | None = None

    def __post_init__(self) -> None:
        check_count("OutputSite", "count", self.count)
        if not isinstance(self.where, Tensor) and not callable(self.where):
            raise ShapeError(
                f"OutputSite: where must be a tensor of integers, or a function that gives one, "
                f"got {describe(self.where)}."
            )
        if self.scale is not None:
            check_kind("OutputSite", "scale", self.scale, Tensor)
            check_dense("OutputSite", "scale", self.scale)
            self._check_scale(self.scale.double())

    def _check_scale(self, scale: Tensor) -> None:
        shaped = scale.shape == (self.count,)
        if not shaped or not bool(((scale > 0) & scale.isfinite()).all()):
            raise ShapeError(
                f"OutputSite: scale must be [{self.count}], one positive finite length for each "
                f"request, got {describe(scale)}."
            )


class ShiftedOutput:
    """An `OutputSite` in a model: `output + shift[where]`.

    Attributes:
        initial: `[count, out]`: what the projection gave at each request's first token.
        module: the projection.
        reached: whether the projection was called since the shift was installed.
        bias: `[1, out]`: what it gives for zero; part of `initial`, but of no value.
        leaf: `[count, out]`: the shift, in units of the scale if there is one; what learns.
    """

    def __init__(self, name: str, model: nn.Module, site: OutputSite) -> None:
        self.name, self._site, self.reached = name, site, False
        self.module = find(model, name)
        self._layout = geometry(self.module)
        device = device_of(self.module)
        self._seen = torch.zeros(site.count, dtype=torch.bool)
        self.initial = torch.zeros(site.count, self._layout.out_features, device=device)
        self.leaf = torch.zeros_like(self.initial).requires_grad_()
        self._unit = self.initial.new_ones(site.count, 1)
        if site.scale is not None:
            # Adam's step is about one in each coordinate; this makes it one root mean square of the
            # scale.
            self._unit = site.scale.to(self._unit)[:, None] / self._layout.out_features**0.5
        with torch.no_grad():
            # Run on zero rather than read from `bias`, which wrappers and quantised layers may
            # lack.
            zero = torch.zeros(1, self._layout.in_features)
            self.bias = run(self.module, zero, self._layout).to(self.initial)

    @property
    def count(self) -> int:
        """Number of values."""
        return self._site.count

    def change(self) -> Values:
        """What learning has added to the initial values; differentiable."""
        return self.leaf * self._unit

    def set_change(self, change: Values) -> None:
        """Overwrite the learned tensor."""
        self.leaf.data.copy_(change / self._unit)

    def lengths(self) -> Tensor:
        """What clamp and decay are relative to `[count]`."""
        scale = self._site.scale
        return self.initial.norm(dim=1) if scale is None else scale.to(self.initial)

    def penalised(self) -> Tensor:
        """What the decay multiplies `[count]`: ROME's `‖δ‖/‖v₀‖²`, or `‖δ‖` over the scale."""
        lengths = self.lengths()
        return self.change().norm(dim=1) / (lengths**2 if self._site.scale is None else lengths)

    def values(self) -> Values:
        """The values as they are now, without the bias: what `solve_edit` takes."""
        return (self.initial + self.change() - self.bias).detach()

    def initial_values(self) -> Values:
        """The values before learning, without the bias."""
        return self.initial - self.bias

    def install(self) -> Callable[[], None]:
        """Add the shift in the model; gives the function that takes it out."""
        return self.module.register_forward_hook(self._hook).remove

    def _hook(self, _module: nn.Module, _args: object, output: Tensor) -> Outputs | None:
        self.reached, site = True, self._site
        where = site.where if isinstance(site.where, Tensor) else site.where()
        if where is None:
            return None
        rows = output.movedim(-1 - len(self._layout.stride), -1)
        where = self._checked(self._routed("where", where), rows)
        self._note(where, rows)
        # Row 0 of the table is no shift, and number -1 is looked up there.
        table = torch.cat([torch.zeros_like(self.leaf[:1]), self.change()])
        added = table[(where + 1).to(table.device)]
        if site.factor is not None:
            factor = site.factor if isinstance(site.factor, Tensor) else site.factor()
            added = added * self._fitting(self._routed("factor", factor), where).to(added)
        added = added.to(output)
        return output + self._layout.from_rows(added)

    def _routed(self, what: str, given: Tensor) -> Tensor:
        """Of an expert: what is given for all that come to the experts, for those that it reads."""
        layer = innermost(self.module)
        if not isinstance(layer, Expert) or layer.routed is None:
            return given
        inputs, tokens = layer.routed
        if given.numel() != len(inputs):
            raise ShapeError(
                f"optimise_value: {what} of {self.name!r} must hold a number for each of the "
                f"{len(inputs)} vectors that come to the experts, got {describe(given)}."
            )
        return given.flatten()[tokens.to(given.device)]

    def _fitting(self, factor: Tensor, where: Tensor) -> Tensor:
        if factor.numel() != where.numel() or not bool(factor.isfinite().all()):
            raise ShapeError(
                f"optimise_value: factor of {self.name!r} must hold a finite number for each of "
                f"the {where.numel()} entries of where, got {describe(factor)}."
            )
        return factor.reshape(where.shape)[..., None]

    def _checked(self, where: Tensor, rows: Outputs) -> Tensor:
        if where.is_floating_point() or where.numel() != rows.shape[:-1].numel():
            raise ShapeError(
                f"optimise_value: where of {self.name!r} must hold an integer for each vector of "
                f"its output {list(rows.shape[:-1])}, got {describe(where)}."
            )
        if not -1 <= int(where.min()) <= int(where.max()) < self.count:
            raise ShapeError(
                f"optimise_value: where of {self.name!r} must hold numbers from -1 (none) to "
                f"{self.count - 1}, got {int(where.min())} to {int(where.max())}."
            )
        return where.reshape(rows.shape[:-1])

    def _note(self, where: Tensor, rows: Outputs) -> None:
        """Keep the output at each request's first token, once."""
        # Only the first time: later outputs have the shift in them already.
        if bool(self._seen.all()):
            return
        numbers, flat = where.reshape(-1).tolist(), rows.detach().reshape(-1, rows.shape[-1])
        for place, number in enumerate(numbers):
            if number >= 0 and not self._seen[number]:
                self._seen[number] = True
                self.initial[number] = flat[place].to(self.initial)

    def check_requests(self) -> None:
        """Refuse requests that never came, though the projection was called.

        Raises:
            SolveError: names the request.
        """
        if not bool(self._seen.all()):
            missing = self._seen.logical_not().nonzero().flatten().tolist()
            raise SolveError(
                f"optimise_value: requests {missing} of {self.name!r} occur nowhere in `where`; "
                "give each number from 0 to count - 1 at least one token."
            )
