"""How an edit sits in a layer: the layer's class becomes a subclass of itself.

The names, parameters, hooks and `isinstance` of the layer stay what they were. Everything that
calls its `forward` (compiled code, offloading, checkpointing, sharding, a LoRA around it) reaches
the edit without knowing of it.

    invariant    y = base.forward(x) + Σ_slots strength · added(x)

All that a forward reads of the edits is one tuple of immutable slots, which it reads once; whoever
changes it meanwhile publishes another tuple. Their tensors move and are copied with the layer, but
are no buffers: `state_dict` and DistributedDataParallel, which sends those of one process to all,
do not see them.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from types import MethodType
from typing import Any, SupportsIndex

import torch
from torch import Tensor, nn

from rankedit.errors import AttachError
from rankedit.linear_outputs import Standing, standing_edits
from rankedit.models.adding import edited, placed
from rankedit.models.asking import stand_in
from rankedit.models.experts import Expert
from rankedit.models.geometry import Geometry, innermost
from rankedit.models.slots import Mark, Slot, Whole, check_unstacked
from rankedit.models.telling import Context
from rankedit.protocol import Edit, Factored

_SLOTS = "_rankedit_slots"
_BASE = "_rankedit_base"
FUSED = "_rankedit_fused"  # where a fused layer keeps what it needs to be restored

# Around every change of slots and weights. Forwards take no lock.
LOCK = threading.RLock()

# Of classes that can be found by name. Others are made for one layer and must go with it.
_KEPT: dict[type[nn.Module], type[nn.Module]] = {}


class EditedProjection(Whole):
    """What `edited_class` puts before a layer's own class, with a `forward` that adds the edits."""

    _rankedit_slots: tuple[Slot, ...] = ()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> EditedProjection:  # noqa: FBT001, FBT002
        # Edits compute in float32 whatever the model computes in, so that `model.half()` moves and
        # casts the layer but only moves the edits.
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        with LOCK:
            slots = self._rankedit_slots
            moved = [{n: _moved(t, fn) for n, t in slot.tensors.items()} for slot in slots]
            _settle(self, tuple(replace(s, tensors=t) for s, t in zip(slots, moved, strict=True)))
        return self

    def _rankedit_asked(self) -> None:
        """This is a stand-in that is about to be run, which is no forward of the model."""
        vars(self)[_SLOTS] = tuple(replace(slot, mark=Mark()) for slot in self._rankedit_slots)

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[Any, ...]:
        # A dynamic class cannot be found by name; its base can.
        return _rebuild, (_bare_class(type(self)),), self.__dict__


def _moved(tensor: Tensor, fn: Callable[[Tensor], Tensor]) -> Tensor:
    device = fn(tensor.detach()).device
    if device == tensor.device:
        return tensor
    moved = tensor.detach().to(device)
    if not tensor.requires_grad:
        return moved
    # A tensor that an optimiser holds keeps its identity, as parameters do, where torch can do so.
    if tensor.is_leaf and torch._has_compatible_shallow_copy_type(tensor, moved):
        tensor.data = moved
        return tensor
    return moved.requires_grad_()


def _rebuild(base: type[nn.Module]) -> nn.Module:
    cls = edited_class(base)
    return cls.__new__(cls)


# -------------------------------------------------------------------------------------- classes


def edited_class(base: type[nn.Module]) -> type[nn.Module]:
    """The subclass of `base` whose instances add their edits; one for each base.

    Of a parametrised class it is a copy with ours beneath: torch (2.13) writes properties into the
    class of a parametrised layer, and takes its first base for the class without them.
    """
    below = edited_class(base.__bases__[0]) if _is_parametrised(base) else base
    for cls in (*filter(None, [_KEPT.get(base)]), *below.__subclasses__()):
        if vars(cls).get(_BASE) is base:
            return cls
    if below is not base:
        return type(base.__name__, (below,), {**_own(base), _BASE: base})

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as the layer's own
        """The layer's own output and what its edits add to it."""
        # Not `super()`: the class may be taken away while this runs.
        check_unstacked(self)
        outputs = base.forward(self, *args, **kwargs)
        for slot in getattr(self, _SLOTS, ()):
            inputs = args[0] if args else next(iter(kwargs.values()))
            if slot.context is None:
                outputs = edited(slot, inputs, outputs)
            else:
                outputs = placed(slot, slot.context, inputs, outputs)
        return outputs

    namespace = {"__module__": base.__module__, "__doc__": base.__doc__, "forward": forward}
    cls = type(f"Edited{base.__name__}", (EditedProjection, base), {**namespace, _BASE: base})
    if _importable(base):
        _KEPT[base] = cls
    return cls


def _bare_class(cls: type[nn.Module]) -> type[nn.Module]:
    """The class of a layer without edits; undoes `edited_class`, whatever was done to it since."""
    base: type[nn.Module] | None = vars(cls).get(_BASE)
    if not _is_parametrised(cls) or not issubclass(cls, EditedProjection):
        # Sharding after attaching derives a class from ours: then ours stays, with nothing to add.
        return base or cls
    if base is not None and _own(cls).keys() == _own(base).keys():
        return base
    below = _bare_class(cls.__bases__[0])
    return type(f"Parametrized{below.__name__}", (below,), _own(cls))


def _is_parametrised(cls: type[nn.Module]) -> bool:
    """Whether torch made the class for one layer, by `torch.nn.utils.parametrize`."""
    return cls.__name__.startswith("Parametrized") and not _importable(cls)


