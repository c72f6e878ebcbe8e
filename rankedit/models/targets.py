"""Resolve where edits go, and refuse in words every place where an edit would not act.

Used by `attach` and `fuse_`; nothing here changes a model.
"""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import nn

from rankedit.errors import AttachError, ProjectionError, RankeditWarning, ShapeError
from rankedit.models.geometry import innermost
from rankedit.models.projections import Projection
from rankedit.models.selecting import find, named_modules
from rankedit.models.wrappers import check_additive
from rankedit.protocol import Edit
from rankedit.shapes import check_kind, describe

Edits: TypeAlias = Mapping[str, Edit | Sequence[Edit]] | Edit | Sequence[Edit]

_ROWS = re.compile(r"(?P<name>.*)\[(?P<start>\d+):(?P<stop>\d+)\]")

# diffusers' fused attention keeps the separate projections in the tree and calls the fused one.
_REPLACED_BY = {
    "to_qkv": ("to_q", "to_k", "to_v"),
    "to_kv": ("to_k", "to_v"),
    "to_added_qkv": ("add_q_proj", "add_k_proj", "add_v_proj"),
}


@dataclass(frozen=True, eq=False)
class Target:
    """One projection that is to be edited.

    Attributes:
        name: in the model, as the user gave it; empty where the layer itself was passed.
        view: the innermost layer, and the rows of it.
        edits: in order.
        owner: the FSDP module that shards the layer's weights, if one does.
        parents: the modules around it, innermost first.
    """

    name: str
    view: Projection
    edits: tuple[Edit, ...]
    owner: nn.Module | None
    parents: tuple[nn.Module, ...]

    @property
    def layer(self) -> nn.Module:
        """The layer itself, without wrappers."""
        return self.view.module


def resolve(call: str, model: nn.Module | Projection, edits: Edits) -> list[Target]:
    """Find and check the projections that `edits` name, without touching any.

    Raises:
        ProjectionError: a name is unknown, or not a projection.
        ShapeError: an edit is of another size than its projection.
        AttachError: the projection is never called, tensor-parallel, or named twice.
    """
    check_kind(call, "model", model, nn.Module, Projection)
    named = _named(call, model, edits)
    root, rows = (model.module, model.rows) if isinstance(model, Projection) else (model, None)
    modules = dict(named_modules(root))
    targets = [_target(call, modules, rows, name, listed) for name, listed in named.items()]
    _check_distinct(call, targets)
    for target in targets:
        for edit in target.edits:
            _check_sizes(call, target, edit)
    return targets


@contextmanager
def gathered(target: Target) -> Iterator[None]:
    """The layer with its whole weight in place, which under FSDP lasts only for the block."""
    with _gathered(target.owner):
        yield


@contextmanager
def gathered_layer(model: nn.Module, path: str) -> Iterator[None]:
    """The same for a layer of a model by its path; under FSDP every process must make the call."""
    chain = _chain(dict(named_modules(model)), path)
    with _gathered(_owner(innermost(chain[0]), chain)):
        yield


@contextmanager
def _gathered(owner: Any) -> Iterator[None]:  # noqa: ANN401  (an FSDPModule, if torch has them)
    if owner is None:
        yield
        return
    owner.unshard()
    try:
        yield
    finally:
        owner.reshard()


def _named(call: str, model: nn.Module | Projection, edits: Edits) -> dict[str, tuple[Edit, ...]]:
    mapping: Mapping[str, Any] = edits if isinstance(edits, Mapping) else {"": edits}
    if isinstance(model, Projection) and isinstance(edits, Mapping):
        raise AttachError(
            f"{call}: a Projection takes an edit or a list of edits, got a mapping with the keys "
            f"{list(mapping)[:5]}; pass the model to address its layers by name."
        )
    named: dict[str, tuple[Edit, ...]] = {}
    for name, value in mapping.items():
        listed = tuple(value) if isinstance(value, Sequence) else (value,)
        right = all(isinstance(edit, Edit) for edit in listed)
        if not right or not isinstance(name, str) or not listed:
            raise AttachError(
                f"{call}: expected {{name: edit or list of edits}}, got {describe(value)} under "
                f"{name!r}; an edit is a LowRank, a GatedEdit or anything with the methods of "
                "rankedit.Edit."
            )
        named[name] = listed
    return named


def _target(
    call: str,
    modules: Mapping[str, nn.Module],
    rows: slice | None,
    name: str,
    edits: tuple[Edit, ...],
) -> Target:
    path = name
    match = _ROWS.fullmatch(name)
    if match:
        path, rows = match["name"], slice(int(match["start"]), int(match["stop"]))
    try:
        view = Projection(innermost(find(modules, path)), rows)
    except ProjectionError as error:
        place = f"layer {name!r}" if name else "the layer itself (name the layers of a model)"
        raise ProjectionError(f"{call}: {place}: {error}") from error
    chain = _chain(modules, path)
    _check_called(call, name, path, chain)
    target = Target(name, view, edits, _owner(view.module, chain), tuple(chain[1:]))
    _check_whole(call, target)
    with gathered(target):
        check_additive(call, name, modules[path], view.layout, edits)
    _warn_of_hooks(call, name, view.module)
    return target


def _chain(modules: Mapping[str, nn.Module], path: str) -> list[nn.Module]:
    """The modules from the layer up to the root."""
    parts = path.split(".") if path else []
    names = (".".join(parts[:count]) for count in range(len(parts), -1, -1))
    return [modules[name] for name in names if name in modules]  # a parameter of experts is none


# ------------------------------------------------------------------------------------- refusals


