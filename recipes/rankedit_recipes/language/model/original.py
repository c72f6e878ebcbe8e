"""Whether a model is still the one that a stream of edits began with."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

import rankedit as rk
from rankedit_recipes.language.errors import LanguageError

# A projection is the original one while it gives what it gave, relative.
_SAME = 1e-4


class Original:
    """What projections give for a random input, to notice when that changes.

    Args:
        model: the model, as it is to stay.
        metrics: by the names of the projections.
    """

    def __init__(self, model: nn.Module, metrics: Mapping[str, rk.Metric]) -> None:
        self._layers = {name: model.get_submodule(name) for name in metrics}
        self._keys = {
            # A random input meets every direction: no edit of the projection can hide from it.
            name: torch.randn(1, metric.dim, generator=torch.Generator().manual_seed(0))
            for name, metric in metrics.items()
        }
        self._given = {
            name: rk.linear_output(layer, self._keys[name]) for name, layer in self._layers.items()
        }

    def check(self, call: str) -> None:
        """Refuse to go on with a model that is edited.

        Raises:
            LanguageError: a projection gives something else than at the start.
        """
        for name, layer in self._layers.items():
            given, now = self._given[name], rk.linear_output(layer, self._keys[name])
            if float((now - given).norm()) > _SAME * float(given.norm()):
                raise LanguageError(
                    f"{call}: '{name}' no longer gives what it gave when the stream began; detach "
                    "or unfuse the edits first, the stream works on the original model."
                )
