"""Places in a model where a value is being learned, and the tensors that learn it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from rankedit.errors import SolveError
from rankedit.gated import GatedEdit
from rankedit.learning.shifting import OutputSite, ShiftedOutput
from rankedit.metric import Metric
from rankedit.models.experts import watched
from rankedit.models.geometry import device_of
from rankedit.models.patching import Attachment, attach
from rankedit.models.targets import resolve
from rankedit.shapes import Keys, Values, check_kind

Site: TypeAlias = GatedEdit | OutputSite


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
        # Adam in half precision would lose steps that are small beside the value.
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

    def lengths(self) -> Tensor:
        """What clamp and decay are relative to `[n]`."""
        return self.initial.norm(dim=1)

    def penalised(self) -> Tensor:
        """What the decay multiplies `[n]`."""
        return self.change().norm(dim=1) / self.initial.square().sum(1)

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
        edit, device = self._with(values, keys), self._edit.keys.device
        parts = {"keys": edit.keys, "targets": values, "images": edit.images}
        return edit.changed(**{name: part.detach().to(device) for name, part in parts.items()})

    def _with(self, targets: Values, keys: Keys | None) -> GatedEdit:
        images = self._images
        if keys is not None and self._metric is not None:
            # The metric solves in float64 without autograd; its gradient is known in closed form.
            images = _Image.apply(keys, self._metric)  # type: ignore[no-untyped-call]
        keys = self._keys if keys is None else keys
        return self._edit.changed(keys=keys, targets=targets, images=images)


class _Image(torch.autograd.Function):
    """`keys ↦ keys A`, with the gradient `g ↦ g A`, because A is symmetric."""

    @staticmethod
    def forward(ctx: Any, keys: Keys, metric: Metric) -> Keys:  # noqa: ANN401 - torch's own context
        ctx.metric, ctx.keys_like = metric, keys.detach()
        return metric.guarded.solve(keys).to(keys.device)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Keys, None]:  # noqa: ANN401
        return ctx.metric.guarded.solve(gradients[0]).to(ctx.keys_like), None


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
        self._edits: Attachment | None = None
        self.shifted: list[ShiftedOutput] = []
        self.gated: list[GatedValues] = []
        for name, site in sites.items():
            check_kind("optimise_value", f"sites[{name!r:.80}]", site, OutputSite, GatedEdit)
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
            stack.enter_context(watched(site.module for site in self.shifted))
            for site in self.shifted:
                stack.callback(site.install())
            if self.keys():  # their metric images change with them: attach anew for each step
                yield self._attached
            else:
                stack.enter_context(self._attached())
                yield contextlib.nullcontext

    def _attached(self) -> contextlib.AbstractContextManager[object]:
        edits = {site.name: site.edit() for site in self.gated}
        if not edits:
            return contextlib.nullcontext()
        self._edits = attach(self._model, edits)
        return self._edits

    def missed(self) -> list[str]:
        """Names of the projections that the loss has not called since all was installed."""
        # Shifts are hooks and note it themselves; edits sit in the layers, whose marks tell.
        reached = {site.name: site.reached for site in self.shifted}
        reached |= {} if self._edits is None else self._edits.reached
        return [name for name, was in reached.items() if not was]