def _own(cls: type[nn.Module]) -> dict[str, Any]:
    made = ("__dict__", "__weakref__", "__doc__", "__slotnames__", _BASE)  # by Python itself
    return {name: value for name, value in vars(cls).items() if name not in made}


def _importable(cls: type[nn.Module]) -> bool:
    found: object = sys.modules.get(cls.__module__)
    for part in cls.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is cls


# -------------------------------------------------------------------------------------- the swap


def slots_of(module: nn.Module) -> tuple[Slot, ...]:
    """The edits on a layer, in the order in which they were installed."""
    return module._rankedit_slots if isinstance(module, EditedProjection) else ()


@standing_edits.register
def _(layer: nn.Module) -> Standing:
    parts = list(layer.modules())
    fused = (vars(part)[FUSED] for part in parts if FUSED in vars(part))
    return Standing(tuple(slot for part in parts for slot in slots_of(part)), tuple(fused))


def made(
    module: nn.Module,
    edit: Edit,
    layout: Geometry,
    rows: tuple[int, int],
    tensors: Mapping[str, Tensor],
    context: Context | None = None,
) -> Slot:
    """A slot for a layer.

    Args:
        module: the layer itself, without wrappers.
        edit: gives the arithmetic.
        layout: of the layer.
        rows: output rows that the edit adds to.
        tensors: what `edit.bind` gave, with the strength, on the layer's device.
        context: what the edit is told of each call, if it reads that.
    """
    learned = any(tensor.requires_grad for tensor in tensors.values())
    narrow = any(tensor.dtype != torch.float64 for tensor in tensors.values())
    joins = isinstance(edit, Factored) and gives_fresh_outputs(module)
    slot = Slot(Mark(), edit, layout, rows, dict(tensors), joins, learned=learned, narrow=narrow)
    return slot if context is None else replace(slot, context=context)


def gives_fresh_outputs(module: nn.Module) -> bool:
    """Whether the layer's own forward is torch's, which keeps no hold of its output."""
    classes = (vars(cls) for cls in type(module).__mro__ if _BASE not in vars(cls))
    return next(own["forward"] for own in classes if "forward" in own) is nn.Linear.forward


def install(module: nn.Module, slot: Slot) -> None:
    """Add an edit to a layer, or exchange the slot with its mark for this one."""
    with LOCK:
        present = slots_of(module)
        known = any(other.mark is slot.mark for other in present)
        new = tuple(slot if other.mark is slot.mark else other for other in present)
        _settle(module, new if known else (*present, slot))


def remove(module: nn.Module, mark: Mark) -> None:
    """Take an edit out of a layer, if it is there; after the last one the layer is what it was."""
    with LOCK:
        _settle(module, tuple(slot for slot in slots_of(module) if slot.mark is not mark))


def _settle(module: nn.Module, slots: tuple[Slot, ...]) -> None:
    """Publish slots. Every step may be repeated: after an interrupt, this puts all in order."""
    cls, present = type(module), isinstance(module, EditedProjection)
    if bool(slots) != present:
        cls = edited_class(cls) if slots else _bare_class(cls)
    bound = list(_bound_forwards(module))
    if slots:
        vars(module)[_SLOTS] = slots
    if type(module) is not cls:
        module.__class__ = cls
    for holder, name in bound:
        if vars(holder)[name].__func__ is not cls.forward:
            vars(holder)[name] = MethodType(cls.forward, module)
    if not slots:
        vars(module).pop(_SLOTS, None)
    if isinstance(module, Expert):
        module.stack.settle()


def _bound_forwards(module: nn.Module) -> Iterator[tuple[Any, str]]:
    """Where wrappers of `forward` keep the layer's own: they hold a method bound before the swap.

    accelerate keeps it as `_old_forward`, and leaves it as `forward` when its hooks are removed;
    diffusers keeps it in the references of its hook registry.
    """
    registry = getattr(module, "_diffusers_hook", None)
    references = [
        (ref, ("forward", "original_forward")) for ref in getattr(registry, "_fn_refs", ())
    ]
    own = {vars(cls)["forward"] for cls in type(module).__mro__ if "forward" in vars(cls)}
    known = _KEPT.get(type(module))  # where an interrupt came between the class and its methods
    own |= {vars(known)["forward"]} if known else set()
    for holder, names in [(module, ("forward", "_old_forward")), *references]:
        for name in names:
            method = vars(holder).get(name)
            bound = isinstance(method, MethodType) and method.__self__ is module
            if bound and method.__func__ in own:
                yield holder, name


def check_reachable(call: str, name: str, module: nn.Module) -> None:
    """Refuse a layer whose `forward` was replaced by something that would not reach the edit.

    Raises:
        AttachError: says what stands in the way.
    """
    replaced = vars(module).get("forward")
    if replaced is not None and not any(True for _ in _bound_forwards(module)):
        raise AttachError(
            f"{call}: {name!r} ({type(module).__name__}) has its forward replaced by {replaced!r}, "
            "which would ignore the edit; remove that replacement, attach, then put it back."
        )


@contextmanager
def suspended(module: nn.Module) -> Iterator[nn.Module]:
    """The layer without its edits, to be asked in the block: a stand-in where there can be one."""
    copy = stand_in(module, innermost(module))
    if copy is not module or not slots_of(module):
        vars(copy).pop(_SLOTS, None)
        yield copy
        return
    # diffusers' hooks know the layer itself; between their forwards nobody else can run it either.
    slots = slots_of(module)
    try:
        vars(module)[_SLOTS] = ()
        yield module
    finally:
        vars(module)[_SLOTS] = slots
