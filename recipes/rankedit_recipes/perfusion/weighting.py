"""A gated edit of several concepts in which each has a strength of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

import rankedit as rk
from rankedit.edits import full_precision
from rankedit.shapes import Inputs, Keys, Outputs, Values

WEIGHTS = "weights"


@dataclass(frozen=True, eq=False)
class Weighted:
    """`Σ_j w_j (gate_j(s_j) o_j − c_j W i_j)`: both terms of a concept are scaled together.

    Attributes:
        edit: the joint edit.
        weights: `[n]`, one strength for each key; 1 is the edit itself.
    """

    edit: rk.GatedEdit
    weights: Tensor

    @property
    def in_features(self) -> int:
        """Width of the inputs."""
        return self.edit.in_features

    @property
    def out_features(self) -> int:
        """Width of the outputs."""
        return self.edit.out_features

    def bind(self, outputs: Callable[[Keys], Values]) -> dict[str, Tensor]:
        """The edit's tensors, the strengths, and what the layer gives for each key."""
        return {
            **self.edit.bind(outputs),
            WEIGHTS: self.weights.float(),
            "key_outputs": outputs(self.edit.keys).float(),
        }

    def added(self, x: Inputs, tensors: Mapping[str, Tensor]) -> Outputs:
        """What the edit adds, with each concept's part scaled."""
        return self.edit.added(x, self._scaled(x, tensors))

    def terms(self, x: Inputs, tensors: Mapping[str, Tensor]) -> tuple[tuple[Tensor, Tensor], ...]:
        """As of the edit, with each concept's part scaled."""
        return self.edit.terms(x, self._scaled(x, tensors))

    def _scaled(self, x: Inputs, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        weights = tensors[WEIGHTS][:, None]
        removed = -weights * tensors["key_outputs"]
        # The edit reads orthogonal combinations of its keys: the same combinations of what each
        # concept removes.
        if "to_coordinates" in tensors:
            with full_precision(x):
                removed = tensors["to_coordinates"].T @ removed
        return {**tensors, "targets": tensors["targets"] * weights, "removed": removed}

    def settings(self) -> frozenset[str]:
        """The edit's settings, and the strengths."""
        return self.edit.settings() | {WEIGHTS}
