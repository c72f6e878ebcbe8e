"""One view of every kind of projection: what it gives for a key, found by running it.

`Projection(module)` answers for `nn.Linear`, GPT-2's `Conv1D`, 1x1 convolutions, quantised,
offloaded and LoRA-wrapped layers alike; `Projection(module, rows=slice(0, 768))` is one part of a
fused projection. `linear_output` and `linear_output_transposed` accept modules and these views
once this module is imported.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from rankedit.errors import ProjectionError
from rankedit.inference import ordinary
from rankedit.linear_outputs import linear_output, linear_output_transposed, standing_edits
from rankedit.models.fingerprints import fingerprint
from rankedit.models.geometry import Geometry, geometry, innermost, is_projection, run
from rankedit.models.selecting import find, select
from rankedit.models.slots import STRENGTH
from rankedit.models.swapping import slots_of
from rankedit.shapes import Inputs, Keys, Values, check_kind, check_rows

__all__ = [
    "Projection",
    "find",
    "fingerprint",
    "geometry",
    "innermost",
    "is_projection",
    "select",
]

# Rows of the identity that are run at a time where a layer has no gradient.
_COLUMNS = 256


@dataclass(frozen=True)
class Projection:
    """A linear-like module, or some of its output rows.

    Attributes:
        module: the layer as the model calls it, wrappers included.
        rows: contiguous output rows, for one part of a fused projection (qkv, gate and up); all
            of them if None.

    Raises:
        ProjectionError: the module is not a projection, or the rows are not within it.
        ShapeError: something else than a module and a slice.
    """

    module: nn.Module
    rows: slice | None = None

    def __post_init__(self) -> None:
        check_kind("Projection", "module", self.module, nn.Module)
        check_kind("Projection", "rows", self.rows, slice, optional=True)
        start, stop = self.bounds
        step = None if self.rows is None else self.rows.step
        whole = isinstance(start, int) and isinstance(stop, int) and step in (None, 1)
        if not whole or not 0 <= start < stop <= self.layout.out_features:
            raise ProjectionError(
                f"Projection: rows must be a slice(start, stop) within the outputs of "
                f"{type(self.module).__name__}, of which there are {self.layout.out_features}; got "
                f"{self.rows}."
            )

    @cached_property
    def layout(self) -> Geometry:
        """Sizes and layout of the whole layer."""
        return geometry(self.module)

    @property
    def bounds(self) -> tuple[int, int]:
        """First and one past the last output row."""
        rows = self.rows or slice(None)
        stop = self.layout.out_features if rows.stop is None else rows.stop
        return rows.start or 0, stop

    @property
    def in_features(self) -> int:
        """Width of what it reads."""
        return self.layout.in_features

    @property
    def out_features(self) -> int:
        """Number of output rows of this view."""
        start, stop = self.bounds
        return stop - start

    def split(self, *sizes: int) -> tuple[Projection, ...]:
        """The parts of a fused projection, in the order of their rows.

        Example:
            >>> query, key, value = Projection(nn.Linear(4, 12)).split(4, 4, 4)
            >>> value.rows
            slice(8, 12, None)

        Raises:
            ProjectionError: the sizes do not add up to the number of outputs.
            ShapeError: a size is no whole number.
        """
        start, stop = self.bounds
        for size in sizes:
            check_kind("Projection.split", "sizes", size, int)
        ends = list(itertools.accumulate(sizes, initial=start))
        if ends[-1] != stop or min(sizes, default=0) < 1:
            raise ProjectionError(
                f"Projection.split: positive sizes that add up to {stop - start} outputs are "
                f"expected, got {sizes}; name a part that is not needed, too."
            )
        return tuple(Projection(self.module, slice(a, b)) for a, b in itertools.pairwise(ends))

    def outputs(self, keys: Keys) -> Values:
        """`keys @ Wᵀ [n, out]`, by running the layer on the keys and on zero.

        With edits attached these count: the result is what the layer as it stands adds to its
        bias. It is in float64 on the device of the keys, with gradients if they require them.

        Raises:
            ShapeError: keys are not `[n, in_features]`.
            ProjectionError: the layer cannot be run.
        """
        check_rows("Projection.outputs", "keys", keys, self.in_features, of="layer")
        with torch.set_grad_enabled(torch.is_grad_enabled() and keys.requires_grad):
            rows, scale = self.rows_of(keys)
            outputs = run(self.module, rows, self.layout)[:, slice(*self.bounds)]
            outputs = outputs.to(keys.device).double()
            # A gate may be open at zero: what an edit adds there is no part of the bias.
            bias = outputs[-1:] - self._added(rows[-1:]).to(outputs)
            return (outputs[:-1] - bias) / scale

    def rows_of(self, keys: Keys) -> tuple[Inputs, Tensor]:
        """What the layer is run on for keys, zero last, and by what they are multiplied there."""
        # Differences of outputs lose digits; the keys must not have lost some before.
        keys = keys.double()
        scale = self._scale(keys)
        return torch.cat([keys * scale, torch.zeros_like(keys[:1])]), scale

    def outputs_transposed(self, values: Values) -> Keys:
        """`values @ W [n, in]`: the gradient of the layer, or its columns where it has none.

        Raises:
            ShapeError: values are not `[n, out_features]`.
            ProjectionError: the layer cannot be run.
        """
        call = "Projection.outputs_transposed"
        check_rows(call, "values", values, self.out_features, of="layer's output")
        with ordinary(), torch.no_grad():
            values = values.detach().clone()
            gradient = self._gradient(values)
            if gradient is not None:
                return gradient.to(values.device).double()
            columns = [values.double() @ self.outputs(rows).T for rows in self._identity(values)]
            return torch.cat(columns, dim=1)

    def _added(self, inputs: Tensor) -> Tensor:
        """What attached edits add to the outputs of this view for inputs `[n, in]`."""
        total = inputs.new_zeros(len(inputs), self.layout.out_features)
        for part in self.module.modules():
            for slot in slots_of(part):
                strength = slot.tensors[STRENGTH]
                added = slot.edit.added(inputs.to(strength), slot.tensors) * strength
                total[:, slice(*slot.rows)] += added.to(total)
        return total[:, slice(*self.bounds)]

    def _scale(self, keys: Keys) -> Tensor:
        """Powers of two `[n, 1]` that bring the largest entry of each key to [1/2, 1).

        The scaling is exact; it keeps small keys from drowning in the layer's bias. The gate of an
        attached edit sees the difference, so that an edited layer is run on the keys themselves.
        """
        sizes = keys.detach().abs().amax(dim=1, keepdim=True)
        if any(slots_of(part) for part in self.module.modules()):
            return torch.ones_like(sizes)
        return torch.ldexp(torch.ones_like(sizes), -torch.frexp(sizes).exponent)

    def _gradient(self, values: Values) -> Tensor | None:
        start, stop = self.bounds
        with torch.enable_grad():
            inputs = torch.zeros(len(values), self.in_features, requires_grad=True)
            try:
                outputs = run(self.module, inputs, self.layout)
                full = nn.functional.pad(values, (start, self.layout.out_features - stop))
                return torch.autograd.grad(outputs, inputs, full.to(outputs), allow_unused=True)[0]
            # Integer kernels have no gradient, and weights made in inference mode cannot give one.
            except (RuntimeError, ProjectionError):
                return None

    def _identity(self, like: Tensor) -> Iterator[Tensor]:
        return iter(torch.eye(self.in_features, device=like.device).split(_COLUMNS))


# What is registered for modules here takes the two places in `rankedit.linear_outputs`.
linear_output.register(Projection, Projection.outputs)
linear_output.register(nn.Module, lambda layer, keys: Projection(layer).outputs(keys))
linear_output_transposed.register(Projection, Projection.outputs_transposed)
linear_output_transposed.register(
    nn.Module, lambda layer, values: Projection(layer).outputs_transposed(values)
)
standing_edits.register(Projection, lambda layer: standing_edits(layer.module))
