"""The tensors of an attached edit: made by binding it, exchanged when settings change."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor, nn

from rankedit import gates
from rankedit.errors import AttachError, ShapeError
from rankedit.gated import GatedEdit
from rankedit.inference import ordinary
from rankedit.models.geometry import device_of, weight_dtype
from rankedit.models.slots import STRENGTH, Mark, Slot, check_held
from rankedit.models.swapping import slots_of, suspended
from rankedit.models.targets import Target, gathered
from rankedit.protocol import Edit
from rankedit.shapes import Keys, Values, check_finite, describe


@dataclass(frozen=True, eq=False)
class Installed:
    """One edit in one layer.

    Attributes:
        target: where it is.
        mark: which of the layer's edits it is.
    """

    target: Target
    mark: Mark

    @property
    def layer(self) -> nn.Module:
        """The edited layer, without wrappers."""
        return self.target.layer

    @property
    def slot(self) -> Slot:
        """What is in the layer.

        Raises:
            AttachError: nothing is there any more.
        """
        found = next((slot for slot in slots_of(self.layer) if slot.mark is self.mark), None)
        if found is None:
            raise AttachError(
                f"Attachment: the edit of {self.target.name!r} was taken out by somebody else "
                "(detach_all); attach it anew."
            )
        return found

    def tensor(self, name: str) -> Tensor:
        """One of the edit's tensors, or its strength."""
        return self.slot.tensors[name]


@dataclass(frozen=True)
class _Outputs:
    """What the bare layer gives for keys; see `rankedit.edits.precision`."""

    target: Target
    dtype: torch.dtype

    def __call__(self, keys: Keys) -> Values:
        with gathered(self.target), suspended(self.target.layer) as bare:
            view = copy.copy(self.target.view)  # with its layout, which takes runs to find
            object.__setattr__(view, "module", bare)
            return view.outputs(keys)


def bound_tensors(
    call: str, target: Target, edit: Edit, strength: float = 1.0
) -> dict[str, Tensor]:
    """The edit's tensors and its strength on the layer's device, bound to the bare layer."""
    check_number(call, STRENGTH, strength)
    if isinstance(strength, Tensor) and strength.ndim:
        raise AttachError(
            f"{call}: {STRENGTH} must be one number, got {describe(strength)}; give each row of a "
            "batch its own afterwards, with Attachment.set."
        )
    device = device_of(target.layer)
    # At least the precision of what the layer reads; half precision would ruin similarities.
    double = weight_dtype(target.layer) == torch.float64
    dtype = torch.float64 if double else torch.float32
    try:
        tensors = edit.bind(_Outputs(target, dtype))
    except ShapeError as error:
        raise AttachError(f"{call}: the layer computes in {dtype}: {error}") from error
    _check_learned(call, edit, tensors, dtype)
    wrong = [name for name in tensors if not name.isidentifier() or name == STRENGTH]
    if wrong:
        raise AttachError(
            f"{call}: {type(edit).__name__}.bind names a tensor {wrong[0]!r}; expected identifiers "
            f"other than {STRENGTH!r}, which every attached edit has."
        )
    placed = {name: _placed(call, name, t, device, dtype) for name, t in tensors.items()}
    check_held(call, placed, tensors, dtype)
    with ordinary():
        placed[STRENGTH] = torch.full((), strength, dtype=dtype, device=device)
    return placed


def _check_learned(
    call: str, edit: Edit, tensors: Mapping[str, Tensor], wanted: torch.dtype
) -> None:
    """Refuse learned tensors that `bind` cast: the copy never sees what the optimiser does.

    Keys and images may well be learned, by attaching anew for each step: what is bound is computed
    from them. Only a dtype shows that a copy was not meant.
    """
    fitting = (torch.float32, wanted)
    own: list[object] = [edit, *([edit.gate] if isinstance(edit, GatedEdit) else [])]
    parts = [getattr(part, "__dict__", {}) for part in own]
    for name, tensor in (pair for part in (*parts, tensors) for pair in part.items()):
        if not isinstance(tensor, Tensor) or not (tensor.requires_grad and tensor.is_leaf):
            continue
        if tensor.dtype not in fitting:
            raise AttachError(
                f"{call}: {name!r} requires gradients and must be float32, in which edits compute, "
                f"got {tensor.dtype}: the layer would keep a copy of it and learn nothing; make it "
                "float32."
            )