def _check_distinct(call: str, targets: Sequence[Target]) -> None:
    seen: dict[tuple[int, tuple[int, int]], str] = {}
    for target in targets:
        place = (id(target.layer), target.view.bounds)
        if place in seen:
            raise AttachError(
                f"{call}: {seen[place]!r} and {target.name!r} are one and the same layer, which "
                "would be edited twice; keep one name, with a list of edits if there are several."
            )
        seen[place] = target.name


def _check_sizes(call: str, target: Target, edit: Edit) -> None:
    expected = (target.view.out_features, target.view.in_features)
    if (edit.out_features, edit.in_features) != expected:
        rows = target.view.rows
        where = f" (rows {rows.start} to {rows.stop})" if rows is not None else ""
        raise ShapeError(
            f"{call}: the edit of {target.name!r}{where} must be [out, in] = {list(expected)} like "
            f"the projection, got {[edit.out_features, edit.in_features]}; it was made for another "
            "layer."
        )


def _warn_of_hooks(call: str, name: str, layer: nn.Module) -> None:
    """Hooks are not run to see what they do, since those that record would record that."""
    hooks = (*layer._forward_pre_hooks.values(), *layer._forward_hooks.values())
    own = ("torch.", "rankedit.")  # which leave inputs and outputs as they are
    modules = [getattr(hook, "__module__", None) or type(hook).__module__ for hook in hooks]
    found = [h for h, m in zip(hooks, modules, strict=True) if not m.startswith(own)]
    if found:
        warnings.warn(
            f"{call}: {name!r} has the forward hook {found[0]!r:.120}, and an edit acts below it: "
            "if it changes what the layer reads or gives, the edit gives its keys something else "
            "than it was solved for. Remove such hooks; for those that only look on, this is of "
            "no importance.",
            RankeditWarning,
            stacklevel=6,
        )


def _check_called(call: str, name: str, path: str, chain: Sequence[nn.Module]) -> None:
    """Refuse layers that stay in the tree while something else computes in their place."""
    if len(chain) < 2:
        return
    child, parent = path.rpartition(".")[2], chain[1]
    for fused, replaced in _REPLACED_BY.items():
        if child in replaced and _runs_fused(parent) and hasattr(parent, fused):
            raise AttachError(
                f"{call}: {name!r} is never called since its projections were fused: "
                f"{type(parent).__name__} runs {fused!r}. Call unfuse_qkv_projections() first, or "
                f"edit rows of {fused!r} by naming it with [start:stop]."
            )


def check_run(call: str, target: Target) -> None:
    """Refuse layers whose weights torch's attention or encoder layer reads without calling them.

    The encoder does so in eval mode without gradients, which may come after attaching. An edit in
    the weight acts all the same, so that only what attaches needs this. What other models do is
    seen when they run, by `rankedit.models.reaching`.

    Raises:
        AttachError: the layer is not called, or the fused path may be taken.
    """
    if isinstance(target.parents[0] if target.parents else None, nn.MultiheadAttention):
        raise AttachError(
            f"{call}: {target.name!r} is never called: nn.MultiheadAttention uses the weights of "
            "its output projection in a function of its own; put a static edit into the weight "
            "with fuse_, or edit a layer after the attention."
        )
    if torch.backends.mha.get_fastpath_enabled() and any(map(_has_fast_path, target.parents)):
        raise AttachError(
            f"{call}: {target.name!r} is not called in eval mode: nn.TransformerEncoderLayer then "
            "uses its weight in a fused function of its own; call "
            "torch.backends.mha.set_fastpath_enabled(False) first, and leave it so while the edit "
            "is attached."
        )


def _has_fast_path(module: nn.Module) -> bool:
    encoder = nn.TransformerEncoderLayer
    if not isinstance(module, encoder) or type(module).forward is not encoder.forward:
        return False
    # Batch second is the default of the class, and is never fused.
    return getattr(module.self_attn, "batch_first", True) is not False


def _runs_fused(attention: nn.Module) -> bool:
    if getattr(attention, "fused_projections", False) is not True:
        return False
    # Two generations: newer classes clear the flag when unfused; the older one keeps it and only
    # changes its processor back.
    if hasattr(attention, "unfuse_projections"):
        return True
    return "Fused" in type(getattr(attention, "processor", None)).__name__


def _loaded_class(module: str, name: str) -> type | None:
    """A class of torch's, if its module was ever imported: only then can there be instances."""
    return getattr(sys.modules.get(module), name, None)


def _owner(layer: nn.Module, chain: Sequence[nn.Module]) -> nn.Module | None:
    sharded = _loaded_class("torch.distributed.tensor", "DTensor")
    manager = _loaded_class("torch.distributed.fsdp", "FSDPModule")
    if sharded is None or manager is None:
        return None
    if not any(isinstance(tensor, sharded) for tensor in layer.parameters(recurse=False)):
        return None
    return next((part for part in (layer, *chain) if isinstance(part, manager)), None)


def _check_whole(call: str, target: Target) -> None:
    """Refuse weights that stay split over devices while the layer runs (tensor parallelism)."""
    sharded = _loaded_class("torch.distributed.tensor", "DTensor")
    if sharded is None:
        return
    with gathered(target):
        split = [
            name
            for name, tensor in target.layer.named_parameters(recurse=False)
            if isinstance(tensor, sharded)
        ]
    if split:
        raise AttachError(
            f"{call}: {target.name!r} is split over devices: its {split[0]} is a DTensor that "
            "stays sharded when it runs, by tensor parallelism or by FSDP around a module above "
            "the one passed. Do it before parallelize_module, or pass the model that was given to "
            "fully_shard."
        )
