"""What the edits of a layer add to its output, while it runs.

All of this is done in every call of an edited layer, of one token as of thousands: nothing here
makes, copies or asks a tensor for what could have been there before.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from rankedit.errors import AttachError, ShapeError
from rankedit.models.slots import STRENGTH, Slot
from rankedit.models.telling import Context
from rankedit.placed import ROWS


def edited(slot: Slot, inputs: Tensor, outputs: Tensor) -> Tensor:
    """A layer's output with what the edit adds to it."""
    slot.mark.reached = True
    if not _is_ready(slot, inputs, outputs):
        return _added(slot, inputs, outputs)
    if slot.constant is None or inputs.dtype != outputs.dtype or _recording():
        return _joined(slot, inputs, outputs)
    # Two products and two views, which is all that one token has time for.
    down, rows = slot.constant
    read = inputs if inputs.ndim == 2 else inputs.reshape(-1, down.shape[1])
    outputs.view(-1, rows.shape[1]).addmm_(linear(read, down), rows)
    return outputs


def _is_ready(slot: Slot, inputs: Tensor, outputs: Tensor) -> bool:
    """Whether there is nothing to do but products of what lies beside the inputs already."""
    if slot.ready is None or not slot.joins or slot.by_row or type(inputs) is not Tensor:
        return False
    strength = slot.ready[STRENGTH]
    plain = type(outputs) is Tensor and outputs.dtype == strength.dtype
    return plain and strength.device == inputs.device and outputs.is_contiguous()


def _added(slot: Slot, inputs: Tensor, outputs: Tensor) -> Tensor:
    """The output with what any edit adds, wherever its tensors are and whatever they hold."""
    tensors = slot.tensors
    strength = tensors[STRENGTH]
    if slot.learned:
        _check_reduced(tensors)
    dtype = outputs.dtype
    wide = slot.narrow and dtype == torch.float64
    if wide or strength.device != inputs.device or type(inputs) is not Tensor:
        tensors = {name: _beside(inputs, tensor) for name, tensor in tensors.items()}
        strength = tensors[STRENGTH]
    plain = slot.joins and not slot.by_row and type(outputs) is Tensor
    if plain and dtype == strength.dtype and outputs.is_contiguous():
        return _joined(slot, inputs, outputs, tensors, strength)
    rows = slot.layout.to_rows(inputs)
    if slot.by_row:
        tensors = _aligned(slot, rows, tensors)
        strength = tensors[STRENGTH]
    added = slot.edit.added(rows, tensors)
    start, stop = slot.rows
    width = slot.layout.out_features
    if stop - start != width:
        added = nn.functional.pad(added, (start, width - stop))
    if strength.ndim:
        added, strength = added * strength, strength.new_ones(())
    added = slot.layout.from_rows(added)
    if added.dtype == dtype:
        return torch.addcmul(outputs, added, strength)  # one pass over the output
    return outputs + (strength * added).to(dtype)


def placed(slot: Slot, context: Context, inputs: Tensor, outputs: Tensor) -> Tensor:
    """A layer's output with what an edit adds to those rows of the sequence that it was told of."""
    slot.mark.reached = True
    edit: Any = slot.edit
    told = context.of_call(edit, inputs)
    if told is None:
        return outputs
    if slot.learned:
        _check_reduced(slot.tensors)
    count, length = told[ROWS].shape[1], inputs.shape[1]
    begin = length - count if edit.last else 0
    read = inputs[:, begin : begin + count]
    tensors = {**(slot.tensors if slot.ready is None or slot.by_row else slot.ready), **told}
    plain = type(inputs) is Tensor and inputs.dtype != torch.float64
    if not plain or any(tensor.device != inputs.device for tensor in tensors.values()):
        tensors = {name: _beside(inputs, tensor) for name, tensor in tensors.items()}
    if slot.by_row:
        tensors = _aligned(slot, read, tensors)
    added = edit.added(read, tensors)
    if slot.ready is None or slot.by_row:
        added = added * tensors[STRENGTH]
    # Nobody else holds what torch's own layers give; gradients need what was there.
    whole = outputs if slot.joins and not _recording() else outputs.clone()
    start, stop = slot.rows
    whole[:, begin : begin + count, start:stop].add_(added.to(outputs.dtype))
    return whole


