"""Whether a model is still the one that a stream of edits began with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

import rankedit as rk
from rankedit.linear_outputs import standing_edits
from rankedit_recipes.language.errors import LanguageError

# A projection is the original one while it gives what it gave, relative.
_SAME = 1e-4
# Of a fingerprint; enough that two layers never share them by chance.
_DIGITS = 16


class Original:
    """What is known of a stream's projections, to notice when that changes.

    Args:
        model: the model, as it is to stay.
        names: of the projections.

    Attributes:
        base: by name, a fingerprint of the weights.
    """

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        self._layers = {name: model.get_submodule(name) for name in names}
        self.base = {name: _mark(layer) for name, layer in self._layers.items()}
        self._fused = {name: standing_edits(layer).fused for name, layer in self._layers.items()}
        # A random input meets every direction: no adapter around the layer hides from it, which
        # has neither marks nor a part in the fingerprint.
        self._keys = {
            name: torch.randn(
                1, rk.Projection(layer).in_features, generator=torch.Generator().manual_seed(0)
            )
            for name, layer in self._layers.items()
        }
        self._given = {name: self._gives(name) for name in names}

    def check(self, call: str) -> None:
        """Refuse to go on with a model that is edited.

        Raises:
            LanguageError: a projection has edits or other weights, or gives something else.
        """
        for name in self._layers:
            why = self._why_not(name)
            if why:
                raise LanguageError(
                    f"{call}: '{name}' no longer gives what it gave when the stream began ({why}); "
                    "detach or unfuse the edits first, the stream works on the original model."
                )

    def _why_not(self, name: str) -> str:
        layer, given = self._layers[name], self._given[name]
        standing = standing_edits(layer)
        # What can be read first: a gate may hide an edit from any input.
        if standing.attached:
            return f"attached edits: {len(standing.attached)}"
        if standing.fused != self._fused[name]:
            return "edits were fused or unfused since"
        if _mark(layer) != self.base[name]:
            return "its weights are others"
        if not float((self._gives(name) - given).norm()) <= _SAME * float(given.norm()):
            return "a random input shows it"
        return ""

    def _gives(self, name: str) -> Tensor:
        return rk.linear_output(self._layers[name], self._keys[name])


def _mark(layer: nn.Module) -> str:
    return rk.fingerprint(layer)[:_DIGITS]
