"""Write tensors to a safetensors file and read them from one whose header was checked.

Why not the `safetensors` package itself: its reader opens a file by name, which may be another
file than the one just checked; its writer needs a second copy of all data in memory, or leaves
temporary files of its own when it is killed. The bytes are the same; the tests read each with the
other.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import BinaryIO

import torch
from torch import Tensor

from rankedit.errors import EditFileError
from rankedit.files.header import LENGTH_BYTES, Header

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
_SHORT_NAMES = {dtype: name for name, dtype in DTYPES.items()}
# Tensors of at most so many bytes are checked together, in a copy of all of them.
_SMALL_BYTES = 1 << 14
DIGEST_LENGTH = 32  # hexadecimal characters
NO_DIGEST = "0" * DIGEST_LENGTH
# How the digest stands in the header: inside a JSON string, therefore with escaped quotes.
_DIGEST_MARK = rb"\"digest\":\""


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor, not copied."""
    return tensor.detach().resolve_neg().reshape(-1).view(torch.uint8).numpy().data


def header_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """The safetensors header of `tensors` in their order, padded to a multiple of 8 bytes."""
    document: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    # Written without holes: safetensors' own reader refuses them too.
    position = 0
    for name, tensor in tensors.items():
        end = position + tensor.numel() * tensor.element_size()
        document[name] = {
            "dtype": _SHORT_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
    # The format asks that data begin at a multiple of 8, which makes float64 tensors aligned in a
    # memory map; spaces after a JSON document are still JSON.
    return text + b" " * (-len(text) % 8)


def write_tensors(
    stream: BinaryIO, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Write a safetensors file; the tensors are contiguous and on the CPU.

    Wide dtypes come first, so that every tensor is aligned. A digest of `NO_DIGEST` in the
    metadata is replaced by the digest of the file.
    """
    ordered = dict(sorted(tensors.items(), key=lambda item: -item[1].element_size()))
    # The digest covers the header in which it stands: it is computed over zeros in its own place,
    # which has the same length, so that no offset moves when it is filled in.
    raw = header_bytes(ordered, metadata)
    if _DIGEST_MARK in raw:
        actual = file_digest(raw, NO_DIGEST, map(tensor_bytes, ordered.values()))
        raw = _with_digest(raw, NO_DIGEST, actual)
    stream.write(len(raw).to_bytes(LENGTH_BYTES, "little"))
    stream.write(raw)
    for tensor in ordered.values():
        stream.write(tensor_bytes(tensor))


def file_digest(raw_header: bytes, claimed: str, data: Iterable[memoryview | bytearray]) -> str:
    """The first 32 hexadecimal digits of the SHA-256 of the file with zeros for its own digest."""
    state = hashlib.sha256(len(raw_header).to_bytes(LENGTH_BYTES, "little"))
    state.update(_with_digest(raw_header, claimed, NO_DIGEST))
    for piece in data:
        state.update(piece)
    return state.hexdigest()[:DIGEST_LENGTH]


def _with_digest(raw_header: bytes, old: str, new: str) -> bytes:
    # Once only: a copy of the mark inside a text of the document must stay what it is.
    return raw_header.replace(_DIGEST_MARK + old.encode(), _DIGEST_MARK + new.encode(), 1)


def read_data(stream: BinaryIO, header: Header) -> dict[str, bytearray]:
    """Read the bytes of every tensor; the header has proved that the file has them.

    Raises:
        EditFileError: the file became shorter while it was read, or does not fit in memory.
    """
    data = {}
    for name, info in header.tensors.items():
        # One buffer for each tensor, not one for the file: what an edit does not keep is freed.
        try:
            buffer = bytearray(info.end - info.begin)
        except (MemoryError, OverflowError) as error:
            size = info.end - info.begin
            raise EditFileError(
                f"tensor {name!r} of {size} bytes does not fit in memory"
            ) from error
        if stream.readinto(buffer) != len(buffer):  # type: ignore[attr-defined]
            raise EditFileError("the file became shorter while it was read; load it again")
        data[name] = buffer
    return data


def as_tensors(data: Mapping[str, bytearray], header: Header) -> dict[str, Tensor]:
    """Turn what `read_data` gave into tensors that share the bytes.

    Raises:
        EditFileError: a tensor holds NaN or infinity.
    """
    small: dict[str, list[str]] = {}
    tensors = {}
    for name, info in header.tensors.items():
        tensor = torch.frombuffer(data[name], dtype=DTYPES[info.dtype])
        tensors[name] = tensor.reshape(info.shape)
        if len(data[name]) <= _SMALL_BYTES:
            small.setdefault(info.dtype, []).append(name)
        elif not _is_finite(tensor):
            raise _not_finite(name)
    for dtype, names in small.items():
        # To look at each of thousands of small tensors takes longer than all else together.
        joined = bytearray().join(data[name] for name in names)
        if not _is_finite(torch.frombuffer(joined, dtype=DTYPES[dtype])):
            raise _not_finite(next(name for name in names if not _is_finite(tensors[name])))
    return tensors


def _is_finite(tensor: Tensor) -> bool:
    # x − x is 0 for every finite x, and NaN otherwise: a third of the time of isfinite.
    return not bool((tensor - tensor).any())


def _not_finite(name: str) -> EditFileError:
    return EditFileError(f"tensor {name!r} holds NaN or infinity")
