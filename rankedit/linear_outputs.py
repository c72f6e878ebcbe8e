"""What a projection gives for a key, without its bias, in either direction.

Both functions are generic: `functools.singledispatch` on the projection. Here: a weight tensor, and
any function that applies a linear map. `rankedit.models.projections` adds torch modules; a package
with a layer of its own kind registers it the same way.
"""

from __future__ import annotations

from functools import singledispatch
from importlib import import_module
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rankedit.errors import ProjectionError, ShapeError
from rankedit.products import product
from rankedit.shapes import Keys, Values, check_rows, describe


@singledispatch
def linear_output(layer: object, keys: Keys) -> Values:
    """`keys [n, in] @ Wᵀ → [n, out]`: what the projection gives, less what it gives for zero.

    Args:
        layer: a weight `[out, in]`, a module, or any function with `f(x) = x Wᵀ + b`. A function is
            run, on the keys and on zeros: this is right for quantised, offloaded and wrapped
            layers, whose weight cannot be read.
        keys: one row is one input.

    Raises:
        ProjectionError: the layer is neither a tensor nor callable.
        ShapeError: the weight has another width.
    """
    if not callable(layer) or isinstance(layer, type):
        raise ProjectionError(
            "linear_output: layer must be a weight tensor [out, in] or something that applies one, "
            f"got {describe(layer)}; pass a module or its weight."
        )
    check_rows("linear_output", "keys", keys)
    with torch.no_grad():
        outputs, bias = layer(keys), layer(torch.zeros_like(keys[:1]))
    if not isinstance(outputs, Tensor) or not isinstance(bias, Tensor):
        raise ProjectionError(
            f"linear_output: layer must give a tensor for keys {list(keys.shape)}, got "
            f"{describe(outputs)}; pass what applies the linear map alone."
        )
    return outputs - bias


@linear_output.register
def _(layer: Tensor, keys: Keys) -> Values:
    weight = check_rows("linear_output", "layer", layer).detach()
    check_rows("linear_output", "keys", keys, weight.shape[1], of="layer")
    return product(keys.to(weight.device), weight.double().T).to(keys.device)


@linear_output.register
def _(layer: nn.Module, keys: Keys) -> Values:
    _know_modules()
    return linear_output(layer, keys)


class Standing(NamedTuple):
    """What this library has put on a layer: each attached edit, and marks of what was fused."""

    attached: tuple[object, ...] = ()
    fused: tuple[object, ...] = ()


@singledispatch
def standing_edits(layer: object) -> Standing:  # noqa: ARG001 - overloads do
    """The edits on a layer, as they are noted there: an edit may hide from any probe of outputs."""
    return Standing()


@singledispatch
def linear_output_transposed(layer: object, keys: Values) -> Keys:  # noqa: ARG001 - overloads do
    """`keys [n, out] @ W → [n, in]`: the transposed map, for edits of the output side.

    For anything but a tensor it is found as the vector-Jacobian product of running the layer, so
    that the weight is not read here either.

    Raises:
        ProjectionError: the input width of a function cannot be known; pass a module or a weight.
    """
    raise ProjectionError(
        "linear_output_transposed: layer must be a weight tensor [out, in] or a module for edits "
        f"of the output side, got {describe(layer)}; a bare function does not tell its input width."
    )


@linear_output_transposed.register
def _(layer: Tensor, keys: Values) -> Keys:
    weight = check_rows("linear_output_transposed", "layer", layer).detach()
    if isinstance(keys, Tensor) and keys.shape[-1:] != weight.shape[:1]:
        raise ShapeError(
            f"linear_output_transposed: keys must have the width {weight.shape[0]} of the layer's "
            f"output, got {describe(keys)}; side='input' edits what inputs give."
        )
    check_rows("linear_output_transposed", "keys", keys)
    return (keys.to(weight.device).double() @ weight.double()).to(keys.device)


@linear_output_transposed.register
def _(layer: nn.Module, keys: Values) -> Keys:
    _know_modules()
    return linear_output_transposed(layer, keys)


def _know_modules() -> None:
    # Modules belong to a row above this one, which takes the two places above when it is imported.
    # Whoever imported `rankedit.closed_form` alone has not done so, and would have a module run as
    # if it were any function.
    import_module("rankedit.models.projections")
