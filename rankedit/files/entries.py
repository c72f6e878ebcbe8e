"""The two sides of one entry of an edit file: tensors going in, checked fields coming out."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rankedit.edits import LowRank
from rankedit.errors import EditFileError, ShapeError
from rankedit.files.container import DTYPES, tensor_bytes
from rankedit.files.header import (
    TensorInfo,
    checked_name,
    checked_object,
    checked_place,
    checked_text,
)
from rankedit.gated import GatedEdit
from rankedit.gates import Gate
from rankedit.moments import SecondMoment
from rankedit.shapes import describe

# Largest power of two by which a stored tensor is scaled; float32 ends at 2**128.
_LARGEST_FLOAT32 = torch.finfo(torch.float32).max
_LARGEST_EXPONENT = 256
# Half precision is scaled to just below 2**15: the largest entry keeps clear of overflow (65504)
# and as many small ones as possible keep clear of underflow.
_HALF_RANGE_EXPONENT = 15


@dataclass
class TensorTable:
    """Tensors of a file being written, named by their number; equal ones are stored once."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    _known: dict[tuple[object, ...], int] = field(default_factory=dict)

    def add(self, what: str, tensor: Tensor, dtype: torch.dtype) -> int | list[int]:
        """Take a tensor in and return how the document refers to it.

        Args:
            what: its name in error messages.
            tensor: finite and not empty.
            dtype: how to store it. `float16` is scaled by a power of two, which the reference
                carries, so that the narrow range of that format loses nothing but digits.

        Raises:
            ShapeError: empty, not finite, or beyond the range of `dtype`.
        """
        dense = tensor.layout == torch.strided and not tensor.is_meta and tensor.numel()
        if dtype not in DTYPES.values() or not (dense and tensor.is_floating_point()):
            where = f"{tensor.layout} on {tensor.device}".removeprefix("torch.")
            raise ShapeError(
                f"save: {what} must be a non-empty tensor of floating-point numbers to be stored "
                f"as float64, float32, float16 or bfloat16, got {describe(tensor)}, {where}, for "
                f"{dtype}; load it if it is on the meta device, make it dense if it is sparse."
            )
        # Only float16 needs it: bfloat16 has the range of float32.
        exponent = _half_exponent(tensor) if dtype == torch.float16 else 0
        stored = _scaled(tensor.detach().cpu(), -exponent).to(dtype).contiguous()
        # A reader gives 16 bits back as float32, whatever the power of two.
        overflows = exponent > 0 and float(tensor.detach().abs().max()) > _LARGEST_FLOAT32
        if overflows or not bool(torch.isfinite(stored).all()):
            raise ShapeError(
                f"save: {what} must be finite and within the range of {dtype}, got "
                f"{describe(tensor)}; look for NaN, or pass a wider dtype=."
            )
        number = self._number(stored)
        return [number, exponent] if exponent else number

    def _number(self, stored: Tensor) -> int:
        # By content, not by identity: edits that were loaded apart share keys as equal copies.
        content = hashlib.sha256(tensor_bytes(stored)).digest()
        key = (stored.dtype, stored.shape, content)
        if key not in self._known:
            self._known[key] = len(self.tensors)
            self.tensors[str(len(self.tensors))] = stored
        return self._known[key]


def _scaled(tensor: Tensor, exponent: int) -> Tensor:
    """The tensor times a power of two, in float64, where no such product overflows."""
    return tensor.double() * 2.0**exponent if exponent else tensor


def _half_exponent(tensor: Tensor) -> int:
    largest = float(tensor.detach().abs().max())
    if not largest or not math.isfinite(largest):
        return 0
    return math.frexp(largest)[1] - _HALF_RANGE_EXPONENT


