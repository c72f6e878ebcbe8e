"""Check the header of a safetensors file before anything is allocated or believed.

The safetensors format is a length, a JSON header and the tensors' bytes. Its own readers accept
duplicate names, a million empty tensors, ten thousand dimensions and names such as `../../x`; one
such file keeps them busy for more than a minute. Here a header is refused unless it is small,
strict and accounts for every byte of the file, so that reading the data afterwards is a plain copy.

The functions raise `EditFileError` with the bare fact; the public calls add the file's name.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

from rankedit.errors import EditFileError

ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
# Strict enough that a name can never be a path, a pattern or markup, wherever it is printed.
NAME_CHARACTERS = re.compile(r"[A-Za-z0-9_.\-/]{1,256}")
LENGTH_BYTES = 8
# Written in one way only, so that no two names mean the same rows.
_ROWS = re.compile(
    r"(?P<module>[^\[]*)\[(?P<start>0|[1-9][0-9]{0,8}):(?P<stop>[1-9][0-9]{0,8})\]", re.ASCII
)
_TENSOR_FIELDS = {"dtype", "shape", "data_offsets"}
# Everything below U+0020 but tab and newline, U+007F to U+009F, and halves of surrogate pairs.
_CONTROL_CHARACTERS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


@dataclass(frozen=True)
class Limits:
    """What a header may hold at most; a file beyond any of them is refused.

    Attributes:
        header: bytes of the JSON header.
        tensors: number of tensors.
        dimensions: axes of a tensor.
        separators: commas, braces and brackets of the header; bounds the time to parse it.
    """

    header: int = 1 << 20
    tensors: int = 4_096
    dimensions: int = 2
    separators: int = 65_536


class TensorInfo(NamedTuple):
    """What a header says of one tensor: its dtype's short name, shape and place in the data."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    """A checked header.

    Attributes:
        metadata: the strings under `__metadata__`.
        tensors: one `TensorInfo` per name, in the order of their bytes, which fill the data section
            without hole or overlap.
        raw: the header's bytes as they are in the file, without the length before them.
    """

    metadata: dict[str, str]
    tensors: dict[str, TensorInfo]
    raw: bytes


def read_header(stream: BinaryIO, size: int, limits: Limits) -> Header:
    """Read and check the header of a file of `size` bytes; the stream then stands at the data.

    Raises:
        EditFileError: anything that is not exactly as docs/file-format.md wants it.
    """
    raw = _raw_header(stream, size, limits)
    document = checked_object(parse_json(raw), "the header")
    metadata = checked_texts(document.pop("__metadata__", {}), "__metadata__")
    if len(document) > limits.tensors:
        raise EditFileError(f"at most {limits.tensors} tensors are allowed, got {len(document)}")
    infos = {checked_name(n): _tensor_info(n, d, limits) for n, d in document.items()}
    # By place, because the layout is checked, and then read, in one pass over the file.
    ordered = dict(sorted(infos.items(), key=lambda item: item[1].begin))
    _check_layout(ordered, size - LENGTH_BYTES - len(raw))
    return Header(metadata, ordered, raw)


def _raw_header(stream: BinaryIO, size: int, limits: Limits) -> bytes:
    # The shortest header is `{}`.
    if size < LENGTH_BYTES + 2:
        raise EditFileError(f"the file is cut off or no safetensors file: it has {size} bytes")
    length = int.from_bytes(stream.read(LENGTH_BYTES), "little")
    if length > limits.header:
        raise EditFileError(
            f"the header may have at most {limits.header} bytes, the file claims {length}; "
            "it is no safetensors file, or not one that this library writes"
        )
    if length > size - LENGTH_BYTES:
        raise EditFileError(
            f"the file is cut off: its header has {length} bytes, only {size - LENGTH_BYTES} follow"
        )
    raw = stream.read(length)
    # safetensors demands the brace in the first byte: leading spaces would let a file be two kinds.
    if len(raw) != length or raw[:1] != b"{":
        raise EditFileError("the header must begin with '{': the file is damaged")
    # Counted in the bytes, before parsing: each of them may cost `json` an object.
    separators = sum(raw.count(mark) for mark in (b",", b"{", b"["))
    if separators > limits.separators:
        raise EditFileError(
            f"the header may have at most {limits.separators} separators, got {separators}"
        )
    return raw


@contextmanager
def told_of(place: str, remedy: str = "") -> Iterator[None]:
    """Put the public call before a bare fact, and what to do behind it.

    Raises:
        EditFileError: the block does.
    """
    try:
        yield
    except EditFileError as error:
        raise EditFileError(f"{place}: {str(error).rstrip('.')}{remedy}.") from error


def parse_json(text: str | bytes) -> object:
    """Parse JSON strictly: no duplicate keys, no NaN or Infinity, UTF-8, no deep nesting.

    Raises:
        EditFileError: saying what is wrong.
    """
    try:
        decoded = text.decode("utf-8") if isinstance(text, bytes) else text
        return json.loads(decoded, object_pairs_hook=_without_duplicates, parse_constant=_refuse)
    except UnicodeDecodeError as error:
        raise EditFileError(f"the header must be UTF-8: {error.reason}") from error
    except RecursionError as error:
        raise EditFileError("the header is nested too deeply") from error
    except EditFileError:
        raise
    # JSONDecodeError is a ValueError, and so is Python's refusal of integers of 5,000 digits.
    except ValueError as error:
        raise EditFileError(f"the header is not valid JSON: {error}") from error


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    unique = dict(pairs)
    if len(unique) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise EditFileError(f"the header names {twice[:80]!r} twice")
    return unique


def _refuse(constant: str) -> object:
    raise EditFileError(f"the header holds {constant}, which is not JSON")


def checked_name(name: object) -> str:
    """Return the name of a tensor or module if it is one that is allowed.

    Raises:
        EditFileError: other characters than letters, digits and `_ . - /`, longer than 256, or
            something that could be taken for a path outside a folder.
    """
    text = name if isinstance(name, str) else ""
    if not NAME_CHARACTERS.fullmatch(text) or ".." in text or text.startswith("/"):
        raise EditFileError(
            f"names consist of letters, digits and _ . - / without '..', got {name!r:.80}"
        )
    return text


def checked_place(name: object, rows: int | None = None) -> str:
    """Return the name of what an edit acts on: a module, or rows of one, `name[start:stop]`.

    Args:
        name: the empty name is the model itself.
        rows: how many the edit writes, if that is known.

    Raises:
        EditFileError: neither, or another number of rows.
    """
    rows_of = _ROWS.fullmatch(name) if isinstance(name, str) and name[-1:] == "]" else None
    if rows_of is None:
        return checked_name(name) if name != "" else ""
    start, stop = int(rows_of["start"]), int(rows_of["stop"])
    if not start < stop or rows not in (None, stop - start):
        raise EditFileError(f"{name!r:.80} must name as many rows as its edit has, {rows}")
    if rows_of["module"]:
        checked_name(rows_of["module"])
    return rows_of[0]


def checked_object(value: object, what: str) -> dict[str, Any]:
    """Return `value` if it is a JSON object.

    Raises:
        EditFileError: it is something else.
    """
    if not isinstance(value, dict):
        raise EditFileError(f"{what} must be a JSON object, got {value!r:.80}")
    return value


def checked_text(value: object, what: str) -> str:
    """Return `value` if it is a string without control characters.

    Raises:
        EditFileError: it is something else.
    """
    if not isinstance(value, str) or _CONTROL_CHARACTERS.search(value):
        raise EditFileError(f"{what} must be text without control characters, got {value!r:.80}")
    return value


def checked_texts(texts: object, what: str) -> dict[str, str]:
    """Return `texts` if it is an object of strings without control characters.

    Raises:
        EditFileError: it is something else.
    """
    for key, value in checked_object(texts, what).items():
        checked_text(key, f"{what}: a key")
        checked_text(value, f"{what} {key!r:.80}")
    return dict(texts)  # type: ignore[call-overload]


def _tensor_info(name: str, entry: object, limits: Limits) -> TensorInfo:
    if not isinstance(entry, dict) or entry.keys() != _TENSOR_FIELDS:
        raise EditFileError(f"tensor {name!r} must have dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise EditFileError(
            f"tensor {name!r} must have a dtype of {', '.join(ITEM_BYTES)}, got {dtype!r:.80}"
        )
    if not _whole_numbers(shape) or len(shape) > limits.dimensions or 0 in shape:
        raise EditFileError(
            f"tensor {name!r} must have at most {limits.dimensions} axes, none empty, "
            f"got shape {shape!r:.80}"
        )
    if not _whole_numbers(offsets) or len(offsets) != 2:
        raise EditFileError(f"tensor {name!r} must have two offsets, got {offsets!r:.80}")
    # Python's integers do not overflow, so that sizes near 2**64 need no case of their own.
    begin, end = offsets
    if end - begin != math.prod(shape) * ITEM_BYTES[dtype]:
        raise EditFileError(f"tensor {name!r}: its offsets do not fit its shape and dtype")
    return TensorInfo(dtype, tuple(shape), begin, end)


def _whole_numbers(value: object) -> bool:
    # By type: True and False are integers to isinstance, not to the format.
    if not isinstance(value, list) or not set(map(type, value)) <= {int}:
        return False
    return not value or min(value) >= 0


def _check_layout(ordered: dict[str, TensorInfo], data_bytes: int) -> None:
    position = 0
    for name, info in ordered.items():
        if info.begin != position:
            what = "overlaps the one before" if info.begin < position else "leaves a hole before it"
            raise EditFileError(f"tensor {name!r} {what}")
        position = info.end
    if position != data_bytes:
        problem = "the file is cut off" if position > data_bytes else "bytes are left over"
        raise EditFileError(f"{problem}: tensors need {position} bytes, the file has {data_bytes}")