def _placed(
    call: str, name: str, tensor: Tensor, device: torch.device, dtype: torch.dtype
) -> Tensor:
    wanted = dtype if tensor.is_floating_point() else tensor.dtype
    if not tensor.requires_grad:
        with ordinary():
            # One layout: compiled code (torch 2.13) sees the stride of a single number too.
            one = torch.contiguous_format
            return tensor.detach().to(device, wanted, copy=True, memory_format=one)
    # A copy would keep its old value while the optimiser changes the original.
    if tensor.device != device:
        raise AttachError(
            f"{call}: {name!r} requires gradients and must be on the layer's device {device} to "
            f"receive them, got {tensor.device}; create it there."
        )
    return tensor if tensor.is_leaf else tensor.to(wanted)


def changes_of(
    items: Sequence[Installed], settings: Mapping[str, float | Tensor]
) -> list[tuple[Installed, Slot]]:
    """The slots of several edits with other settings.

    Raises:
        AttachError: no edit has the setting, or the value is not a number.
        ShapeError: a value does not fit its setting, or the gate refuses them together.
    """
    known = {STRENGTH}.union(*(item.slot.edit.settings() for item in items))
    for name, value in settings.items():
        if name not in known:
            raise AttachError(
                f"Attachment.set: no edit has the setting {name!r}; known are {sorted(known)}."
            )
        check_number("Attachment.set", name, value)
    changes = []
    for item in items:
        slot = item.slot
        own = {STRENGTH, *slot.edit.settings()}
        values = {
            name: _fitting(item, slot, name, value)
            for name, value in settings.items()
            if name in own
        }
        _check_gate(slot, values)
        by_row = {name for name, tensor in values.items() if tensor.ndim == 2}
        changes.append((item, _succeeding(slot, values, by_row | slot.by_row.keys() - values)))
    return changes


def _fitting(item: Installed, slot: Slot, name: str, value: float | Tensor) -> Tensor:
    """A setting as the layer keeps it: a number, `[n]` for n keys, or `[batch, 1 or n]`."""
    present = slot.tensors[name]
    tensor = torch.as_tensor(value, dtype=present.dtype, device=present.device).detach()
    check_finite("Attachment.set", name, tensor)  # a wider number may be infinite in this dtype
    own = slot.by_row.get(name, present.shape)
    if tensor.ndim == 0 or tensor.shape == own:
        return tensor.expand(own)
    rows = tensor[:, None] if tensor.ndim == 1 and own.numel() == 1 else tensor
    fits = rows.ndim == 2 and rows.shape[1] in (1, *own) and not present.requires_grad
    # `[n]` might be meant for the n keys of an edit, whose number is that of what they read.
    count = len(slot.tensors.get("read", ()))
    if not fits or (tensor.ndim == 1 and name != STRENGTH and len(tensor) == count > 1):
        shape = f" or of shape {list(own)}" if own else ""
        raise ShapeError(
            f"Attachment.set: {name!r} of {item.target.name!r} must be a number{shape}, or one for "
            f"each row of a batch, [batch] or [batch, {own[0] if own else 1}], got "
            f"{describe(value)}; to give each key its own, make the edit with one for each key."
        )
    return rows.expand(-1, *own) if own else rows


def _succeeding(slot: Slot, values: Mapping[str, Tensor], by_row: Iterable[str]) -> Slot:
    """The slot with other tensors in the place of some."""
    new = {name: succeeded(slot.tensors[name], value) for name, value in values.items()}
    own = {name: slot.by_row.get(name, slot.tensors[name].shape) for name in sorted(by_row)}
    return replace(slot, tensors={**slot.tensors, **new}, by_row=own)


