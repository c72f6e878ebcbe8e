"""The layer of a ledger as it was before any edit: how it is recognised, and how it is run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from rankedit.linear_outputs import linear_output, linear_output_transposed
from rankedit.shapes import Keys, Values

# A layer is the same while its output for a known key moves by no more than this, relative.
_SAME = 1e-4


@dataclass(frozen=True)
class Witness:
    """What the original layer gives for one input, run alone: a batch may round differently."""

    key: Keys
    output: Values

    @classmethod
    def of(cls, layer: object, key: Keys) -> Witness:
        """What a layer gives now."""
        return cls(key.detach().clone(), linear_output(layer, key).detach().double().clone())

    def holds(self, layer: object) -> bool:
        """Whether the layer still gives that."""
        now = linear_output(layer, self.key).detach().double()
        return float((now - self.output).norm()) <= _SAME * float(self.output.norm())


class Original:
    """The layer that a ledger's solver gets: what it gave before it was edited.

    A ledger may be asked for its edit while an earlier one is attached. The layer then gives
    something else, and a solver that corrects what it gives would count that edit twice.
    """

    def __init__(
        self, layer: object, keys: Keys, outputs: Values, check: Callable[[], None]
    ) -> None:
        self._layer, self._keys, self._outputs, self._check = layer, keys, outputs, check

    def run(self, keys: Keys) -> Values:
        """`linear_output` of the original layer."""
        if torch.equal(keys.to(self._keys.device).double(), self._keys.double()):
            return self._outputs.to(keys.device)
        self._check()
        return linear_output(self._layer, keys)

    def run_transposed(self, keys: Values) -> Keys:
        """`linear_output_transposed` of the original layer."""
        self._check()
        return linear_output_transposed(self._layer, keys)

    def __getattr__(self, name: str) -> object:
        raise AttributeError(
            f"Ledger: a solver's layer is only run, it has no {name!r}; use "
            "rankedit.linear_output(layer, keys), which is right for quantised and wrapped layers."
        )


@linear_output.register
def _(layer: Original, keys: Keys) -> Values:
    return layer.run(keys)


@linear_output_transposed.register
def _(layer: Original, keys: Values) -> Keys:
    return layer.run_transposed(keys)
