"""LoRA files, of this library or of others, as low-rank edits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from rankedit.edits import LowRank
from rankedit.errors import EditFileError, RankeditError
from rankedit.files.container import as_tensors, read_data
from rankedit.files.header import Limits, checked_object, parse_json, read_header
from rankedit.files.lora_config import CONFIG_NAME, WEIGHTS_NAME, Strength, strengths_in_metadata
from rankedit.files.lora_layouts import names_of, split_key
from rankedit.files.storage import PathLike, open_regular

# Files of other programs carry longer headers than ours, and convolutions of four axes.
_FOREIGN_LIMITS = Limits(header=4 << 20, tensors=20_000, dimensions=4, separators=600_000)


def from_lora(
    path: PathLike, *, component: str = "", modules: Iterable[str] = ()
) -> dict[str, LowRank]:
    """Read a LoRA as low-rank edits, whose `delta()` is what the LoRA adds to each weight.

    Args:
        path: a file in one of the layouts of `to_lora` or its relatives, or a folder of PEFT.
        component: read the layers of this component only, and leave it out of their names.
        modules: names of the model's layers, `dict(model.named_modules())` for instance. Needed for
            files with flat names (kohya), from which a layer's name cannot be told.

    Returns:
        By layer name an edit with the scale (alpha over rank) already multiplied in.

    Raises:
        EditFileError: the file is damaged or hostile, or another kind of adapter; a layer lacks a
            part, has shapes that do not fit, an absurd alpha, or a name that cannot be told.
        OSError: there is no file, or it cannot be read.
    """
    prefix = f"{component}." if component else ""
    candidates = [f"{prefix}{name}" for name in modules]
    place = Path(path)
    try:
        if place.is_dir():
            strengths = {"": Strength.from_config(_config(place / CONFIG_NAME))}
            tensors, _ = _read(place / WEIGHTS_NAME)
        else:
            tensors, metadata = _read(place)
            strengths = strengths_in_metadata(metadata)
        edits = _edits(tensors, strengths, candidates)
    except EditFileError as error:
        fact = str(error).rstrip(".")
        raise EditFileError(f"from_lora: '{path}': {fact}. Nothing was loaded.") from error
    chosen = {n.removeprefix(prefix): edit for n, edit in edits.items() if n.startswith(prefix)}
    if not chosen:
        raise EditFileError(
            f"from_lora: '{path}' has no layer in component {component!r}; its layers are "
            f"{', '.join(edits)[:200]}."
        )
    return chosen


def _config(path: Path) -> Mapping[str, object]:
    with open_regular(path) as (stream, size):
        if size > Limits.header:
            raise EditFileError(f"{CONFIG_NAME} may have {Limits.header} bytes, got {size}")
        return checked_object(parse_json(stream.read()), CONFIG_NAME)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with open_regular(path) as (stream, size):
        return _read_stream(stream, size)


def _read_stream(stream: BinaryIO, size: int) -> tuple[dict[str, Tensor], dict[str, str]]:
    header = read_header(stream, size, _FOREIGN_LIMITS)
    for name in header.tensors:
        split_key(name)
    return as_tensors(read_data(stream, header), header), header.metadata


def _edits(
    tensors: Mapping[str, Tensor], strengths: Mapping[str, Strength], candidates: Iterable[str]
) -> dict[str, LowRank]:
    layers: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        stem, part = split_key(key)
        if part in layers.setdefault(stem, {}):
            raise EditFileError(f"layer {stem!r:.120} has two tensors for {part}")
        layers[stem][part] = tensor
    names = names_of(layers, candidates)
    if len(set(names.values())) < len(names):
        raise EditFileError("two groups of tensors belong to one layer")
    return {names[stem]: _edit(names[stem], parts, strengths) for stem, parts in layers.items()}


def _edit(name: str, parts: Mapping[str, Tensor], strengths: Mapping[str, Strength]) -> LowRank:
    lacking = {"down", "up"} - parts.keys()
    if lacking:
        raise EditFileError(f"layer {name!r:.120} lacks {' and '.join(sorted(lacking))}")
    down, up = (_matrix(name, parts[part]) for part in ("down", "up"))
    alpha = parts.get("alpha")
    if alpha is not None and alpha.numel() != 1:
        raise EditFileError(f"alpha of {name!r:.120} must be one number, got {list(alpha.shape)}")
    strength = strengths.get("") or strengths.get(name.partition(".")[0]) or Strength()
    own = None if alpha is None else float(alpha)
    scale = strength.scale(name, down.shape[0], own)
    try:
        edit = LowRank(up, down)
        return edit if scale == 1 else edit * scale
    except RankeditError as error:
        raise EditFileError(f"layer {name!r:.120} has parts that do not fit: {error}") from error


def _matrix(name: str, tensor: Tensor) -> Tensor:
    """A matrix, also from the four axes of a 1x1 convolution; float32 or wider."""
    if tensor.ndim < 2 or any(size != 1 for size in tensor.shape[2:]):
        raise EditFileError(
            f"layer {name!r:.120} must have matrices or 1x1 convolutions, got {list(tensor.shape)}"
        )
    matrix = tensor.flatten(1)
    return matrix if matrix.dtype == torch.float64 else matrix.float()
