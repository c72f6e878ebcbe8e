"""One edit in one layer, and what it does to the layer's output."""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from rankedit.errors import AttachError, ShapeError
from rankedit.models.geometry import Geometry
from rankedit.models.telling import Context
from rankedit.placed import ROWS
from rankedit.protocol import Edit

STRENGTH = "strength"


class Mark:
    """Tells one attached edit from others; forwards note in it that they reached the edit.

    They write it and never read it, so that compiled code does not depend on it.
    """

    reached = False


@dataclass(frozen=True, eq=False)
class Slot:
    """One edit on one layer.

    Attributes:
        mark: whose slot it is, whatever its tensors are.
        edit: gives the arithmetic; its tensors are never read at run time.
        layout: where the vectors lie in what the layer reads.
        rows: first and one past the last output row that the edit adds to.
        tensors: the edit's tensors and the strength, by name.
        joins: whether the edit's products may be summed into what the layer's own forward gives.
        by_row: of the tensors that have one row for each entry of a batch, the shapes without.
        learned: whether any of the tensors requires gradients.
        narrow: whether any of the tensors is not float64.
        context: what an edit that reads something of each call is told; None for all others.
    """

    mark: Mark
    edit: Edit
    layout: Geometry
    rows: tuple[int, int]
    tensors: Mapping[str, Tensor]
    joins: bool
    by_row: Mapping[str, torch.Size] = field(default_factory=dict)
    learned: bool = False
    narrow: bool = True
    context: Context | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Slot:
        """With tensors of its own. The edit is immutable, but for one that says how to copy it."""
        copied = hasattr(type(self.edit), "__deepcopy__")
        return replace(
            self,
            mark=copy.deepcopy(self.mark, memo),
            edit=copy.deepcopy(self.edit, memo) if copied else self.edit,
            tensors=copy.deepcopy(self.tensors, memo),
            context=copy.deepcopy(self.context, memo),
        )


def edited(slot: Slot, inputs: Tensor, outputs: Tensor) -> Tensor:
    """A layer's output with what the edit adds to it."""
    slot.mark.reached = True
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
    if plain and dtype == strength.dtype:
        return _joined(slot, inputs, outputs, tensors)
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
    if added.dtype == outputs.dtype:
        return torch.addcmul(outputs, added, strength)  # one pass over the output
    return outputs + (strength * added).to(outputs.dtype)


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
    tensors = {n: _beside(inputs, t) for n, t in (*slot.tensors.items(), *told.items())}
    if slot.by_row:
        tensors = _aligned(slot, read, tensors)
    added = edit.added(read, tensors) * tensors[STRENGTH]
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


def _joined(slot: Slot, inputs: Tensor, outputs: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
    """A plain linear layer's output with the products of an edit summed into it, in place.

    To write what is added and read it again takes longer than to compute it, at small ranks.
    Nothing else holds that output yet; where gradients are recorded, a copy spares autograd views.
    A trace is checked by another one without gradients, which must have the same operations.
    """
    flat = outputs.reshape(-1, outputs.shape[-1])
    if _recording():
        flat = flat.clone()
    start, stop = slot.rows
    part = flat[:, start:stop] if stop - start < flat.shape[1] else flat
    edit: Any = slot.edit
    for coefficients, rows in edit.terms(inputs.reshape(-1, inputs.shape[-1]), tensors):
        part.addmm_(coefficients * tensors[STRENGTH], rows)
    return flat.view(outputs.shape)


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


def check_unstacked(layer: nn.Module) -> None:
    """Refuse to run with the weights of several models at once, each of which has its own edits.

    Raises:
        AttachError: the weight is a batch of weights (`torch.func.stack_module_state`).
    """
    # Compiled code is not asked: it cannot tell (torch 2.13).
    if torch.compiler.is_compiling() or not torch._C._are_functorch_transforms_active():
        return
    functorch: Any = torch._C._functorch
    weight: Tensor | None = layer._parameters.get("weight")
    while weight is not None and functorch.is_functorch_wrapped_tensor(weight):
        if functorch.is_batchedtensor(weight):
            raise AttachError(
                "attach: the weights of several models are stacked (torch.func.vmap), but edits "
                "are no part of what is stacked, and those of one model would act in all. Put "
                "static edits into each model's weights with fuse_ before stack_module_state, or "
                "call the models one by one."
            )
        weight = functorch.get_unwrapped(weight)


class Whole(nn.Module):
    """A layer whose weight is not to be taken for all that it does, while it has edits."""

    _rankedit_slots: tuple[Slot, ...] = ()

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """As the layer's own; assigning a parameter comes here, too.

        Raises:
            AttachError: another weight takes the place of the one that the edits are beside, as in
                the copy of a layer into which a normalisation is fused: it would have to go into
                the edits as well.
        """
        present = self._parameters.get(name)
        plain = type(present) is type(param) is nn.Parameter and not present.is_meta
        if plain and name != "bias" and param is not present and self._rankedit_slots:
            raise AttachError(
                f"attach: {name!r} of a {type(self).__name__} with edits was to be exchanged for "
                "another parameter (fusion with a normalisation, a checkpoint that is assigned), "
                "of which the edits beside it know nothing: detach them first, or put static ones "
                "into the weight with fuse_, exchange it, and solve and attach anew."
            )
        super().register_parameter(name, param)

    def __prepare_scriptable__(self) -> Whole:
        """What `torch.jit.script` asks for first.

        Raises:
            AttachError: always.
        """
        raise AttachError(
            f"torch.jit.script: expected layers without edits, got a {type(self).__name__}, whose "
            "edits have no form in a script: record the model with torch.jit.trace, or detach and "
            "put static edits into the weight with fuse_."
        )