def succeeded(present: Tensor, value: Tensor) -> Tensor:
    """A tensor for forwards to come. One that an optimiser holds is changed in place.

    It counts versions on from the one before, as if that had been changed: edits that remember what
    they computed (those of a picture's many steps) tell settings by their versions.
    """
    with ordinary(), torch.no_grad():
        if present.requires_grad:
            return present.copy_(value)
        new = value.detach().to(present, copy=True, memory_format=torch.contiguous_format)
        torch._C._autograd._unsafe_set_version_counter((new,), (present._version + 1,))
        return new


def _check_gate(slot: Slot, values: Mapping[str, Tensor]) -> None:
    """Let the gate refuse parameters that it cannot work with, all of them as they will be."""
    edit = slot.edit
    if not isinstance(edit, GatedEdit):
        return
    names = [field.name for field in fields(edit.gate)]
    if values.keys().isdisjoint(names):
        return
    found = [values.get(name, slot.tensors[name]).detach().cpu() for name in names]
    if any(tensor.ndim == 2 for tensor in found):  # to a gate, each row is one more key
        found = [tensor.flatten() for tensor in torch.broadcast_tensors(*found)]
    gate = replace(edit.gate, **dict(zip(names, found, strict=True)))
    if edit.normalised:
        gates.check_normalisable(gate)


def exchange(item: Installed, edit: Edit) -> Slot:
    """The slot of an attached edit with the tensors of a new one.

    Raises:
        AttachError: the new edit is of another kind or size, or has tensors to be learned.
    """
    call, name, slot = "Attachment.refresh", item.target.name, item.slot
    forms = _form(slot.edit), _form(edit)
    if type(edit) is type(slot.edit) and forms[0] != forms[1]:
        raise AttachError(
            f"{call}: the new edit of {name!r} must be of the form {forms[0]}, which the layer "
            f"goes on computing, got {forms[1]}; detach and attach anew."
        )
    old = {key: tensor for key, tensor in slot.tensors.items() if key != STRENGTH}
    new = bound_tensors(call, item.target, edit) if type(edit) is type(slot.edit) else {}
    new.pop(STRENGTH, None)
    shapes = [
        {k: [] if k in slot.by_row else list(t.shape) for k, t in part.items()}
        for part in (old, new)
    ]
    if shapes[0] != shapes[1] or edit.settings() != slot.edit.settings():
        raise AttachError(
            f"{call}: the new edit of {name!r} must be a {type(slot.edit).__name__} with "
            f"tensors of shapes {shapes[0]}, got a {type(edit).__name__} with {shapes[1]}; detach "
            "and attach anew."
        )
    learned = [key for key in new if new[key].requires_grad and new[key] is not old[key]]
    if learned:
        raise AttachError(
            f"{call}: {learned[0]!r} of {name!r} requires gradients, which a copy would not pass "
            "on; detach and attach to learn it."
        )
    changed = {key: tensor for key, tensor in new.items() if tensor is not old[key]}
    return _succeeding(slot, changed, slot.by_row.keys() & {STRENGTH})


def _form(edit: Edit) -> str:
    """What of an edit's arithmetic is not in its tensors."""
    if not isinstance(edit, GatedEdit):
        return type(edit).__name__ + getattr(edit, "form", "")
    kind = type(edit.gate)
    floor = "without" if edit.floor is None else "with"
    return f"{kind.__module__}.{kind.__qualname__}, normalised={edit.normalised}, {floor} a floor"


def check_number(call: str, name: str, value: float | Tensor) -> None:
    """Refuse what is not a finite number, or a tensor of finite numbers.

    Raises:
        AttachError: not a number, or not finite.
        ShapeError: a tensor with NaN or infinity.
    """
    if isinstance(value, Tensor):
        check_finite(call, name, value)
    # Every layer's precision holds what float32 does.
    elif not isinstance(value, (int, float)) or not abs(value) <= torch.finfo(torch.float32).max:
        raise AttachError(
            f"{call}: {name} must be a finite number, got {value!r}, which is none in float32."
        )
