"""Low-rank edits as LoRA files, for programs that know nothing of this library, and back.

Nothing is approximated: a `LowRank` edit is a LoRA of the same rank. The tensors are the edit's
own, `alpha` equals the rank, so that every reader's scale is exactly 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from rankedit.atomic import atomic_write, sync
from rankedit.edits import LowRank
from rankedit.errors import EditFileError, ShapeError
from rankedit.files.container import write_tensors
from rankedit.files.header import checked_name, checked_place, checked_texts, told_of
from rankedit.files.lora_config import CONFIG_NAME, WEIGHTS_NAME, adapter_config
from rankedit.files.lora_experts import check_kept, stacks_of
from rankedit.files.lora_layouts import (
    DIFFUSERS,
    KOHYA,
    PEFT,
    PEFT_PREFIX,
    ZEROS_KEY,
    Layout,
    layout_named,
)
from rankedit.files.lora_reading import from_lora
from rankedit.files.storage import PathLike
from rankedit.models.geometry import geometry, innermost
from rankedit.models.selecting import find
from rankedit.shapes import check_kind, check_path

__all__ = ["DIFFUSERS", "KOHYA", "PEFT", "Layout", "from_lora", "to_lora"]

_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def to_lora(
    edits: Mapping[str, LowRank],
    path: PathLike,
    *,
    layout: Layout | str = PEFT,
    component: str = "",
    model: nn.Module | None = None,
    dtype: torch.dtype = torch.float32,
    config: Mapping[str, object] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write low-rank edits as a LoRA that PEFT, diffusers, ComfyUI and others load.

    * `PEFT`, a folder of two files: `PeftModel.from_pretrained`, `model.load_adapter`.
    * `DIFFUSERS`, one file: `pipe.load_lora_weights`.
    * `KOHYA`, one file with flat names and alphas: ComfyUI, and `pipe.load_lora_weights` for UNets
      and text encoders.

    Args:
        edits: by the layer's name in the model. A `GatedEdit` has no LoRA form: linearise it first.
        path: the folder (peft) or the file.
        layout: `PEFT`, `DIFFUSERS` or `KOHYA` of this module, or its name.
        component: what precedes the names for diffusion pipelines, such as `"unet"`,
            `"transformer"` or `"text_encoder.text_model"`; empty if the names have it.
        model: the model; needed if 1x1 convolutions are edited, whose tensors have four axes, if
            experts in one parameter are (layout `PEFT` alone, as its `target_parameters`), and to
            set `fan_in_fan_out` for layers that keep their weight transposed (GPT-2).
        dtype: how to store; 16 bits split the norm of each rank evenly between up and down, and
            leave a relative error of 3e-4 (float16) or 2.4e-3 (bfloat16).
        config: further fields of PEFT's `adapter_config.json`, such as `base_model_name_or_path`.
        metadata: strings for the file's header, such as `modelspec.trigger_phrase`.

    Raises:
        EditFileError: not a low-rank edit, or names or experts that the layout cannot express.
        ShapeError: entries that are not finite in `dtype`.
        ProjectionError: `model` lacks a layer.
    """
    check_path("to_lora", "path", path)
    check_kind("to_lora", "component", component, str)
    check_kind("to_lora", "model", model, nn.Module, optional=True)
    check_kind("to_lora", "config", config, Mapping, optional=True)
    check_kind("to_lora", "dtype", dtype, torch.dtype)
    chosen = layout_named(layout)
    layers, stacks = stacks_of(_checked(edits), model, component)
    check_kept(stacks, folder=chosen.folder)
    named = {f"{component}.{n}" if component else n: e for n, e in layers.items()}
    views = {} if model is None else {n: _Kernel.of(find(model, n)) for n in layers}
    kernels = dict(zip(named, (views.get(n, _Kernel()) for n in layers), strict=True))
    zeros = _zeros_for_diffusers(named, chosen)
    kernels |= dict.fromkeys(zeros, _Kernel())
    # One rank for all beside parameters: PEFT 0.21.2 warns that patterns for those were ignored.
    even = not chosen.folder or bool(stacks)
    rank = max(edit.rank for edit in edits.values()) if even else 0
    tensors = _tensors(named | zeros, chosen, kernels, dtype, rank)
    for stack in stacks:
        made = stack.tensors(rank, partial(_factors, dtype=dtype))
        tensors |= {PEFT_PREFIX + name: tensor for name, tensor in made.items()}
    texts = checked_texts({} if metadata is None else metadata, "to_lora: metadata")
    header = {"format": "pt", **texts}
    if zeros:
        header[ZEROS_KEY] = " ".join(map(chosen.stem, zeros))
    if not chosen.folder:
        _write(Path(path), tensors, header)
        return
    ranks = {name: rank or edit.rank for name, edit in named.items()}
    parameters = dict.fromkeys((stack.name for stack in stacks), rank)
    transposed = {"fan_in_fan_out": any(kernel.transposed for kernel in kernels.values())}
    text = adapter_config(ranks, {**transposed, **(config or {})}, parameters)
    _write_folder(Path(path), tensors, header, text)


