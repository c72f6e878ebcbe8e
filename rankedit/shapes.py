"""Named tensor shapes: one row is one vector, everywhere.

| name         | shape         | meaning                                                    |
|--------------|---------------|------------------------------------------------------------|
| `Inputs`     | `[..., in]`   | what a projection reads, any number of leading axes        |
| `Outputs`    | `[..., out]`  | what a projection writes                                   |
| `Keys`       | `[n, in]`     | n inputs whose output is to change                         |
| `Values`     | `[n, out]`    | the output that each key is to give                        |
| `Weight`     | `[out, in]`   | the matrix of the projection, `outputs = inputs @ weight.T` |
| `Covariance` | `[in, in]`    | symmetric positive semi-definite, e.g. `E[xᵀx]` of rows x  |
| `Basis`      | `[r, in]`     | r orthonormal rows spanning a subspace                     |
| `Similarity` | `[..., n]`    | one number for each input and key                          |

The names are aliases of `torch.Tensor` for type checkers; the public functions check the shapes
themselves and say what they expected. `check_rows` is how.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from os import PathLike
from typing import Annotated, Any, TypeAlias

import torch
from torch import Tensor

from rankedit.errors import ShapeError

Inputs: TypeAlias = Annotated[Tensor, "[..., in]"]
Outputs: TypeAlias = Annotated[Tensor, "[..., out]"]
Keys: TypeAlias = Annotated[Tensor, "[n, in]"]
Values: TypeAlias = Annotated[Tensor, "[n, out]"]
Weight: TypeAlias = Annotated[Tensor, "[out, in]"]
Covariance: TypeAlias = Annotated[Tensor, "[in, in]"]
Basis: TypeAlias = Annotated[Tensor, "[r, in]"]
Similarity: TypeAlias = Annotated[Tensor, "[..., n]"]


# Exponent of ten at which float64 has no room left for a product or two.
_LARGEST = 300


def describe(value: object) -> str:
    """A value in an error message: shape and dtype of a tensor, else its type and value."""
    if isinstance(value, Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor of shape {list(value.shape)}"
    return f"{type(value).__name__} {value!r}"[:120]


def is_number(value: object) -> bool:
    """Whether it is a finite number of Python's."""
    return isinstance(value, (int, float)) and math.isfinite(value)


def check_kind(
    call: str,
    name: str,
    value: object,
    *kinds: Any,  # noqa: ANN401 - types, and the abstract ones of collections.abc
    expected: str = "",
    optional: bool = False,
) -> None:
    """Refuse an argument of another type.

    Args:
        call: the public call, for the message.
        name: the argument's name, for the message.
        value: what the user passed.
        kinds: what it may be.
        expected: the same in words; the names of the types if empty.
        optional: whether None will do too.

    Raises:
        ShapeError: it is something else.
    """
    if not _is_of(value, kinds) and not (optional and value is None):
        words = expected or " or ".join(kind.__name__ for kind in kinds)
        convertible = Tensor in kinds and value is not None
        # Arrays and lists become tensors; for all else the page says what is meant by the argument.
        remedy = "make it one with torch.as_tensor" if convertible else f"see {_page(call)}"
        raise ShapeError(f"{call}: {name} must be a {words}, got {describe(value)}; {remedy}.")


def _is_of(value: object, kinds: tuple[Any, ...]) -> bool:
    # To Python a text is a sequence, of letters; a tensor without axes can be looped over; and a
    # class can be called. None of them is what is meant by those.
    if isinstance(value, type):
        kinds = tuple(kind for kind in kinds if kind is not Callable)
    if isinstance(value, (str, bytes)) or (isinstance(value, Tensor) and not value.ndim):
        kinds = tuple(kind for kind in kinds if kind not in (Iterable, Sequence))
    return isinstance(value, kinds)


def _page(call: str) -> str:
    # Of the class: a message may call a method by a name that stands for several.
    return f"help(rankedit.{call.partition('.')[0]})"


def check_path(call: str, name: str, value: object) -> None:
    """Refuse what names no file.

    Raises:
        ShapeError: neither text nor `os.PathLike`. Numbers are not: `open` takes them for files
            that are open already.
    """
    check_kind(call, name, value, str, PathLike, expected="path")


