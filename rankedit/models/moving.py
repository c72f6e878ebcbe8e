"""Another key for attached gated edits, as training moves it at each step: nothing is waited for.

`Attachment.refresh` checks every tensor of every edit, and on an accelerator each look at a number
waits for all that was asked of it before. What moves one key a little needs no other check than
that of the loss which it leads to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from rankedit.errors import AttachError
from rankedit.gated import GatedEdit
from rankedit.inference import ordinary
from rankedit.interrupt import completely
from rankedit.models.binding import Installed, succeeded
from rankedit.models.geometry import run
from rankedit.models.patching import Attachment
from rankedit.models.slots import Slot
from rankedit.models.swapping import LOCK, install, suspended
from rankedit.models.targets import gathered
from rankedit.shapes import Inputs, Keys


def move_key(attachment: Attachment, key: Keys, image: Keys) -> None:
    """Put another key in the place of the one that all of several attached gated edits have.

    What they read becomes `i* A / ⟨i* A, i*⟩`, and what they take away `−i* Wᵀ`, as after `refresh`
    with edits of this key; targets, gates and strengths stay.

    Args:
        attachment: of gated edits with one key each.
        key: `i* [1, in]`, finite.
        image: `i* A [1, in]`.

    Raises:
        AttachError: an edit is of another kind, has several keys, or one that is learned; or it
            was detached.
    """
    with LOCK, ordinary(), torch.no_grad():
        attachment._check_active("move_key")
        items = attachment._installed
        key, image = key.detach(), image.detach().double()
        read = image / (image * key).sum(1, keepdim=True)
        # The same for all layers, of which each is run on it.
        rows, scale = items[0].target.view.rows_of(key)
        changes = []
        for item in items:
            _check(item)
            given = _given(item, rows)
            new = {"read": read, "removed": (given[-1:] - given[:-1]) / scale}
            changes.append((item, _moved(item.slot, new)))
        completely([partial(install, item.layer, slot) for item, slot in changes])


def _check(item: Installed) -> None:
    edit, read = item.slot.edit, item.slot.tensors.get("read")
    if not isinstance(edit, GatedEdit) or read is None or len(read) != 1 or read.requires_grad:
        raise AttachError(
            f"move_key: the edit of {item.target.name!r} must be a gated edit with one key that is "
            f"not learned, got a {type(edit).__name__}; use Attachment.refresh."
        )


def _given(item: Installed, rows: Inputs) -> Tensor:
    """What the bare layer gives, in float64."""
    view = item.target.view
    with gathered(item.target), suspended(item.target.layer) as bare:
        return run(bare, rows, view.layout)[:, slice(*view.bounds)].to(rows.device).double()


def _moved(slot: Slot, new: Mapping[str, Tensor]) -> Slot:
    placed = {name: succeeded(slot.tensors[name], value) for name, value in new.items()}
    # Not multiplied ahead by the strength, which would ask whether the products are finite.
    return replace(slot, tensors={**slot.tensors, **placed}, moving=True)