def _zeros_for_diffusers(edits: Mapping[str, LowRank], layout: Layout) -> dict[str, LowRank]:
    """Layers of zeros without which diffusers does not know, or loses, what is edited.

    diffusers 0.42.1 tells the convention of a text encoder's flat names from its output
    projections: without one, queries, keys, values and the text projection alone are an error, and
    beside an MLP they are dropped (findings/diffusers-drops-text-encoder-loras.sh). And it knows no
    rank for a text projection alone.
    """
    zeros = {}
    for component in dict.fromkeys(name.partition(".")[0] for name in edits):
        if layout.folder or not component.startswith("text_encoder"):
            continue
        ends = {n.rpartition(".")[2]: n for n in edits if n.startswith(f"{component}.")}
        lost = ends.keys() & ({"q_proj", "k_proj", "v_proj"} if layout.flat else set())
        lost |= ends.keys() & {"text_projection"} if layout.flat or len(ends) == 1 else set()
        if lost and "out_proj" not in ends:
            # Each of them reads what an output projection reads and writes.
            width = edits[ends[min(lost)]].in_features
            name = f"{component}.text_model.encoder.layers.0.self_attn.out_proj"
            zeros[name] = LowRank(torch.zeros(width, 1), torch.zeros(1, width))
    return zeros


def _checked(edits: Mapping[str, LowRank]) -> Mapping[str, LowRank]:
    if not isinstance(edits, Mapping) or not edits:
        raise EditFileError(
            f"to_lora: edits must be a mapping of names to edits, got {edits!r:.80}."
        )
    for name, edit in edits.items():
        if not isinstance(edit, LowRank):
            raise EditFileError(
                f"to_lora: {name!r} must be a LowRank edit, got {type(edit).__name__}. An edit "
                "that depends on the input has no LoRA form; edit.linearised(...) makes a static "
                "edit of a GatedEdit and reports how far it is from it."
            )
        with told_of("to_lora", "; give the module's name in the model"):
            spans = checked_place(name, edit.out_features).endswith("]") or not checked_name(name)
        if spans:
            raise EditFileError(
                f"to_lora: {name!r:.120} is about some rows of a layer, and a LoRA is about all of "
                "them: give the layer's name and LowRank(pad(up, (0, 0, start, rows - stop)), down)"
                " with torch.nn.functional.pad, which leaves the other rows as they are."
            )
    return edits


class _Kernel:
    """How a layer wants its LoRA: axes behind the matrix, and whether it is kept transposed."""

    def __init__(self, axes: int = 0, *, transposed: bool = False) -> None:
        self.axes = axes
        self.transposed = transposed

    @classmethod
    def of(cls, layer: nn.Module) -> _Kernel:
        inner = innermost(layer)
        # GPT-2's Conv1D, known by its only attribute: W is stored as [in, out].
        transposed = not isinstance(inner, nn.Linear) and isinstance(
            getattr(inner, "nf", None), int
        )
        return cls(len(geometry(layer).stride), transposed=transposed)


def _tensors(
    edits: Mapping[str, LowRank],
    layout: Layout,
    kernels: Mapping[str, _Kernel],
    dtype: torch.dtype,
    rank: int,
) -> dict[str, Tensor]:
    # In single files readers find out ranks and alphas by themselves. Where they differ between
    # layers, diffusers 0.42 loses the alphas of attention layers with flat names, and earlier
    # versions give every layer the commonest rank's scale; equal ranks are read rightly by all.
    tensors: dict[str, Tensor] = {}
    for name, edit in edits.items():
        down, up = _factors(name, edit, rank or edit.rank, dtype)
        ones = (1,) * kernels[name].axes
        suffixes = layout.suffixes_for(name)
        with told_of("to_lora"):
            stem = layout.stem(name)
        if stem + suffixes.down in tensors:
            raise EditFileError(
                f"to_lora: {name!r} and another layer are both {stem!r} in this layout; "
                "write them to separate files."
            )
        tensors[stem + suffixes.down] = down.reshape(*down.shape, *ones)
        tensors[stem + suffixes.up] = up.reshape(*up.shape, *ones)
        if layout.with_alpha:
            # In float32 whatever the rest is in: bfloat16 has no whole number between 256 and 258.
            tensors[stem + suffixes.alpha] = torch.tensor(float(rank))
    return tensors


def _factors(name: str, edit: LowRank, rank: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """`down [rank, in]` and `up [out, rank]`, filled up with zeros."""
    if dtype not in _DTYPES:
        raise ShapeError(f"to_lora: dtype must be one of {_DTYPES}, got {dtype}.")
    try:
        cast = (edit.balanced() if dtype.itemsize == 2 else edit).to(dtype)
    except ShapeError as error:
        raise ShapeError(
            f"to_lora: up and down of {name!r} must be finite and within the range of {dtype}; "
            "pass a wider dtype=, or scale the edit."
        ) from error
    missing = rank - edit.rank
    down = pad(cast.down.detach(), (0, 0, 0, missing)).cpu().contiguous()
    up = pad(cast.up.detach(), (0, missing)).cpu().contiguous()
    return down, up


def _write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    with atomic_write(path) as temporary, temporary.open("wb") as stream:
        write_tensors(stream, tensors, metadata)


def _write_folder(
    folder: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], text: str
) -> None:
    """Two files as one: a reader sees the old pair, the new pair, or tensors that it refuses.

    PEFT reads nothing without a configuration, so that an old one goes before the tensors come that
    it is not about. Both new files are on the disk by then.
    """
    if folder.exists() and not folder.is_dir():
        raise EditFileError(
            f"to_lora: path must be a folder in the layout of PEFT, which has two files, got the "
            f"file '{folder}'; name a folder, or pass layout='diffusers' for one file."
        )
    folder.mkdir(exist_ok=True)
    config, content = folder / CONFIG_NAME, text.encode()
    with atomic_write(config) as new_config:
        new_config.write_bytes(content)
        with atomic_write(folder / WEIGHTS_NAME) as new_tensors:
            with new_tensors.open("wb") as stream:
                write_tensors(stream, tensors, metadata)
            for file in (new_config, new_tensors):
                sync(file)
            # Of the same layers and ranks either configuration is right for either tensors.
            if not config.exists() or config.read_bytes() != content:
                config.unlink(missing_ok=True)
