"""What the edits of an attachment are told of the calls to come: which rows, which time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from rankedit.errors import AttachError, ShapeError
from rankedit.models.experts import check_know_rows
from rankedit.placed import ROWS, ToldEdit
from rankedit.protocol import Edit
from rankedit.shapes import check_finite, describe, is_number


class Context:
    """Tensors of a call, one object for all layers of an attachment; exchanged at once.

    A copy of a model has nobody to tell it anything: it begins with nothing told.

    Attributes:
        values: by name; None stands for calls that are left as they are.
    """

    def __init__(self) -> None:
        self.values: Mapping[str, Tensor | None] = {}

    def __reduce__(self) -> tuple[type[Context], tuple[()]]:
        return Context, ()

    def of_call(self, edit: ToldEdit, inputs: Tensor) -> dict[str, Tensor] | None:
        """What an edit reads of this call; None if the call is left as it is.

        Raises:
            AttachError: it was not told.
            ShapeError: what it was told is of another call.
        """
        values = self.values
        if values.get(ROWS, inputs) is None:
            return None
        found = {name: values.get(name) for name in edit.told}
        told = {name: value for name, value in found.items() if value is not None}
        if len(told) < len(found):
            lacking = sorted(found.keys() - told.keys())
            raise AttachError(
                f"attach: {type(edit).__name__} reads {', '.join(lacking)} of each call, which it "
                "was not told; call Attachment.tell before the model runs, with rows=None for "
                "calls that are to stay as they are. A copied model has to be attached to anew."
            )
        rows = told[ROWS]
        if inputs.ndim != 3 or len(inputs) != len(rows) or inputs.shape[1] < rows.shape[1]:
            raise ShapeError(
                f"Attachment.tell: rows {list(rows.shape)} are told of a layer that reads "
                f"{list(inputs.shape)}: expected [batch, tokens, in] with as many entries and at "
                "least as many tokens. With guidance a batch has the unguided prompts first: give "
                "them rows of zeros."
            )
        return told


def told_of(
    name: str, layer: nn.Module, edit: Edit, stride: Sequence[int], context: Context
) -> Context | None:
    """The context for an edit that reads one; None for all others.

    Raises:
        AttachError: the layer reads no sequence.
    """
    if not isinstance(edit, ToldEdit):
        return None
    check_know_rows("tell", {name: layer})
    if stride:
        raise AttachError(
            f"attach: {name!r} is a convolution, which reads a map and no sequence; "
            f"{type(edit).__name__} acts on rows of a sequence: attach it to a linear layer."
        )
    return context


def checked(values: Mapping[str, object], edits: Sequence[Edit]) -> dict[str, Tensor | None]:
    """What the edits of an attachment are told, as tensors.

    Raises:
        AttachError: no edit reads it.
        ShapeError: no finite numbers, or rows of another shape.
    """
    known = frozenset[str]().union(*(edit.told for edit in edits if isinstance(edit, ToldEdit)))
    unread = sorted(values.keys() - known)
    if unread:
        raise AttachError(
            f"Attachment.tell: no edit reads {unread[0]!r} of a call; they read "
            f"{', '.join(sorted(known)) or 'nothing: only edits such as PlacedEdit do'}."
        )
    return {name: None if value is None else _tensor(name, value) for name, value in values.items()}


def _tensor(name: str, value: object) -> Tensor:
    tensor = torch.tensor(float(value)) if is_number(value) else value  # type: ignore[arg-type]
    numbers = isinstance(tensor, Tensor) and (tensor.is_floating_point() or name != ROWS)
    if not isinstance(tensor, Tensor) or not numbers or (name == ROWS and tensor.ndim < 2):
        expected = "floating-point [batch, tokens] or more" if name == ROWS else "numbers"
        raise ShapeError(f"Attachment.tell: {name} must be {expected}, got {describe(value)}.")
    check_finite("Attachment.tell", name, tensor.detach())
    return tensor
