"""The document that a file's header carries: how it is put together, and how it is checked.

The format is docs/file-format.md; this module and `rankedit.files.kinds` are its only
implementation.
"""

from __future__ import annotations

import gc
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import BinaryIO

import torch
from torch import Tensor

from rankedit.edits import LowRank
from rankedit.errors import EditFileError, RankeditError
from rankedit.files.container import NO_DIGEST, as_tensors, file_digest, read_data
from rankedit.files.entries import Build, Context, Entry, Fields, Item, TensorTable
from rankedit.files.header import (
    Header,
    Limits,
    checked_texts,
    parse_json,
    read_header,
)
from rankedit.files.kinds import (
    PLANNERS,
    encode_gated,
    encode_low_rank,
    encode_tensor,
)
from rankedit.files.statistics import encode_moment
from rankedit.gated import GatedEdit
from rankedit.gates import Gate
from rankedit.moments import SecondMoment

METADATA_KEY = "rankedit"
# The newest; files without statistics of extreme vectors are written as version 1, which older
# versions of this library read.
VERSION = 2
METADATA_BYTES = 1 << 16
# Bounds the time that a hostile file takes to be planned: docs/file-format.md has the figures.
NAMES = 1_024
# Entries may share tensors, and unpack them: a file must not grow beyond this when it is loaded.
_GROWTH, _ALWAYS_ALLOWED = 128, 1 << 23
_DIGEST = re.compile(r"[0-9a-f]{32}")
# 64 bits tell models apart. They are no defence: who forges a file can leave them out as well.
FINGERPRINT_DIGITS = 16
_FINGERPRINT = re.compile(rf"[0-9a-f]{{{FINGERPRINT_DIGITS}}}")


class EditFile(dict[str, Item]):
    """What a file holds: edits, statistics and tensors by name.

    A file of edits alone is ready for `attach`.

    Attributes:
        metadata: the strings that were given to `save`.
        base: for each module of the file the fingerprint of the layer it was made for; empty if
            the file was saved without a model.
    """

    def __init__(
        self, items: Mapping[str, Item], metadata: Mapping[str, str], base: Mapping[str, str]
    ) -> None:
        super().__init__(items)
        self.metadata = dict(metadata)
        self.base = dict(base)


@dataclass(frozen=True)
class _Plan:
    """Everything that a document says, checked; the data are still to be read."""

    digest: str
    builds: tuple[Build, ...]
    metadata: dict[str, str]
    base: dict[str, str]


# -------------------------------------------------------------------- writing


def encode(
    items: Mapping[str, Item],
    metadata: Mapping[str, str],
    base: Mapping[str, str],
    dtype: torch.dtype | None,
) -> tuple[str, dict[str, Tensor]]:
    """The document as JSON, with zeros for its digest, and the tensors by their numbers.

    Raises:
        ShapeError: a tensor that cannot be stored.
        EditFileError: something that is neither edit, statistics nor tensor.
    """
    table = TensorTable()
    document: dict[str, object] = {"digest": NO_DIGEST, "version": _version(items)}
    # Before JSON turns a key such as 1 into "1" without a word.
    texts = checked_texts(metadata, "save: metadata")
    if texts:
        document["metadata"] = texts
    if base:
        document["base"] = [base[name] for name in sorted(base)]
    document["entries"] = _entries(items, table, dtype)
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False), table.tensors


def _version(items: Mapping[str, Item]) -> int:
    moments = [item for item in items.values() if isinstance(item, SecondMoment)]
    return VERSION if any(moment.extremes for moment in moments) else 1


def _entries(
    items: Mapping[str, Item], table: TensorTable, dtype: torch.dtype | None
) -> list[Entry]:
    gated = {name: item for name, item in items.items() if isinstance(item, GatedEdit)}
    # Gated ones first and together, because they share entries; readers do not rely on the order.
    entries = encode_gated(gated, table, dtype)
    for name, item in items.items():
        if isinstance(item, LowRank):
            entries.append(encode_low_rank(name, item, table, dtype))
        elif isinstance(item, SecondMoment):
            entries.append(encode_moment(name, item, table, dtype))
        elif isinstance(item, Tensor):
            entries.append(encode_tensor(name, item, table, dtype))
        elif not isinstance(item, GatedEdit):
            raise EditFileError(
                f"save: {name!r} must be a LowRank, GatedEdit, SecondMoment or tensor, got "
                f"{type(item).__name__}; several LowRank edits of a layer can be added, several "
                "GatedEdits merged, and other kinds of edits have no place in this format."
            )
    return entries


# -------------------------------------------------------------------- reading


def check_file(stream: BinaryIO, size: int, gates: Mapping[str, type[Gate]]) -> None:
    """Check everything of a file but its data.

    Raises:
        EditFileError: see `read_file`.
    """
    with _without_collections():
        _plan(read_header(stream, size, Limits()), gates)


def read_texts(stream: BinaryIO, size: int) -> tuple[dict[str, str], dict[str, str]]:
    """Metadata and fingerprints; everything but the data is checked, as by `read_file`."""
    with _without_collections():
        plan = _plan(read_header(stream, size, Limits()), {})
    return plan.metadata, plan.base


