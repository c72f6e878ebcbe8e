"""Edits and statistics on disk: one safetensors file with one JSON entry in its header.

The format is specified in docs/file-format.md. A file is written in one step or not at all; it is
checked completely before anything of it is used; nothing in it is ever a path, an import, a pattern
or a Python class.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor, nn

from rankedit.atomic import atomic_write
from rankedit.edits import LowRank
from rankedit.errors import AttachError, EditFileError, ShapeError
from rankedit.files.container import DTYPES, header_bytes, write_tensors
from rankedit.files.entries import Item
from rankedit.files.format import (
    FINGERPRINT_DIGITS,
    METADATA_KEY,
    NAMES,
    EditFile,
    check_file,
    encode,
    read_file,
    read_texts,
)
from rankedit.files.header import Limits, checked_name, checked_place, told_of
from rankedit.gated import GatedEdit
from rankedit.gates import GATES, Gate
from rankedit.models.fingerprints import fingerprint
from rankedit.models.geometry import innermost
from rankedit.models.selecting import find, named_modules
from rankedit.models.swapping import FUSED
from rankedit.moments import SecondMoment
from rankedit.shapes import check_kind, check_path

PathLike = str | os.PathLike[str]
NOTHING = ". Nothing was loaded"


def save(
    items: Mapping[str, Item] | Item,
    path: PathLike,
    *,
    metadata: Mapping[str, str] | None = None,
    model: nn.Module | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Write edits, statistics or tensors to one file, all or nothing.

    The file replaces an older one in one step, so that a crash or a full disk leaves the old one as
    it was. Tensors with the same content are stored once: edits of many layers that share their
    keys cost little more than their targets. A base model's weights are never stored. Memory: one
    copy of what is stored.

    Args:
        items: by module name `LowRank`, `GatedEdit`, `SecondMoment`, or a plain tensor that a
            recipe needs with them; edits also by `name[start:stop]`, for rows of a module. A single
            one is stored under the empty name, which stands for the model itself, as in
            `named_modules`.
        path: the file. Its folder must exist.
        metadata: strings to keep with them, at most 65,536 characters together.
        model: the model that they were made for. A fingerprint of each named layer is stored, which
            `check_base` compares.
        dtype: how to store the tensors. By default edits are stored as float32 and statistics as
            float64, of which half is stored because they are symmetric: they come back exactly,
            and can be added to. `float32` halves statistics again, with an error of 6e-8 of each
            entry: keep the ridge of a metric made from them at 1e-6 or more. `float16` and
            `bfloat16` halve edits, with a relative error of 3e-4 and 2.4e-3. A plain tensor keeps
            its own dtype.

    Raises:
        ShapeError: a tensor is empty, not finite, or beyond the range of `dtype`.
        EditFileError: a name or a text that no reader would accept, more than fits into one file,
            or something that is not a thing to be saved.
        ProjectionError: a name that `model` does not have.
        AttachError: a layer of `model` has an edit fused into its weight.

    Example:
        >>> import tempfile, torch, rankedit
        >>> edit = rankedit.LowRank(torch.ones(3, 1), torch.ones(1, 2))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     rankedit.save({"layer": edit}, f"{folder}/edit.safetensors")
        ...     rankedit.load(f"{folder}/edit.safetensors")["layer"].delta().shape
        torch.Size([3, 2])
    """
    check_path("save", "path", path)
    check_kind("save", "model", model, nn.Module, optional=True)
    named = _named(items)
    if len(named) > NAMES:
        raise EditFileError(
            f"save: a file may hold at most {NAMES} items, got {len(named)} for '{path}'; split "
            "them over several files."
        )
    modules = sorted(name for name, item in named.items() if not isinstance(item, Tensor))
    base = {} if model is None else _fingerprints("save", model, modules)
    check_kind("save", "dtype", dtype, torch.dtype, optional=True)
    if dtype is not None and dtype not in DTYPES.values():
        raise ShapeError(f"save: dtype must be one of {[*DTYPES.values()]}, got {dtype!r:.80}.")
    write("save", named, path, {} if metadata is None else metadata, base, dtype)


def write(
    call: str,
    named: Mapping[str, Item],
    path: PathLike,
    metadata: Mapping[str, str],
    base: Mapping[str, str],
    dtype: torch.dtype | None = None,
) -> None:
    """`save` of what was checked, with fingerprints that are known."""
    text, tensors = encode(named, metadata, base, dtype)
    header = {METADATA_KEY: text}
    size = len(header_bytes(tensors, header))
    if size > Limits.header:
        raise EditFileError(
            f"{call}: the header of '{path}' needs {size} bytes, at most {Limits.header} are "
            f"allowed; split the {len(named)} items over several files."
        )
    # The gates of the edits themselves, so that one of a user's own is found when it is read back.
    gates = {
        item.gate.name: type(item.gate) for item in named.values() if isinstance(item, GatedEdit)
    }
    with atomic_write(path) as temporary:
        with temporary.open("wb") as stream:
            write_tensors(stream, tensors, header)
        # Before the rename: a file that cannot be loaded must not replace one that can.
        _check_written(temporary, path, gates)


