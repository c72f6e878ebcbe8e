"""How an edit sits in a layer: the layer's class becomes a subclass of itself.

The names, parameters, hooks and `isinstance` of the layer stay what they were. Everything that
calls its `forward` (compiled code, offloading, checkpointing, sharding, a LoRA around it) reaches
the edit without knowing of it. What an edit needs at run time are non-persistent buffers: they
move with the model, and `state_dict` does not see them.

    invariant    y = base.forward(x) + Σ_slots strength · added(x)
    buffers      rankedit_<slot>_<name>, rankedit_<slot>_strength (0-dim)
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import MethodType
from typing import Any, SupportsIndex

import torch
from torch import Tensor, nn

from rankedit.edits import Edit, Factored
from rankedit.errors import AttachError
from rankedit.models.geometry import Geometry

STRENGTH = "strength"

_CLASSES: dict[type[nn.Module], type[nn.Module]] = {}


@dataclass(frozen=True, eq=False)
class Slot:
    """One edit on one layer.

    Attributes:
        number: distinguishes the slots of a layer; part of the buffers' names.
        edit: gives the arithmetic; its tensors are never read at run time.
        layout: where the vectors lie in what the layer reads.
        rows: first and one past the last output row that the edit adds to.
        buffers: the layer's buffer for each of the edit's tensors and for the strength, by name.
        joins: whether the edit's products may be summed into what the layer's own forward gives.
    """

    number: int
    edit: Edit
    layout: Geometry
    rows: tuple[int, int]
    buffers: Mapping[str, str]
    joins: bool

    def __deepcopy__(self, memo: dict[int, Any]) -> Slot:
        """The slot itself: it is immutable, and the copied layer has buffers of its own.

        But for an edit that says itself how it is copied.
        """
        if not hasattr(type(self.edit), "__deepcopy__"):
            return self
        return replace(self, edit=copy.deepcopy(self.edit, memo))


class EditedProjection(nn.Module):
    """What `edited_class` puts before a layer's own class."""

    _rankedit_slots: tuple[Slot, ...]

    def forward(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as the layer's own
        """The layer's own output and what its edits add to it."""
        outputs = super().forward(*args, **kwargs)
        for slot in self._rankedit_slots:
            inputs = args[0] if args else next(iter(kwargs.values()))
            outputs = self._edited(slot, inputs, outputs)
        return outputs

    def _edited(self, slot: Slot, inputs: Tensor, outputs: Tensor) -> Tensor:
        # Read directly: `get_buffer` and attribute access cost more than a small edit itself.
        own: Any = self._buffers
        tensors: dict[str, Tensor] = {name: own[buffer] for name, buffer in slot.buffers.items()}
        # The buffers are beside the weights except under offloading schemes that list a layer's
        # tensors when they are set up; there they follow the input.
        if tensors[STRENGTH].device != inputs.device:
            tensors = {name: tensor.to(inputs.device) for name, tensor in tensors.items()}
        if slot.joins and outputs.dtype == torch.float32 and type(outputs) is Tensor:
            return _joined(slot, inputs, outputs, tensors)
        added = slot.edit.added(slot.layout.to_rows(inputs), tensors)
        start, stop = slot.rows
        width = slot.layout.out_features
        if stop - start != width:
            added = nn.functional.pad(added, (start, width - stop))
        added = slot.layout.from_rows(added)
        if added.dtype == outputs.dtype:
            return torch.addcmul(outputs, added, tensors[STRENGTH])  # one pass over the output
        return outputs + (tensors[STRENGTH] * added).to(outputs.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> EditedProjection:  # noqa: FBT001, FBT002
        # Edits compute in float32 whatever the model computes in, so that `model.half()` moves and
        # casts the layer but only moves the edits.
        names = [name for slot in self._rankedit_slots for name in slot.buffers.values()]
        held = {name: self.get_buffer(name) for name in names}
        for name in names:
            del self._buffers[name]
        try:
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
            held = {name: _moved(tensor, fn) for name, tensor in held.items()}
        finally:
            self._buffers.update(held)
        return self

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[Any, ...]:
        # A dynamic class cannot be found by name; its base can.
        return _rebuild, (_base_of(type(self)),), self.__dict__


def _joined(slot: Slot, inputs: Tensor, outputs: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
    """A plain linear layer's float32 output with the products of an edit summed into it, in place.

    To write what is added and read it again takes longer than to compute it, at small ranks.
    Nothing else holds that output yet; where gradients are recorded, a copy spares autograd views.
    """
    flat = outputs.reshape(-1, outputs.shape[-1])
    if torch.is_grad_enabled():
        flat = flat.clone()
    start, stop = slot.rows
    part = flat[:, start:stop] if stop - start < flat.shape[1] else flat
    edit: Any = slot.edit
    for coefficients, rows in edit.terms(inputs.reshape(-1, inputs.shape[-1]), tensors):
        part.addmm_(coefficients * tensors[STRENGTH], rows)
    return flat.view(outputs.shape)


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


def edited_class(base: type[nn.Module]) -> type[nn.Module]:
    """The subclass of `base` whose instances add their edits; one for each base."""
    if base in _CLASSES:
        return _CLASSES[base]
    namespace = {"__module__": base.__module__, "__doc__": base.__doc__}
    _CLASSES[base] = type(f"Edited{base.__name__}", (EditedProjection, base), namespace)
    return _CLASSES[base]


def _base_of(cls: type[nn.Module]) -> type[nn.Module]:
    return next(base for base in cls.__bases__ if base is not EditedProjection)


# -------------------------------------------------------------------------------------- the swap


def slots_of(module: nn.Module) -> tuple[Slot, ...]:
    """The edits on a layer, in the order in which they were installed."""
    return module._rankedit_slots if isinstance(module, EditedProjection) else ()


def install(
    module: nn.Module,
    edit: Edit,
    layout: Geometry,
    rows: tuple[int, int],
    tensors: Mapping[str, Tensor],
) -> Slot:
    """Add an edit to a layer; the layer is as before if anything fails.

    Args:
        module: the layer itself, without wrappers.
        edit: gives the arithmetic.
        layout: of the layer.
        rows: output rows that the edit adds to.
        tensors: what `edit.bind` gave, with the strength, on the layer's device.
    """
    present = slots_of(module)
    number = 1 + max((slot.number for slot in present), default=-1)
    buffers = {name: f"rankedit_{number}_{name}" for name in tensors}
    joins = isinstance(edit, Factored) and _gives_fresh_outputs(module)
    slot = Slot(number, edit, layout, rows, buffers, joins)
    try:
        for name, tensor in tensors.items():
            module.register_buffer(buffers[name], tensor, persistent=False)
        _set_slots(module, (*present, slot))
    except BaseException:
        remove(module, slot)
        raise
    return slot


def _gives_fresh_outputs(module: nn.Module) -> bool:
    """Whether the layer's own forward is torch's, which keeps no hold of its output."""
    classes = (cls for cls in type(module).__mro__ if cls is not EditedProjection)
    own = next(vars(cls)["forward"] for cls in classes if "forward" in vars(cls))
    return own is nn.Linear.forward


def remove(module: nn.Module, slot: Slot) -> None:
    """Take one edit out of a layer; after the last one the layer is what it was, class and all."""
    for name in slot.buffers.values():
        module._buffers.pop(name, None)
        module._non_persistent_buffers_set.discard(name)
    _set_slots(module, tuple(other for other in slots_of(module) if other is not slot))


def _set_slots(module: nn.Module, slots: tuple[Slot, ...]) -> None:
    if slots and not isinstance(module, EditedProjection):
        _swap(module, edited_class(type(module)))
    # Sharding after attaching derives a class from ours: then ours stays, with nothing to add.
    if not slots and EditedProjection in type(module).__bases__:
        _swap(module, _base_of(type(module)))
    if isinstance(module, EditedProjection):
        module._rankedit_slots = slots
    else:
        module.__dict__.pop("_rankedit_slots", None)


def _swap(module: nn.Module, cls: type[nn.Module]) -> None:
    bound = list(_bound_forwards(module))
    module.__class__ = cls
    for holder, name in bound:
        holder.__dict__[name] = MethodType(cls.forward, module)


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
def suspended(module: nn.Module) -> Iterator[None]:
    """The bare layer, without its edits, for the length of the block."""
    slots = slots_of(module)
    if not isinstance(module, EditedProjection):
        yield
        return
    try:
        module._rankedit_slots = ()
        yield
    finally:
        module._rankedit_slots = slots


def scalar(value: float, device: torch.device) -> Tensor:
    """A 0-dim float32 tensor: changing it in place recompiles nothing, unlike a Python float."""
    with torch.inference_mode(mode=False):
        return torch.full((), value, dtype=torch.float32, device=device)
