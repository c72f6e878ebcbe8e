"""What an edit is: what is added to the output of a projection, whatever computes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from rankedit.shapes import Inputs, Keys, Outputs, Values

KeyOutputs = Callable[[Keys], Values]


@runtime_checkable
class Edit(Protocol):
    """Anything that can be attached to a projection.

    An edit is immutable. What it needs at run time it hands out as tensors, which become buffers of
    the layer: they move, are copied and are compiled with it.
    """

    @property
    def in_features(self) -> int:
        """Width of the inputs."""

    @property
    def out_features(self) -> int:
        """Width of the outputs."""

    def bind(self, outputs: KeyOutputs) -> dict[str, Tensor]:
        """All tensors that `added` reads.

        Args:
            outputs: gives `keys [n, in] @ Wᵀ` by running the layer, without its bias. An edit never
                reads the weight, which may be quantised, offloaded or sharded. `precision(outputs)`
                is the dtype in which the tensors are wanted; they are cast to it anyway.
        """

    def added(self, x: Inputs, tensors: Mapping[str, Tensor]) -> Outputs:
        """What is added to the layer's output for input x; pure, reads nothing but `tensors`.

        It computes in the precision of the tensors, which is never below that of x.
        """

    def settings(self) -> frozenset[str]:
        """Names of the tensors that may be changed at run time."""


@runtime_checkable
class Factored(Edit, Protocol):
    """An edit that can also say what it adds as a sum of products of narrow matrices.

    Those go straight into the layer's output, where that is faster than to write out what is added
    and then to add it.

    It may also have `linear_in`: names of the tensors that the second matrices are rows of, and
    that no coefficient depends on. The strength is then multiplied into these once, when it is set,
    and in no forward. Where coefficients are `x @ down.T` and nothing else, `constant(tensors)` may
    give down and the rows.
    """

    def terms(self, x: Inputs, tensors: Mapping[str, Tensor]) -> tuple[tuple[Tensor, Tensor], ...]:
        """Pairs of matrices `[..., r]` and `[r, out]` whose products sum to `added`."""


def precision(outputs: KeyOutputs) -> torch.dtype:
    """In which dtype a layer wants an edit's tensors: its `dtype`, float32 where it names none."""
    dtype: torch.dtype = getattr(outputs, "dtype", torch.float32)
    return dtype
