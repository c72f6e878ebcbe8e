"""One edit in one layer, and what it does to the layer's output."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from rankedit.errors import AttachError
from rankedit.inference import ordinary
from rankedit.models.geometry import Geometry
from rankedit.models.telling import Context
from rankedit.protocol import Edit

STRENGTH = "strength"
# Strengths, and what they divide by, up to which rows keep their digits when multiplied by them.
_MOST = 2.0**20


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
        moving: whether its key is exchanged at each step of a training (see `moving`).
        context: what an edit that reads something of each call is told; None for all others.
        ready: the tensors with the strength multiplied into them, where that can be done once.
        constant: of an edit that is a matrix product and no more, its factors `[r, in]` and
            `[r, out]`, ready and contiguous.
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
    moving: bool = False
    context: Context | None = None
    ready: Mapping[str, Tensor] | None = field(init=False, default=None)
    constant: tuple[Tensor, Tensor] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        with ordinary(), torch.no_grad():
            ready = _multiplied(self)
            object.__setattr__(self, "ready", ready)
            whole = self.rows == (0, self.layout.out_features)
            if ready and whole and self.joins and not self.by_row:
                factors = getattr(self.edit, "constant", lambda _: None)(ready)
                object.__setattr__(self, "constant", factors and _contiguous(*factors))

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


def _multiplied(slot: Slot) -> dict[str, Tensor] | None:
    """The tensors of a slot with its strength in those that what is added is linear in.

    Never the tensors themselves, at strength 1 neither: compiled code would be compiled anew where
    two of its inputs are one tensor no longer.
    """
    strength, names = slot.tensors[STRENGTH], getattr(slot.edit, "linear_in", ())
    if not names or slot.learned or slot.moving or strength.ndim or strength.is_meta:
        return None
    size = abs(float(strength)) if type(strength) is Tensor else float("nan")
    # Beyond this range, rows may lose digits that their coefficients would have made up for.
    if size and not 1 / _MOST <= size <= _MOST:
        return None
    scaled = {name: slot.tensors[name] * strength for name in names}
    finite = all(bool(tensor.isfinite().all()) for tensor in scaled.values())
    return {**slot.tensors, **scaled} if finite else None


def _contiguous(down: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    return down.contiguous(), rows.contiguous()


def check_held(
    call: str, placed: Mapping[str, Tensor], given: Mapping[str, Tensor], dtype: torch.dtype
) -> None:
    """Refuse what the layer's precision does not hold. All are looked at, and waited for, once.

    Raises:
        AttachError: one has entries that are not finite.
    """
    asked = {n: t for n, t in placed.items() if t.is_floating_point() and not t.requires_grad}
    with ordinary():
        finite = [tensor.isfinite().all() for tensor in asked.values()]
        if not finite or bool(torch.stack(finite).all()):
            return
    name = next(name for name, fits in zip(asked, finite, strict=True) if not fits)
    raise AttachError(
        f"{call}: {name!r} of the edit must be finite in {dtype}, in which the layer "
        f"computes with it; its largest entry is {float(given[name].abs().max()):.3g}. "
        "Scale the edit down; LowRank.balanced() spreads a product over its factors."
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
