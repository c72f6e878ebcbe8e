"""Make files of this library that are right in every respect but one."""

import hashlib
import json
import struct

ZEROS = "0" * 32
MARK = b'\\"digest\\":\\"'


def container(header: bytes | str | dict, data: bytes = b"", length: int | None = None) -> bytes:
    """Length, header, data; any of them may be a lie."""
    if isinstance(header, dict):
        header = json.dumps(header, separators=(",", ":"))
    raw = header.encode() if isinstance(header, str) else header
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def signed(file: bytes) -> bytes:
    """The file with the digest that belongs to it, if there is a place for one."""
    length = int.from_bytes(file[:8], "little")
    at = file.find(MARK, 8, 8 + length) + len(MARK)
    if at < len(MARK) or at + 32 > 8 + length:
        return file
    blank = file[:at] + ZEROS.encode() + file[at + 32 :]
    return file[:at] + hashlib.sha256(blank).hexdigest()[:32].encode() + file[at + 32 :]


def tensor(dtype: str, shape: list, begin: int, end: int) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


UP = tensor("F32", [3, 1], 0, 12)
DOWN = tensor("F32", [1, 2], 12, 20)
DATA = struct.pack("<5f", 1, 2, 3, 4, 5)
LOW_RANK = {"kind": "low-rank", "module": "a.b", "up": 0, "down": 1}
GATED = {
    "kind": "gated",
    "statistics": "s",
    "keys": 0,
    "images": 0,
    "targets": 1,
    "gate": "sigmoid",
    "parameters": {"bias": 0.75, "temperature": 0.1},
    "normalised": False,
    "floor": None,
    "modules": {"a": 1, "b": 2},
}
GATED_TENSORS = {"0": tensor("F32", [1, 2], 0, 8), "1": tensor("F32", [1, 3], 8, 20)}
MOMENT = {
    "kind": "moment",
    "module": "a",
    "outer": 0,
    "total": 1,
    "count": 2.0,
    "weight_squares": 2.0,
    "fourth": 1.0,
    "dtype": "float32",
    "provenance": {},
}
MOMENT_TENSORS = {"0": tensor("F32", [3], 0, 12), "1": tensor("F32", [2], 12, 20)}


def edit_file(*entries, tensors=None, data=DATA, **document) -> bytes:
    """A file of this library, right in every respect but those given."""
    whole = {"digest": ZEROS, "version": 1, **document, "entries": list(entries)}
    text = json.dumps(whole, separators=(",", ":"))
    infos = {"0": UP, "1": DOWN} if tensors is None else tensors
    file = container({"__metadata__": {"rankedit": text}, **infos}, data)
    return signed(file) if whole["digest"] == ZEROS else file


def low_rank(**changes) -> bytes:
    return edit_file({**LOW_RANK, **changes})


def gated(**changes) -> bytes:
    return edit_file({**GATED, **changes}, tensors=GATED_TENSORS)


def moment(**changes) -> bytes:
    return edit_file({**MOMENT, **changes}, tensors=MOMENT_TENSORS)


def extremes(**changes) -> bytes:
    """Statistics of version 2, with what is kept of vectors of extreme energy; None: left out."""
    kept = {
        "rows": 2,
        "total": 1,
        "energies": 2,
        "count": 1.0,
        "weight_squares": 1.0,
        "fourth": 1.0,
    }
    kept = {key: value for key, value in (kept | changes).items() if value is not None}
    tensors = {
        **MOMENT_TENSORS,
        "2": tensor("F32", [2, 2], 20, 36),
        "3": tensor("F32", [2, 1], 36, 44),
    }
    entry = {**MOMENT, "extremes": kept}
    return edit_file(entry, version=2, tensors=tensors, data=bytes(36) + struct.pack("<2f", 0.5, 1))


def with_tensors(**tensors) -> bytes:
    """A header of any tensors, whose file is as long as the true one."""
    return edit_file(LOW_RANK, tensors={"0": UP, "1": DOWN} | tensors)


def low_rank_entries(entries: object) -> bytes:
    text = json.dumps({"digest": ZEROS, "version": 1, "entries": entries})
    return container({"__metadata__": {"rankedit": text}, "0": UP, "1": DOWN}, DATA)
