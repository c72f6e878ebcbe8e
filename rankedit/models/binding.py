"""The tensors of an attached edit: made by binding it to a layer, changed in place ever after."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor, nn

from rankedit import gates
from rankedit.edits import Edit
from rankedit.errors import AttachError, ShapeError
from rankedit.gated import GatedEdit
from rankedit.models.geometry import device_of
from rankedit.models.swapping import STRENGTH, Slot, suspended
from rankedit.models.targets import Target, gathered
from rankedit.shapes import Keys, Values, check_finite, describe


@dataclass(frozen=True, eq=False)
class Installed:
    """One edit in one layer.

    Attributes:
        target: where it is.
        slot: what is there.
    """

    target: Target
    slot: Slot

    @property
    def layer(self) -> nn.Module:
        """The edited layer, without wrappers."""
        return self.target.layer

    def tensor(self, name: str) -> Tensor:
        """The buffer that holds one of the edit's tensors, or its strength."""
        return self.layer.get_buffer(self.slot.buffers[name])


def bound_tensors(call: str, target: Target, edit: Edit) -> dict[str, Tensor]:
    """The edit's tensors on the layer's device, bound to the bare layer."""

    def outputs(keys: Keys) -> Values:
        with gathered(target), suspended(target.layer):
            return target.view.outputs(keys)

    device = device_of(target.layer)
    tensors = edit.bind(outputs)
    _check_learned(call, edit, tensors)
    wrong = [name for name in tensors if not name.isidentifier() or name == STRENGTH]
    if wrong:
        raise AttachError(
            f"{call}: {type(edit).__name__}.bind names a tensor {wrong[0]!r}; expected identifiers "
            f"other than {STRENGTH!r}, which every attached edit has."
        )
    return {name: _placed(call, name, tensor, device) for name, tensor in tensors.items()}


def _check_learned(call: str, edit: Edit, tensors: Mapping[str, Tensor]) -> None:
    """Refuse learned tensors that `bind` cast: the copy never sees what the optimiser does.

    Keys and images may well be learned, by attaching anew for each step: what is bound is computed
    from them. Only a dtype shows that a copy was not meant.
    """
    own: list[object] = [edit, *([edit.gate] if isinstance(edit, GatedEdit) else [])]
    for name, tensor in (pair for part in own for pair in getattr(part, "__dict__", {}).items()):
        if not isinstance(tensor, Tensor) or not (tensor.requires_grad and tensor.is_leaf):
            continue
        if tensor.dtype != torch.float32 and all(tensor is not given for given in tensors.values()):
            raise AttachError(
                f"{call}: {name!r} requires gradients and must be float32, in which edits compute, "
                f"got {tensor.dtype}: the layer would keep a copy of it and learn nothing; make it "
                "float32."
            )


def _placed(call: str, name: str, tensor: Tensor, device: torch.device) -> Tensor:
    if not tensor.requires_grad:
        with torch.inference_mode(mode=False):
            return tensor.detach().to(device, copy=True)
    # A copy would keep its old value while the optimiser changes the original.
    if tensor.device != device:
        raise AttachError(
            f"{call}: {name!r} requires gradients and must be on the layer's device {device} to "
            f"receive them, got {tensor.device}; create it there."
        )
    return tensor


def changes_of(
    items: Sequence[Installed], settings: Mapping[str, float | Tensor]
) -> list[tuple[Tensor, Tensor]]:
    """Buffers to change and their new values, for settings of several edits.

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
    changes: list[tuple[Tensor, Tensor]] = []
    for item in items:
        own = {STRENGTH, *item.slot.edit.settings()}
        values = {
            name: _fitting(item, name, value) for name, value in settings.items() if name in own
        }
        _check_gate(item, values)
        changes += [(item.tensor(name), value) for name, value in values.items()]
    return changes


def _fitting(item: Installed, name: str, value: float | Tensor) -> Tensor:
    present = item.tensor(name)
    tensor = torch.as_tensor(value, dtype=present.dtype, device=present.device).detach()
    if tensor.ndim and tensor.shape != present.shape:
        shape = f" or of shape {list(present.shape)}" if present.ndim else ""
        raise ShapeError(
            f"Attachment.set: {name!r} of {item.target.name!r} must be a number{shape}, got "
            f"{describe(value)}; to give each key its own, make the edit with one for each key."
        )
    return tensor


def _check_gate(item: Installed, values: Mapping[str, Tensor]) -> None:
    """Let the gate refuse parameters that it cannot work with, all of them as they will be."""
    edit = item.slot.edit
    if not isinstance(edit, GatedEdit):
        return
    names = [field.name for field in fields(edit.gate)]
    if values.keys().isdisjoint(names):
        return
    parameters = {name: values.get(name, item.tensor(name)).detach().cpu() for name in names}
    gate = replace(edit.gate, **parameters)
    if edit.normalised:
        gates.check_normalisable(gate)


def exchange(item: Installed, edit: Edit) -> list[tuple[Tensor, Tensor]]:
    """Buffers of an attached edit and what a new edit puts there.

    Raises:
        AttachError: the new edit is of another kind or size, or has tensors to be learned.
    """
    call, name = "Attachment.refresh", item.target.name
    forms = _form(item.slot.edit), _form(edit)
    if type(edit) is type(item.slot.edit) and forms[0] != forms[1]:
        raise AttachError(
            f"{call}: the new edit of {name!r} must be of the form {forms[0]}, which the layer "
            f"goes on computing, got {forms[1]}; detach and attach anew."
        )
    old = {key: item.tensor(key) for key in item.slot.buffers if key != STRENGTH}
    new = bound_tensors(call, item.target, edit) if type(edit) is type(item.slot.edit) else {}
    shapes = [{key: list(tensor.shape) for key, tensor in part.items()} for part in (old, new)]
    if shapes[0] != shapes[1] or edit.settings() != item.slot.edit.settings():
        raise AttachError(
            f"{call}: the new edit of {name!r} must be a {type(item.slot.edit).__name__} with "
            f"tensors of shapes {shapes[0]}, got a {type(edit).__name__} with {shapes[1]}; detach "
            "and attach anew."
        )
    learned = [key for key in new if new[key].requires_grad and new[key] is not old[key]]
    if learned:
        raise AttachError(
            f"{call}: {learned[0]!r} of {name!r} requires gradients, which a copy would not pass "
            "on; detach and attach to learn it."
        )
    return [(old[key], new[key]) for key in old]


def _form(edit: Edit) -> str:
    """What of an edit's arithmetic is not in its tensors."""
    if not isinstance(edit, GatedEdit):
        return type(edit).__name__
    kind = type(edit.gate)
    floor = "without" if edit.floor is None else "with"
    return f"{kind.__module__}.{kind.__qualname__}, normalised={edit.normalised}, {floor} a floor"


def write(changes: Sequence[tuple[Tensor, Tensor]]) -> None:
    """All checks are done: copy values into the buffers that the layers read."""
    with torch.inference_mode(mode=False), torch.no_grad():
        for present, value in changes:
            present.copy_(value)


def check_number(call: str, name: str, value: float | Tensor) -> None:
    """Refuse what is not a finite number, or a tensor of finite numbers.

    Raises:
        AttachError: not a number, or not finite.
        ShapeError: a tensor with NaN or infinity.
    """
    if isinstance(value, Tensor):
        check_finite(call, name, value)
    elif not isinstance(value, (int, float)) or not math.isfinite(value):
        raise AttachError(f"{call}: {name} must be a finite number, got {value!r}.")