def check_count(call: str, name: str, value: object) -> None:
    """Refuse what is no whole number of at least one.

    Raises:
        ShapeError: something else; True is none.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ShapeError(
            f"{call}: {name} must be at least 1, got {value!r:.80}; pass a whole number."
        )


def checked_device(call: str, name: str, value: object) -> torch.device | None:
    """A device, from its name or number too; None as it is.

    Raises:
        ShapeError: no device of torch's.
    """
    check_kind(call, name, value, torch.device, str, int, expected="device", optional=True)
    given: Any = value
    try:
        return None if value is None else torch.device(given)
    except (RuntimeError, TypeError) as error:  # True is a number, and no device
        raise ShapeError(
            f"{call}: {name} must be a device such as 'cpu' or 'cuda:0', got {describe(value)}; "
            f"torch: {str(error).splitlines()[0]}"
        ) from error


def check_vectors(call: str, name: str, x: object, width: int | None = None) -> None:
    """Refuse what is no floating-point tensor `[..., width]` with data; of any shape if None.

    Raises:
        ShapeError: something else.
    """
    shape = "" if width is None else f" [..., {width}]"
    right = isinstance(x, Tensor) and (width is None or x.shape[-1:] == (width,))
    if not isinstance(x, Tensor) or not right or not x.is_floating_point():
        raise ShapeError(
            f"{call}: {name} must be a floating-point tensor{shape}, got {describe(x)}; one vector "
            "lies along the last axis."
        )
    check_dense(call, name, x)


def check_has_data(call: str, name: str, value: object) -> None:
    """Refuse a tensor on the meta device.

    Raises:
        ShapeError: it has a shape, but no data.
    """
    if isinstance(value, Tensor) and value.is_meta:
        raise ShapeError(
            f"{call}: {name} must have data, got {describe(value)} on the meta device; make it on "
            "another device, or load its values first (model.to_empty and load_state_dict)."
        )


def check_dense(call: str, name: str, value: object) -> None:
    """Refuse a tensor that no plain arithmetic can be done with.

    Raises:
        ShapeError: on the meta device, sparse or complex.
    """
    check_has_data(call, name, value)
    if not isinstance(value, Tensor):
        return
    if value.layout != torch.strided:
        raise ShapeError(f"{call}: {name} must be dense, got a sparse one; use {name}.to_dense().")
    if value.is_complex():
        raise ShapeError(f"{call}: {name} must be real, got {describe(value)}; use {name}.real.")


def check_finite(call: str, name: str, tensor: Tensor, *, power: int = 1) -> None:
    """Refuse a tensor that holds NaN or infinity, or whose power overflows in a sum.

    Raises:
        ShapeError: with the number of bad entries; or it is on the meta device, sparse or complex.
    """
    check_dense(call, name, tensor)
    # Some 8-bit formats have neither sum nor isfinite; to widen them is exact.
    wide = tensor.detach() if tensor.element_size() > 1 else tensor.detach().float()
    # A sum is finite only if all its terms are, and needs no memory; it may overflow all the same.
    if not math.isfinite(wide.sum(dtype=torch.promote_types(wide.dtype, torch.float32))):
        _refuse_infinite(call, name, tensor, torch.isfinite(wide))
    # Narrower formats end at 3e38, whose fourth power float64 holds.
    if power > 1 and tensor.dtype == torch.float64 and tensor.numel():
        largest = float(wide.abs().max())
        if largest and power * math.log10(largest) + math.log10(tensor.numel()) > _LARGEST:
            raise ShapeError(
                f"{call}: {name} must not be so large that sums of its power {power} overflow "
                f"float64, got numbers up to {largest:.1e}; scale the data to ordinary sizes."
            )


def _refuse_infinite(call: str, name: str, tensor: Tensor, finite: Tensor) -> None:
    if not bool(finite.all()):
        raise ShapeError(
            f"{call}: {name} must be finite, got {int((~finite).sum())} NaN or infinite entries in "
            f"{describe(tensor)}; look for an overflow in half precision or a division by zero."
        )


def checked_weights(
    call: str, name: str, value: object, count: int, device: torch.device
) -> Tensor:
    """One non-negative number, or one for each of `count` keys, as `[count]` in float64.

    Raises:
        ShapeError: something else.
    """
    check_kind(call, name, value, int, float, Tensor)
    check_dense(call, name, value)
    # In double precision from the start: 0.1 in single precision is 1.5e-8 beside it.
    weights = value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
    sized = weights.ndim <= 1 and weights.numel() in (1, count)
    if not sized or not bool(((weights >= 0) & torch.isfinite(weights)).all()):
        raise ShapeError(
            f"{call}: {name} must be one number or [{count}], one for each key, finite and not "
            f"negative, got {describe(value)}."
        )
    return weights.detach().to(device).double().expand(count)


def check_rows(
    call: str,
    name: str,
    rows: object,
    width: int | None = None,
    count: int | None = None,
    *,
    of: str = "",
    per: str = "",
) -> Tensor:
    """Return `rows` if it is a finite floating-point matrix `[count, width]`, else say what it is.

    Args:
        call: the public call, for the message.
        name: the argument's name, for the message.
        rows: what the user passed.
        width: required size of the last axis; any if None.
        count: required number of rows; any number from 1 if None.
        of: whose width that is, for the message.
        per: of what there are so many, for the message.

    Raises:
        ShapeError: not a tensor, not two-dimensional, empty, not floating point or not finite.
    """
    expected = f"[{'n' if count is None else count}, {'dim' if width is None else width}]"
    # Integers are refused, not converted: they are mostly token ids passed by mistake.
    if not isinstance(rows, Tensor) or not rows.is_floating_point():
        raise ShapeError(
            f"{call}: {name} must be a floating-point tensor {expected}, got {describe(rows)}; "
            "convert it with torch.as_tensor(..., dtype=torch.float32)."
        )
    fits = rows.ndim == 2 and rows.shape[0] > 0 and width in (None, rows.shape[-1])
    if not fits or count not in (None, rows.shape[0]):
        hint = "add the row axis with vector[None]" if rows.ndim == 1 else "one row is one vector"
        if rows.ndim == 2 and of and rows.shape[1] != width:
            hint = f"{width} is the width of the {of}"
        elif rows.ndim == 2 and per and rows.shape[0] != count:
            hint = f"one row for each of the {count} {per}"
        raise ShapeError(
            f"{call}: {name} must have shape {expected}, got {describe(rows)}; {hint}."
        )
    check_finite(call, name, rows, power=2)
    return rows