def _recording() -> bool:
    # The compiler knows this question, and not the one of torch._C (torch 2.13).
    return torch.is_grad_enabled() or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]


def _beside(inputs: Tensor, tensor: Tensor) -> Tensor:
    """A tensor of an edit where, and as wide as, the inputs are.

    It is there already, but under offloading schemes, in models that were cast to float64 after
    attaching, and in tensor parallelism, where inputs are replicated over a mesh of devices.
    """
    if tensor.is_meta and not inputs.is_meta:
        raise AttachError(
            "attach: the layer runs with its weight in another's place (torch.func), and its edits "
            "are on the meta device: they are no part of a model's parameters. Run it without "
            "edits, with static ones put into the weights by fuse_ before they are taken from it."
        )
    wide = tensor.is_floating_point() and inputs.dtype == torch.float64
    placed = tensor.to(inputs.device, torch.float64 if wide else tensor.dtype)
    sharded: Any = sys.modules.get("torch.distributed.tensor")
    if sharded is None or not isinstance(inputs, sharded.DTensor):
        return placed
    mesh: Any = inputs.device_mesh
    found: Tensor = sharded.DTensor.from_local(
        placed, mesh, [sharded.Replicate()] * mesh.ndim, run_check=False
    )
    return found


def _joined(
    slot: Slot,
    inputs: Tensor,
    outputs: Tensor,
    tensors: Mapping[str, Tensor] | None = None,
    strength: Tensor | None = None,
) -> Tensor:
    """A plain linear layer's output with the products of an edit summed into it, in place.

    To write what is added and read it again takes longer than to compute it, at small ranks.
    Nothing else holds that output yet; where gradients are recorded, a copy spares autograd views.
    A trace is checked by another one without gradients, which must have the same operations.
    """
    edit: Any = slot.edit
    tensors = slot.ready if tensors is None else tensors
    start, stop = slot.rows
    width = slot.layout.out_features
    # Looks at tensors in other shapes: each costs two hundredths of what one token does.
    read = inputs if inputs.ndim == 2 else inputs.reshape(-1, slot.layout.in_features)
    copied = _recording()
    flat = outputs.reshape(-1, width).clone() if copied else outputs.view(-1, width)
    part = flat if stop - start == width else flat[:, start:stop]
    for coefficients, rows in edit.terms(read, tensors):
        part.addmm_(coefficients if strength is None else coefficients * strength, rows)
    return flat.view_as(outputs) if copied else outputs


def _aligned(slot: Slot, rows: Tensor, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, settings `[batch, 1 or n]` placed along the first axis of the inputs.

    An edit that knows how batches are put together has a method `rows_for(setting, count)`, which
    gives the setting's rows for a batch of that size.
    """
    aligned, spread = dict(tensors), getattr(slot.edit, "rows_for", None)
    for name in slot.by_row:
        table = tensors[name] if spread is None else spread(tensors[name], rows.shape[0])
        batch, last = table.shape
        if rows.ndim < 2 or rows.shape[0] != batch:
            raise ShapeError(
                f"Attachment.set: {name!r} was given {batch} numbers, one for each row of a batch, "
                f"but the layer reads {list(rows.shape)}: expected [{batch}, ..., in]. Pipelines "
                "with guidance run the batch twice, unguided rows first: give a number for each."
            )
        aligned[name] = table.reshape(batch, *(1 for _ in rows.shape[2:]), last)
    return aligned


def _check_reduced(tensors: Mapping[str, Tensor]) -> None:
    """Refuse to learn under DistributedDataParallel what it does not average over processes."""
    wrapper = nn.parallel.DistributedDataParallel._active_ddp_module
    if wrapper is None or not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return
    known = {id(tensor) for tensor in wrapper.parameters()}
    for name, tensor in tensors.items():
        if tensor.requires_grad and id(tensor) not in known:
            raise AttachError(
                f"attach: {name!r} is learned, but is no parameter of the model that "
                "DistributedDataParallel wraps, so that each process would learn its own. Register "
                "it with the model before wrapping it (model.register_parameter); what is computed "
                "from learned keys cannot be: wrap no model, and average the keys' gradient with "
                "torch.distributed.all_reduce."
            )
