"""Places in a model where a value is being learned, and the tensors that learn it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from rankedit.errors import ShapeError, SolveError
from rankedit.gated import GatedEdit
from rankedit.metric import Metric
from rankedit.models.geometry import device_of, geometry, run
from rankedit.models.patching import attach
from rankedit.models.projections import find
from rankedit.models.targets import resolve
from rankedit.shapes import Keys, Outputs, Values, describe


@dataclass(frozen=True)
class OutputSite:
    """Values that a projection is to give at chosen tokens, found by shifting its output there.

    Attributes:
        where: integers of the shape of the projection's output without its last axis: the number
            of the request whose shift is added at this token, -1 for no shift. Or a function that
            gives them for each call of the projection, or None to leave that call alone.
        count: number of requests.
    """

    where: Tensor | Callable[[], Tensor | None]
    count: int

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ShapeError(f"OutputSite: count must be at least 1, got {self.count}.")


Site: TypeAlias = GatedEdit | OutputSite


class ShiftedOutput:
    """An `OutputSite` in a model: `output + shift[where]`.

    Attributes:
        initial: `[count, out]`: what the projection gave at each request's first token.
        bias: `[1, out]`: what it gives for zero; part of `initial`, but of no value.
        leaf: `[count, out]`: the shift; the tensor to learn.
    """

    def __init__(self, name: str, model: nn.Module, site: OutputSite) -> None:
        self.name, self._site = name, site
        self._module = find(model, name)
        self._layout = geometry(self._module)
        device = device_of(self._module)
        self._seen = torch.zeros(site.count, dtype=torch.bool)
        self.initial = torch.zeros(site.count, self._layout.out_features, device=device)
        self.leaf = torch.zeros_like(self.initial).requires_grad_()
        with torch.no_grad():
            zero = torch.zeros(1, self._layout.in_features)
            self.bias = run(self._module, zero, self._layout).to(self.initial)

    @property
    def count(self) -> int:
        """Number of values."""
        return self._site.count

    def change(self) -> Values:
        """What learning has added to the initial values; differentiable."""
        return self.leaf

    def set_change(self, change: Values) -> None:
        """Overwrite the learned tensor."""
        self.leaf.data.copy_(change)

    def values(self) -> Values:
        """The values as they are now, without the bias: what `solve_edit` takes."""
        return (self.initial + self.leaf - self.bias).detach()

    def initial_values(self) -> Values:
        """The values before learning, without the bias."""
        return self.initial - self.bias

    def install(self) -> Callable[[], None]:
        """Add the shift in the model; gives the function that takes it out."""
        return self._module.register_forward_hook(self._hook).remove

    def _hook(self, _module: nn.Module, _args: object, output: Tensor) -> Outputs | None:
        site = self._site
        where = site.where if isinstance(site.where, Tensor) else site.where()
        if where is None:
            return None
        rows = output.movedim(-1 - len(self._layout.stride), -1)
        where = self._checked(where, rows)
        self._note(where, rows)
        # Row 0 of the table is no shift, and number -1 is looked up there.
        table = torch.cat([torch.zeros_like(self.leaf[:1]), self.leaf])
        added = table[(where + 1).to(table.device)].to(output)
        return output + self._layout.from_rows(added)

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
        if bool(self._seen.all()):
            return
        numbers, flat = where.reshape(-1).tolist(), rows.detach().reshape(-1, rows.shape[-1])
        for place, number in enumerate(numbers):
            if number >= 0 and not self._seen[number]:
                self._seen[number] = True
                self.initial[number] = flat[place].to(self.initial)

    def check_reached(self) -> None:
        """Refuse requests that never came.

        Raises:
            SolveError: names the request.
        """
        if not bool(self._seen.all()):
            missing = self._seen.logical_not().nonzero().flatten().tolist()
            raise SolveError(
                f"optimise_value: requests {missing} of {self.name!r} occur nowhere in `where`, or "
                "the loss does not run the projection; run compiled models uncompiled."
            )


class GatedValues:
    """A `GatedEdit` in a model whose targets, and keys if there is a metric, are learned.

    Attributes:
        initial: `[n, out]`: the targets before learning.
        leaf: `[n, out]`: the targets; the tensor to learn.
        keys: `[n, in]`: the keys, if they are learned too.
    """

    def __init__(self, name: str, model: nn.Module, edit: GatedEdit, metric: Metric | None) -> None:
        (target,) = resolve("optimise_value", model, {name: edit})
        device = device_of(target.layer)
        self.name, self._edit, self._metric = name, edit, metric
        self._images = edit.images.detach().to(device)
        self._keys = edit.keys.detach().to(device)
        self.initial = edit.targets.detach().to(device, torch.float32, copy=True)
        self.leaf = self.initial.clone().requires_grad_()
        self.keys = None if metric is None else self._keys.float().clone().requires_grad_()

    @property
    def count(self) -> int:
        """Number of values."""
        return self.initial.shape[0]

    def change(self) -> Values:
        """What learning has added to the initial targets; differentiable."""
        return self.leaf - self.initial

    def set_change(self, change: Values) -> None:
        """Overwrite the learned tensor."""
        self.leaf.data.copy_(self.initial + change)

    def values(self) -> Values:
        """The targets as they are now."""
        return self.leaf.detach().clone()

    def initial_values(self) -> Values:
        """The targets before learning."""
        return self.initial.clone()

    def edit(self) -> GatedEdit:
        """The edit with the tensors that learn."""
        return self._with(self.leaf, self.keys)

    def edit_with(self, values: Values, keys: Keys | None) -> GatedEdit:
        """The edit with these targets and keys, on the device of the edit that was given."""
        device = self._edit.keys.device
        edit = self._with(values, keys)
        return GatedEdit.from_images(
            edit.keys.detach().to(device),
            values.to(device),
            edit.images.detach().to(device),
            edit.gate,
            normalised=edit.normalised,
            floor=edit.floor,
            statistics=edit.statistics,
        )

    def _with(self, targets: Values, keys: Keys | None) -> GatedEdit:
        images = self._images
        if keys is not None and self._metric is not None:
            images = _Image.apply(keys, self._metric)  # type: ignore[no-untyped-call]
        return GatedEdit.from_images(
            self._keys if keys is None else keys,
            targets,
            images,
            self._edit.gate,
            normalised=self._edit.normalised,
            floor=self._edit.floor,
            statistics=self._edit.statistics,
        )


class _Image(torch.autograd.Function):
    """`keys ↦ keys A`, with the gradient `g ↦ g A`, because A is symmetric."""

    @staticmethod
    def forward(ctx: Any, keys: Keys, metric: Metric) -> Keys:  # noqa: ANN401 - torch's own context
        ctx.metric, ctx.keys_like = metric, keys.detach()
        return metric.solve(keys).to(keys.device)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Keys, None]:  # noqa: ANN401
        return ctx.metric.solve(gradients[0]).to(ctx.keys_like), None


class Sites:
    """All places where values are learned in one search.

    Args:
        model: the model.
        sites: by the name of the projection.
        metrics: for the edits whose keys are learned too, by the same names.
    """

    def __init__(
        self, model: nn.Module, sites: Mapping[str, Site], metrics: Mapping[str, Metric]
    ) -> None:
        wrong = [name for name in metrics if not isinstance(sites.get(name), GatedEdit)]
        if not sites or wrong:
            problem = f"metrics for {wrong}, which have no GatedEdit" if wrong else "no sites"
            raise SolveError(
                "optimise_value: needs at least one site, and metrics only for gated edits whose "
                f"keys are to be learned, got {problem}."
            )
        self._model = model
        self.shifted: list[ShiftedOutput] = []
        self.gated: list[GatedValues] = []
        for name, site in sites.items():
            if isinstance(site, OutputSite):
                self.shifted.append(ShiftedOutput(name, model, site))
            else:
                self.gated.append(GatedValues(name, model, site, metrics.get(name)))

    @property
    def all(self) -> list[ShiftedOutput | GatedValues]:
        """Every place."""
        return [*self.shifted, *self.gated]

    def keys(self) -> list[Keys]:
        """The keys that learn."""
        return [site.keys for site in self.gated if site.keys is not None]

    @contextlib.contextmanager
    def installed(self) -> Iterator[Callable[[], contextlib.AbstractContextManager[object]]]:
        """Put everything into the model; gives a context in which the loss is to be evaluated."""
        with contextlib.ExitStack() as stack:
            for site in self.shifted:
                stack.callback(site.install())
            if self.keys():  # their metric images change with them: attach anew for each step
                yield self._attached
            else:
                stack.enter_context(self._attached())
                yield contextlib.nullcontext

    def _attached(self) -> contextlib.AbstractContextManager[object]:
        edits = {site.name: site.edit() for site in self.gated}
        return attach(self._model, edits) if edits else contextlib.nullcontext()
