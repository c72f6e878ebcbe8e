"""LoRA files, of this library or of others, as low-rank edits."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from rankedit.edits import LowRank
from rankedit.errors import EditFileError, RankeditError
from rankedit.files.container import as_tensors, read_data
from rankedit.files.header import Limits, checked_object, parse_json, read_header, told_of
from rankedit.files.lora_config import CONFIG_NAME, WEIGHTS_NAME, Strength, strengths_in_metadata
from rankedit.files.lora_layouts import PEFT_ADAPTER, PEFT_PREFIX, ZEROS_KEY, split_key
from rankedit.files.lora_names import names_of
from rankedit.files.storage import NOTHING, PathLike, open_regular
from rankedit.shapes import check_kind, check_path

# Files of other programs carry longer headers than ours, and convolutions of four axes.
_FOREIGN_LIMITS = Limits(header=4 << 20, tensors=20_000, dimensions=4, separators=600_000)
# Comparisons of a name with a pattern; 1.5 seconds. An adapter of 500 layers, each with a rank and
# an alpha of its own, needs 500,000.
_LARGEST_WORK = 4_000_000
# How names end under which programs write a strength into a file's metadata.
_STRENGTHS = ("alpha", "adapter_config", "lora_config")


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
    check_path("from_lora", "path", path)
    check_kind("from_lora", "component", component, str)
    check_kind("from_lora", "modules", modules, Iterable)
    prefix = f"{component}." if component else ""
    candidates = [f"{prefix}{name}" for name in modules]
    place = Path(path)
    with told_of(f"from_lora: '{path}'", NOTHING):
        tensors, metadata = _read(place / WEIGHTS_NAME if place.is_dir() else place)
        strengths = strengths_in_metadata(metadata) or _strength_beside(place, tensors, metadata)
        layers = _layers(tensors, metadata.get(ZEROS_KEY, "").split())
        names = names_of(layers, candidates)
        if len(set(names.values())) < len(names):
            raise EditFileError("two groups of tensors belong to one layer")
        wanted = {names[stem]: layers[stem] for stem in names if names[stem].startswith(prefix)}
        _check_work(strengths, len(wanted))
        edits = {name: _edit(name, parts, strengths) for name, parts in wanted.items()}
    if not edits:
        raise EditFileError(
            f"from_lora: '{path}' has no layer in component {component!r}; its layers are "
            f"{', '.join(names.values())[:200]}."
        )
    return {name.removeprefix(prefix): edit for name, edit in edits.items()}


def _strength_beside(
    place: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> dict[str, Strength]:
    """The configuration in PEFT's second file, if these are, or may be, the tensors of its first.

    Raises:
        EditFileError: it is not there, or may be that of other tensors, and nothing else says how
            strong these are.
    """
    folder = place if place.is_dir() else place.parent
    by_peft = place.is_dir() or place.name == WEIGHTS_NAME
    own = 3 * sum(split_key(key)[1] == "alpha" for key in tensors) == len(tensors)
    if own and not by_peft:
        return {}
    if (folder / CONFIG_NAME).exists():
        if not by_peft and (folder / WEIGHTS_NAME).exists():
            raise EditFileError(
                f"{CONFIG_NAME} beside it says how strong {WEIGHTS_NAME} is, and nothing tells "
                "whether it is about these tensors, too: move one of them into another folder"
            )
        return {"": Strength.from_config(_config(folder / CONFIG_NAME))}
    if own:
        return {}
    if by_peft or any(PEFT_PREFIX in key or PEFT_ADAPTER in key for key in tensors):
        raise EditFileError(
            f"PEFT keeps a LoRA's strength in {CONFIG_NAME}, and there is none beside the tensors: "
            "it was not copied along, or writing was interrupted; put it there, or write the LoRA "
            "again"
        )
    stated = [key for key in metadata if key.endswith(_STRENGTHS)]
    if stated:
        raise EditFileError(
            f"its metadata has {stated[0]!r:.80}, which may say how strong it is, in a form that "
            "is not known: give each layer its alpha as a tensor, or take that entry away"
        )
    return {}


def _config(path: Path) -> Mapping[str, object]:
    with open_regular(path) as (stream, size):
        if size > Limits.header:
            raise EditFileError(f"{CONFIG_NAME} may have {Limits.header} bytes, got {size}")
        return checked_object(parse_json(stream.read()), CONFIG_NAME)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with open_regular(path) as (stream, size):
        header = read_header(stream, size, _FOREIGN_LIMITS)
        for name in header.tensors:  # before the data are read, which may be large
            split_key(name)
        return as_tensors(read_data(stream, header), header), header.metadata


def _layers(tensors: Mapping[str, Tensor], zeros: Container[str]) -> dict[str, dict[str, Tensor]]:
    """By stem the tensors of each layer, without those that `to_lora` added for other readers."""
    layers: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        stem, part = split_key(key)
        if part in layers.setdefault(stem, {}):
            raise EditFileError(f"layer {stem!r:.120} has two tensors for {part}")
        layers[stem][part] = tensor
    return {
        stem: parts
        for stem, parts in layers.items()
        if stem not in zeros or any(t.any() for part, t in parts.items() if part != "alpha")
    }


def _check_work(strengths: Mapping[str, Strength], layers: int) -> None:
    work = layers * sum(strength.cost() for strength in strengths.values())
    if work > _LARGEST_WORK:
        raise EditFileError(
            f"its patterns of ranks and alphas would need {work} comparisons for {layers} layers, "
            f"at most {_LARGEST_WORK} are done"
        )


def _strength_of(name: str, strengths: Mapping[str, Strength]) -> tuple[Strength, str]:
    """What is said of a layer, and the name by which it is said."""
    component, _, rest = name.partition(".")
    if "" in strengths:
        return strengths[""], name
    if component in strengths:
        return strengths[component], rest
    if strengths:
        # diffusers reads PEFT's defaults then, which fit the tensors by chance only.
        raise EditFileError(
            f"its metadata says how strong {', '.join(strengths)[:80]} are, and nothing of "
            f"{name!r:.120}: pass component= to read one of them alone"
        )
    return Strength(), name


def _edit(name: str, parts: Mapping[str, Tensor], strengths: Mapping[str, Strength]) -> LowRank:
    lacking = {"down", "up"} - parts.keys()
    if lacking:
        raise EditFileError(f"layer {name!r:.120} lacks {' and '.join(sorted(lacking))}")
    down, up = (_matrix(name, parts[part]) for part in ("down", "up"))
    alpha = parts.get("alpha")
    if alpha is not None and alpha.numel() != 1:
        raise EditFileError(f"alpha of {name!r:.120} must be one number, got {list(alpha.shape)}")
    strength, stated_name = _strength_of(name, strengths)
    own = None if alpha is None else float(alpha)
    scale = strength.scale(stated_name, down.shape[0], own)
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