def _named(items: Mapping[str, Item] | Item) -> Mapping[str, Item]:
    if isinstance(items, LowRank | GatedEdit | SecondMoment | Tensor):
        return {"": items}
    if not isinstance(items, Mapping) or not items:
        raise EditFileError(
            f"save: items must be a mapping of names to edits, or one edit, got {items!r:.80}."
        )
    for name, item in items.items():
        with told_of("save", "; give the module's name in the model"):
            if isinstance(item, LowRank | GatedEdit):
                checked_place(name, item.out_features)
            elif name != "":
                checked_name(name)
    return items


def _check_written(temporary: Path, path: PathLike, gates: Mapping[str, type[Gate]]) -> None:
    """Refuse to save what `load` would refuse.

    Gated edits are built again, because rounding may have made their keys parallel; a file of them
    is small. Statistics are not read back, as they may be as large as the memory.
    """
    check = read_file if gates else check_file
    with told_of(f"save: '{path}' could not be loaded again"), temporary.open("rb") as stream:
        check(stream, temporary.stat().st_size, gates)


def load(path: PathLike, *, gates: Iterable[type[Gate]] = ()) -> EditFile:
    """Read a file that `save` wrote; the result maps names to what was saved.

    Everything is checked before anything is used: the header's size, every name, number, shape and
    text in it, that the tensors fill the file exactly, the digest of the whole file, and that all
    numbers are finite. Memory is taken for data that are there, never for what a header claims.

    Args:
        path: the file.
        gates: classes of gates of your own that edits in the file may use; `Sigmoid`,
            `JointSigmoid` and `Identity` are known.

    Returns:
        A dictionary with the attributes `metadata` and `base`. Tensors are on the CPU; those that
        were stored in 16 bits come back as float32.

    Raises:
        EditFileError: the file is damaged, hostile, of another version, or no such file at all.
        OSError: there is no file, or it cannot be read.
    """
    check_path("load", "path", path)
    known = _by_name(gates)  # before the file is opened: a wrong class is no fault of the file
    with told_of(f"load: '{path}'", NOTHING), open_regular(path) as (stream, size):
        return read_file(stream, size, known)


def load_texts(path: PathLike) -> tuple[dict[str, str], dict[str, str]]:
    """Metadata and fingerprints of a file, of which everything but the data is checked.

    Raises:
        EditFileError, OSError: as for `load`.
    """
    with told_of(f"load: '{path}'", NOTHING), open_regular(path) as (stream, size):
        return read_texts(stream, size)


def _by_name(own: Iterable[type[Gate]]) -> dict[str, type[Gate]]:
    check_kind("load", "gates", own, Iterable)
    classes: list[type[Gate]] = [*GATES, *own]
    for gate in classes:
        if not (isinstance(gate, type) and issubclass(gate, Gate)):
            raise EditFileError(f"load: gates must be classes derived from Gate, got {gate!r:.80}.")
    return {gate.name: gate for gate in classes}


@contextmanager
def open_regular(path: PathLike) -> Iterator[tuple[BinaryIO, int]]:
    """Open a file to read and give it with its size.

    Raises:
        EditFileError: a pipe or a device, which could be endless.
    """
    # Without O_NONBLOCK, opening a pipe would wait for a writer.
    with open(path, "rb", opener=_open_without_waiting) as stream:
        # Asked of what was opened: the name may stand for another file a moment later.
        status = os.fstat(stream.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise EditFileError("it is not a regular file")
        yield stream, status.st_size


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def check_base(model: nn.Module, loaded: EditFile) -> None:
    """Refuse edits that were made for another model than this one.

    Compares the fingerprints in the file with those of the layers of the same name. Edits of one
    base model often work on a fine-tuned one: then do not call this.

    Args:
        model: the model that the edits are to be attached to.
        loaded: what `load` returned.

    Raises:
        EditFileError: layers differ, or the file was saved without a model.
        ProjectionError: the model lacks a layer that the file names.
        AttachError: a layer has an edit fused into its weight.
    """
    check_kind("check_base", "model", model, nn.Module)
    check_kind("check_base", "loaded", loaded, EditFile)
    if not loaded.base:
        raise EditFileError(
            "check_base: the file names no base model; it was saved without save(..., model=model)."
        )
    # All of them: how many differ tells a fine-tuned model from another one.
    actual = _fingerprints("check_base", model, sorted(loaded.base))
    wrong = [name for name, expected in loaded.base.items() if actual[name] != expected]
    if wrong:
        raise EditFileError(
            f"check_base: the edits were made for another base model: {len(wrong)} of "
            f"{len(loaded.base)} layers differ, first {wrong[0]!r} with fingerprint "
            f"{loaded.base[wrong[0]]} in the file and {actual[wrong[0]]} in the model. Load the "
            "model they were made for, in the dtype it had then, or skip check_base if this one "
            "was fine-tuned from it."
        )


def _fingerprints(call: str, model: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """By name the first digits of each layer's fingerprint; all layers must be there."""
    modules = dict(named_modules(model))
    paths = {name: name.partition("[")[0] for name in names}
    # `find` says what the nearest names are.
    layers = {name: modules[p] if p in modules else find(model, p) for name, p in paths.items()}
    fused = [name for name, layer in layers.items() if FUSED in vars(innermost(layer))]
    if fused:
        # The fingerprint would be that of the edited weight, which no model has that is loaded.
        raise AttachError(
            f"{call}: {fused[0]!r} has an edit fused into its weight, so that it is not the base "
            "model's; call unfuse_(model) first, and fuse_ again afterwards."
        )
    return {name: fingerprint(layer)[:FINGERPRINT_DIGITS] for name, layer in layers.items()}
