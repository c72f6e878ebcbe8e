"""What every edit must do; see `rankedit.testing`."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from rankedit.errors import ConformanceError
from rankedit.products import sum_of_products
from rankedit.protocol import Edit, Factored
from rankedit.shapes import Inputs, Keys, Values, Weight, describe


def check_edit(
    edit: Edit,
    *,
    weight: Weight | None = None,
    seed: int = 0,
    context: Mapping[str, Tensor] | None = None,
) -> None:
    """Check that an object can be attached to a projection: the protocol `rankedit.Edit`.

    Checked: widths; names and kinds of the bound tensors; that binding and adding change nothing
    and repeat exactly; shapes for any leading axes; that every input is treated alone; that nothing
    is read but the bound tensors (it must run on tensors without data, as compilers do);
    that half precision and autocast cost no digits; gradients to the input; and, where an edit
    offers `terms`, that their products sum to what is added.

    Args:
        edit: anything that is meant to be an `Edit`.
        weight: `[out, in]` of the projection; random if None.
        seed: of the random weight and inputs.
        context: what a `ToldEdit` reads of a call with inputs `[2, 3, in]`. Its inputs need not be
            read, and are not treated alike in all places.

    Raises:
        ConformanceError: a property does not hold; the message names it.
    """
    if not isinstance(edit, Edit):
        names = "in_features, out_features, bind, added, settings"
        raise ConformanceError(f"check_edit: {describe(edit)} must have {names}.")
    generator = torch.Generator().manual_seed(seed)
    if weight is None:
        weight = torch.randn(edit.out_features, edit.in_features, generator=generator)
    if tuple(weight.shape) != (edit.out_features, edit.in_features):
        raise ConformanceError(
            f"check_edit: the edit must have the weight's shape {list(weight.shape)}, got "
            f"[{edit.out_features}, {edit.in_features}]."
        )
    tensors = {**_checked_tensors(edit, weight), **(context or {})}
    x = torch.randn(2, 3, edit.in_features, generator=generator)
    added = _checked_added(edit, x, tensors)
    _check_terms(edit, x, tensors, added)
    if context is None:
        _check_rows_alone(edit, x, tensors, added)
    _check_reads_tensors_only(edit, x, tensors)
    _check_precision(edit, x, tensors)
    if context is None:
        _check_gradient(edit, x, tensors)


def _checked_tensors(edit: Edit, weight: Weight) -> dict[str, Tensor]:
    def outputs(keys: Keys) -> Values:
        if keys.ndim != 2 or keys.shape[1] != edit.in_features:
            raise ConformanceError(
                f"check_edit: bind must run the layer on keys [n, {edit.in_features}], got "
                f"{describe(keys)}."
            )
        return keys @ weight.T.to(keys)

    tensors = edit.bind(outputs)
    for name, tensor in tensors.items():
        if not name.isidentifier() or not isinstance(tensor, Tensor):
            raise ConformanceError(
                f"check_edit: bind must give tensors under identifiers, got {name!r}: "
                f"{describe(tensor)}."
            )
    if not edit.settings() <= tensors.keys():
        missing = sorted(edit.settings() - tensors.keys())
        raise ConformanceError(f"check_edit: settings {missing} are not among what bind gives.")
    _require_equal("bind must give the same every time", edit.bind(outputs), tensors)
    return {name: tensor.detach() for name, tensor in tensors.items()}


def _checked_added(edit: Edit, x: Inputs, tensors: dict[str, Tensor]) -> Tensor:
    given, before = x.clone(), {name: tensor.clone() for name, tensor in tensors.items()}
    added = edit.added(given, tensors)
    if not isinstance(added, Tensor) or added.shape != (*x.shape[:-1], edit.out_features):
        raise ConformanceError(
            f"check_edit: added must give [..., {edit.out_features}] for x {list(x.shape)}, got "
            f"{describe(added)}."
        )
    if not added.is_floating_point() or not bool(torch.isfinite(added).all()):
        raise ConformanceError(f"check_edit: added must be finite floats, got {describe(added)}.")
    if not torch.equal(given, x):
        raise ConformanceError("check_edit: added changed x in place.")
    _require_equal("added must not change its tensors", tensors, before)
    if not torch.equal(edit.added(x, tensors), added):
        raise ConformanceError("check_edit: added must give the same every time.")
    return added


def _check_terms(edit: Edit, x: Inputs, tensors: dict[str, Tensor], added: Tensor) -> None:
    if not isinstance(edit, Factored):
        return
    pairs = edit.terms(x, tensors)
    for coefficients, rows in pairs:
        fits = coefficients.shape == (*x.shape[:-1], rows.shape[0])
        if not fits or rows.shape[1:] != (edit.out_features,):
            raise ConformanceError(
                f"check_edit: terms must give pairs [..., r] and [r, {edit.out_features}] for x "
                f"{list(x.shape)}, got {describe(coefficients)} and {describe(rows)}."
            )
    _require_close("the products of terms must sum to added", sum_of_products(x, pairs), added)
    names: tuple[str, ...] = getattr(edit, "linear_in", ())
    if names:
        doubled = {**tensors, **{name: 2 * tensors[name] for name in names}}
        claim = f"added must be linear in {', '.join(names)} together"
        _require_close(claim, edit.added(x, doubled), 2 * added)


def _check_rows_alone(edit: Edit, x: Inputs, tensors: dict[str, Tensor], added: Tensor) -> None:
    for index in ((0,), (1, 2)):
        _require_close(
            f"an input must be treated alike alone and in a batch (x{list(index)})",
            edit.added(x[index], tensors),
            added[index],
        )


def _check_reads_tensors_only(edit: Edit, x: Inputs, tensors: Mapping[str, Tensor]) -> None:
    # Tensors without data refuse to meet any that has some, and to say what value they hold.
    with FakeTensorMode() as mode:
        shapes = {name: mode.from_tensor(tensor) for name, tensor in tensors.items()}
        try:
            edit.added(mode.from_tensor(x), shapes)
        except Exception as error:
            raise ConformanceError(
                "check_edit: added must read nothing but its tensors, and no values of them in "
                f"Python, but it fails where these have no data: {error}"
            ) from error


def _check_precision(edit: Edit, x: Inputs, tensors: dict[str, Tensor]) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = edit.added(x, tensors)
    added = edit.added(x, tensors)
    _require_close("autocast must cost no digits", inside, added)
    for narrow in (torch.bfloat16, torch.float16):
        if torch.equal(added.to(narrow).to(added.dtype), added) and bool(added.any()):
            raise ConformanceError(
                f"check_edit: added must compute in float32, but all its results are {narrow} "
                "numbers."
            )
    half = x.bfloat16()
    _require_close(
        "bfloat16 inputs must be computed with in float32",
        edit.added(half, tensors),
        edit.added(half.float(), tensors),
    )


def _check_gradient(edit: Edit, x: Inputs, tensors: dict[str, Tensor]) -> None:
    leaf = x.clone().requires_grad_()
    added = edit.added(leaf, tensors)
    if added.requires_grad:
        added.sum().backward()
    if leaf.grad is None or not bool(torch.isfinite(leaf.grad).all()):
        raise ConformanceError("check_edit: added must let finite gradients through to x.")


def _require_equal(claim: str, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    same = found.keys() == expected.keys()
    if not same or not all(torch.equal(found[name], expected[name]) for name in expected):
        raise ConformanceError(f"check_edit: {claim}.")


def _require_close(claim: str, found: Tensor, expected: Tensor) -> None:
    found, expected = found.detach().double(), expected.detach().double()
    apart = float((found - expected).norm() / expected.norm().clamp_min(1e-300))
    if not apart <= 1e-5:
        raise ConformanceError(f"check_edit: {claim}, but the results differ by {apart:.2g}.")