def read_file(stream: BinaryIO, size: int, gates: Mapping[str, type[Gate]]) -> EditFile:
    """Check and read a whole file of `size` bytes from a stream at its start.

    Order matters: header, document and all shapes first; only then the data are read; the digest
    is compared before they are interpreted.

    Raises:
        EditFileError: anything wrong, with the bare fact.
    """
    with _without_collections():
        return _read(stream, size, gates)


def _read(stream: BinaryIO, size: int, gates: Mapping[str, type[Gate]]) -> EditFile:
    header = read_header(stream, size, Limits())
    plan = _plan(header, gates)
    data = read_data(stream, header)
    if file_digest(header.raw, plan.digest, data.values()) != plan.digest:
        raise EditFileError("the file is damaged: its content does not match its digest")
    tensors = as_tensors(data, header)
    items: dict[str, Item] = {}
    for build in plan.builds:
        items |= _built(build, tensors)
    return EditFile(items, plan.metadata, plan.base)


@contextmanager
def _without_collections() -> Iterator[None]:
    """No garbage collector for a moment: half of the time went into looking for garbage in vain."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _built(build: Build, tensors: Mapping[str, Tensor]) -> Mapping[str, Item]:
    try:
        return build(tensors)
    except EditFileError:
        raise
    # A constructor's own refusal (dependent keys, for one) would blame an argument of the caller.
    except RankeditError as error:
        raise EditFileError(f"the file describes something impossible: {error}") from error


def _plan(header: Header, gates: Mapping[str, type[Gate]]) -> _Plan:
    if header.metadata.keys() != {METADATA_KEY}:
        raise EditFileError(
            f"it is no file of this library: its metadata must hold {METADATA_KEY!r} and nothing "
            f"else, got {sorted(header.metadata)!r:.80}; from_lora reads LoRA files"
        )
    context = Context(header.tensors, gates)
    document = Fields(parse_json(header.metadata[METADATA_KEY]), "the document", context)
    # First of all, so that a file of a newer version is not told that it has unknown fields.
    version = document.take("version")
    if type(version) is not int or not 1 <= version <= VERSION:
        raise EditFileError(
            f"its format version must be 1 to {VERSION}, got {version!r:.80}; update rankedit"
        )
    context = replace(context, version=version)
    digest = document.text("digest")
    if not _DIGEST.fullmatch(digest):
        raise EditFileError(f"the digest must be 32 hexadecimal digits, got {digest!r:.80}")
    metadata = _metadata(document.optional("metadata"))
    entries, base = document.take("entries"), document.optional("base")
    document.finish()
    modules, builds = _plan_entries(entries, context)
    _check_growth(context)
    # Bytes that no entry refers to could carry anything, and would pass every other check.
    unused = header.tensors.keys() - context.used
    if unused:
        raise EditFileError(f"tensors {sorted(unused)!r:.80} belong to nothing")
    return _Plan(digest, tuple(builds), metadata, _base(base, modules))


def _check_growth(context: Context) -> None:
    # At 8 bytes each, as if all were float64: packed statistics are unpacked in that dtype.
    stored = sum(info.end - info.begin for info in context.infos.values())
    needed = 8 * sum(context.read)
    if needed > _GROWTH * stored + _ALWAYS_ALLOWED:
        raise EditFileError(
            f"its entries share tensors of {stored} bytes so that they stand for {needed}, more "
            f"than {_GROWTH} times as much; save fewer of them in one file"
        )


def _metadata(value: object) -> dict[str, str]:
    texts = checked_texts({} if value is None else value, "metadata")
    size = sum(len(key) + len(text) for key, text in texts.items())
    if size > METADATA_BYTES:
        raise EditFileError(f"metadata may have {METADATA_BYTES} characters, got {size}")
    return texts


def _plan_entries(entries: object, context: Context) -> tuple[list[str], list[Build]]:
    """The modules that edits and statistics belong to, and what builds them."""
    if not isinstance(entries, list):
        raise EditFileError(f"entries must be a list, got {entries!r:.80}")
    names: set[str] = set()
    modules: list[str] = []
    builds = []
    for number, raw in enumerate(entries):
        entry = Fields(raw, f"entry {number}", context)
        kind = entry.text("kind")
        if kind not in PLANNERS:
            raise EditFileError(
                f"entry {number} must be one of {', '.join(PLANNERS)}, got {kind!r}"
            )
        builds.append(PLANNERS[kind](entry))
        entry.finish()
        mine = _module_names(raw)
        if not names.isdisjoint(mine):
            raise EditFileError(f"{sorted(names.intersection(mine))!r:.80} is described twice")
        names.update(mine)
        if len(names) > NAMES:
            raise EditFileError(f"entries may have at most {NAMES} names of modules")
        modules += [] if kind == "tensor" else mine
    return modules, builds


def _module_names(raw: Mapping[str, object]) -> list[str]:
    """The names that a checked entry is about."""
    several = raw.get("modules")
    return list(several) if isinstance(several, dict) else [str(raw["module"])]


def _base(value: object, modules: list[str]) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, list) or len(value) != len(modules):
        raise EditFileError(f"base must be a list of one fingerprint per module, got {value!r:.80}")
    for fingerprint in value:
        if not isinstance(fingerprint, str) or not _FINGERPRINT.fullmatch(fingerprint):
            raise EditFileError(f"a fingerprint has 16 hexadecimal digits, got {fingerprint!r:.80}")
    return dict(zip(sorted(modules), value, strict=True))