class Reference(NamedTuple):
    """A tensor that an entry names, before the data are read."""

    name: str
    shape: tuple[int, ...]
    exponent: int

    def resolve(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The tensor; 16-bit ones as float32, because edits compute in float32 or wider.

        Raises:
            EditFileError: scaling it gives infinity.
        """
        tensor = tensors[self.name]
        wide = tensor.float() if tensor.element_size() == 2 else tensor
        if not self.exponent:
            return wide
        # Two finite numbers may have an infinite product, which a check of the data cannot see.
        scaled = _scaled(wide, self.exponent).to(wide.dtype)
        if not bool(torch.isfinite(scaled).all()):
            raise EditFileError(f"tensor {self.name!r} times 2**{self.exponent} is infinite")
        return scaled


@dataclass(frozen=True)
class Context:
    """What the entries of one file may refer to.

    Attributes:
        infos: the tensors of the file.
        gates: classes of gates by the name under which files know them.
        used: collects the names of the tensors that were referred to.
        read: collects how many numbers each reference stands for.
        keys: collects the different keys of gated edits, with their images.
        bases: for keys and images that were found independent, an edit with them.
        version: of the format.
    """

    infos: Mapping[str, TensorInfo]
    gates: Mapping[str, type[Gate]]
    used: set[str] = field(default_factory=set)
    read: list[int] = field(default_factory=list)
    keys: set[tuple[Reference, Reference]] = field(default_factory=set)
    bases: dict[tuple[Reference, Reference], GatedEdit] = field(default_factory=dict)
    version: int = 1


class Fields:
    """The fields of a JSON object from a file, taken one by one; what is left over is an error.

    Args:
        raw: the parsed JSON.
        what: the object's name in error messages.
        context: what its fields may refer to.
    """

    def __init__(self, raw: object, what: str, context: Context) -> None:
        # A copy: `finish` reports what nobody took, and the document is looked at again later.
        self._rest: dict[str, object] = dict(checked_object(raw, what))
        self._what = what
        self.context = context

    def take(self, name: str) -> object:
        """Any field that must be there."""
        if name not in self._rest:
            raise EditFileError(f"{self._what} lacks {name!r}")
        return self._rest.pop(name)

    def optional(self, name: str) -> object:
        """A field that may be absent: None then."""
        return self._rest.pop(name, None)

    def text(self, name: str) -> str:
        """A string without control characters."""
        return checked_text(self.take(name), f"{name!r} of {self._what}")

    def module(self, name: str) -> str:
        """The name of a module; the empty name is the model itself."""
        value = self.text(name)
        return checked_name(value) if value else value

    def place(self, name: str, rows: int) -> str:
        """The name of a module, or of so many rows of one."""
        return checked_place(self.text(name), rows)

    def flag(self, name: str) -> bool:
        """True or false."""
        value = self.take(name)
        if not isinstance(value, bool):
            raise EditFileError(
                f"{name!r} of {self._what} must be true or false, got {value!r:.80}"
            )
        return value

    def number(self, name: str) -> float:
        """A finite number."""
        return checked_number(self.take(name), f"{name!r} of {self._what}")

    def mapping(self, name: str) -> dict[str, object]:
        """A JSON object."""
        return checked_object(self.take(name), f"{name!r} of {self._what}")

    def tensor(self, name: str, *shape: int | None) -> Reference:
        """A tensor of this shape, where None stands for any size."""
        return self._tensor(name, shape)

    def _tensor(self, name: str, shape: tuple[int | None, ...] | None) -> Reference:
        value: Any = self.take(name)
        pair = isinstance(value, list) and len(value) == 2
        number, exponent = value if pair else (value, 0)
        # `type(...) is int`: True would find tensor "True", and 1.0 would pass for 1.
        info = self.context.infos.get(str(number)) if type(number) is int else None
        if info is None:
            raise EditFileError(
                f"{name!r} of {self._what} must be the number of a tensor in the file, or that "
                f"and an exponent, got {value!r:.80}"
            )
        if type(exponent) is not int or abs(exponent) > _LARGEST_EXPONENT:
            raise EditFileError(f"{name!r} of {self._what}: exponent {exponent!r:.80} is too large")
        if shape is not None:
            self._check_shape(name, shape, info.shape)
        # Counted for each reference: a small file may name one large tensor a thousand times.
        self.context.used.add(str(number))
        self.context.read.append(math.prod(info.shape))
        return Reference(str(number), info.shape, exponent)

    def _check_shape(
        self, name: str, shape: tuple[int | None, ...], actual: tuple[int, ...]
    ) -> None:
        fits = len(shape) == len(actual) and all(
            want in (None, got) for want, got in zip(shape, actual, strict=True)
        )
        if not fits:
            expected = ", ".join("any" if size is None else str(size) for size in shape)
            raise EditFileError(
                f"{name!r} of {self._what} must have shape [{expected}], got {list(actual)}"
            )

    def any_tensor(self, name: str) -> Reference:
        """A tensor of any shape."""
        return self._tensor(name, None)

    def finish(self) -> None:
        """Refuse fields that nobody asked for: a newer version would have another number."""
        if self._rest:
            raise EditFileError(f"{self._what} has unknown fields {sorted(self._rest)!r:.80}")


def checked_number(value: object, what: str) -> float:
    """Return a finite number.

    Raises:
        EditFileError: it is something else.
    """
    try:
        number = float(value) if type(value) in (int, float) else math.nan  # type: ignore[arg-type]
    except OverflowError:  # an integer of a thousand digits
        number = math.inf
    if not math.isfinite(number):
        raise EditFileError(f"{what} must be a finite number, got {value!r:.80}")
    return number


Item = LowRank | GatedEdit | SecondMoment | Tensor
Build = Callable[[Mapping[str, Tensor]], Mapping[str, Item]]
Entry = dict[str, object]
