"""A gated edit of several concepts in which each has a strength of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

import rankedit as rk
from rankedit.edits import full_precision, sum_of_products
from rankedit.shapes import Inputs, Keys, Outputs, Values

WEIGHTS = "weights"
_ROWS = "rows"


class _Seen(NamedTuple):
    """An input, told from all others while it is held, and what was computed of it."""

    root: Tensor
    view: tuple[object, ...]
    coefficients: Tensor


class Reading:
    """Remembers the coefficients of the last input of edits that differ in their rows only.

    All layers of a denoiser read one encoding of the text, in every step of sampling: gates and
    coordinates are computed once for a picture, not once for each layer and step.
    """

    def __init__(self) -> None:
        self._seen: _Seen | None = None

    def of(self, x: Inputs, settings: Sequence[Tensor], compute: Callable[[], Tensor]) -> Tensor:
        """The coefficients of an input, computed if it is not the one of before, unchanged.

        Args:
            x: the input.
            settings: what else they depend on and may change, in place.
            compute: gives them.
        """
        # Nothing may be kept that is part of a graph, nor in code that is traced and runs anew.
        if torch.compiler.is_compiling() or type(x) is not Tensor:
            return compute()
        if x.requires_grad or x.is_inference() or torch.is_inference_mode_enabled():
            return compute()
        root = x if x._base is None else x._base
        versions = (x._version, *(setting._version for setting in settings))
        view = (x.shape, x.stride(), x.storage_offset(), x.dtype, *versions)
        seen = self._seen
        if seen is not None and seen.root is root and seen.view == view:
            return seen.coefficients
        found = compute()
        self._seen = _Seen(root, view, found)
        return found

    def forget(self) -> None:
        """Compute anew next time."""
        self._seen = None

    def __reduce__(self) -> tuple[type[Reading], tuple[()]]:
        return Reading, ()


@dataclass(frozen=True, eq=False)
class Weighted:
    """`Σ_j w_j (gate_j(s_j) o_j − c_j W i_j)`: both terms of a concept are scaled together.

    Attributes:
        edit: the joint edit.
        weights: `[n]`, one strength for each key; 1 is the edit itself.
        reading: shared by edits whose keys, gates and weights are the same.
    """

    edit: rk.GatedEdit
    weights: Tensor
    reading: Reading = field(default_factory=Reading)

    @property
    def in_features(self) -> int:
        """Width of the inputs."""
        return self.edit.in_features

    @property
    def out_features(self) -> int:
        """Width of the outputs."""
        return self.edit.out_features

    def bind(self, outputs: Callable[[Keys], Values]) -> dict[str, Tensor]:
        """The edit's tensors, the strengths, and as rows `[2n, out]` the targets and `−W i_j`."""
        bound = self.edit.bind(outputs)
        bound.pop("removed")  # of orthogonal combinations of the keys, which have no strengths
        targets = bound.pop("targets")
        removed = -outputs(self.edit.keys).to(targets)
        return {**bound, WEIGHTS: self.weights.float(), _ROWS: torch.cat([targets, removed])}

    def added(self, x: Inputs, tensors: Mapping[str, Tensor]) -> Outputs:
        """What the edit adds, with each concept's part scaled."""
        added = sum_of_products(x, self.terms(x, tensors))
        return added + 0.0 if "floor" in tensors else added  # no negative zeros in the dead zone

    def terms(self, x: Inputs, tensors: Mapping[str, Tensor]) -> tuple[tuple[Tensor, Tensor], ...]:
        """Gates and coordinates of the concepts, each scaled, with the rows."""
        settings = [tensors[name] for name in self._changing]
        found = self.reading.of(x, settings, lambda: self._coefficients(x, tensors))
        return ((found, tensors[_ROWS]),)

    @cached_property
    def _changing(self) -> tuple[str, ...]:
        return tuple(sorted(self.settings()))

    def _coefficients(self, x: Inputs, tensors: Mapping[str, Tensor]) -> Tensor:
        rows = tensors[_ROWS]
        known = {**tensors, "targets": rows, "removed": rows}  # of which it needs the factors only
        (opening, _), (parts, _) = self.edit.terms(x, known)
        with full_precision(x):
            if "to_coordinates" in tensors:
                parts = linear(parts, tensors["to_coordinates"])
            return torch.cat([opening * tensors[WEIGHTS], parts * tensors[WEIGHTS]], -1)

    def settings(self) -> frozenset[str]:
        """The edit's settings, and the strengths."""
        return self.edit.settings() | {WEIGHTS}
