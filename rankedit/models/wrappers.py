"""Whether what wraps a layer passes on what an edit adds to it: measured, for any wrapper."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rankedit.edits import LowRank
from rankedit.errors import AttachError
from rankedit.gated import GatedEdit
from rankedit.models.asking import loaded, stand_in
from rankedit.models.geometry import Geometry, device_of, innermost, run, seen_curved
from rankedit.models.slots import STRENGTH
from rankedit.models.swapping import gives_fresh_outputs, install, made, suspended
from rankedit.protocol import Edit

# Largest relative deviation that counts as rounding, and in units of what the output's dtype
# resolves. Both runs round the layer's own output alike, quantised or not.
_TOLERANCE, _ROUNDINGS = 1e-3, 8
_ROWS = 4


def check_additive(
    call: str, name: str, wrapper: nn.Module, layout: Geometry, edits: Sequence[Edit]
) -> None:
    """Refuse a wrapper that scales, or turns the input of, the layer that an edit adds to.

    A LoRA adds to the layer's output, and an edit below it acts as it was solved for. DoRA scales
    that output and OFT turns the input, so that an edit would give its keys something else.

    Raises:
        AttachError: with the relative deviation at the keys of the edits; or the layer itself is
            of a class that makes something else of torch's linear layer.
    """
    _check_linear(call, name, innermost(wrapper), layout.in_features)
    copy = stand_in(wrapper, innermost(wrapper))
    layer = innermost(copy)
    if layer is copy or layer is innermost(wrapper):
        return  # not wrapped; or under hooks that know the layer itself, which is not to be touched
    with loaded(wrapper), torch.no_grad():
        rows = _keys(layout.in_features, edits)
        base = run(copy, rows, layout)
        tolerance = max(_TOLERANCE, _ROUNDINGS * torch.finfo(base.dtype).eps)
        base = base.to("cpu", torch.float32)
        generator = torch.Generator().manual_seed(0)
        up = torch.randn(layout.out_features, len(rows), generator=generator)
        expected = rows @ rows.T @ up.T
        # As large as the output: rounding in half precision must not hide what happens to it.
        up *= base.norm() / expected.norm() if bool(base.any()) else 1.0
        _put(layer, layout, LowRank(up, rows))
        given = run(copy, rows, layout).to("cpu", torch.float32)
    expected = rows @ rows.T @ up.T
    deviation = float((given - base - expected).norm() / expected.norm())
    if not deviation <= tolerance:
        raise AttachError(
            f"{call}: what is added to {name!r} is not what its {type(wrapper).__name__} gives: it "
            f"deviates by {deviation:.2g} at the keys, as below adapters that scale the output or "
            "change the input (DoRA, OFT). Merge the adapter into the weight first "
            "(merge_and_unload()), then solve and attach."
        )


def _check_linear(call: str, name: str, layer: nn.Module, width: int) -> None:
    if not isinstance(layer, nn.Linear) or gives_fresh_outputs(layer):
        return
    with suspended(layer) as bare:
        curved = seen_curved(bare, width)
    if curved:
        raise AttachError(
            f"{call}: {name!r} must be linear, but its class {type(bare).__name__} has a forward "
            "that is not (it normalises, or has an activation): keys would get something else than "
            "was solved for. Take that out of the class, or edit another layer."
        )


def _keys(width: int, edits: Sequence[Edit]) -> Tensor:
    """Unit rows that the edits answer to, and one that they do not know."""
    found = [torch.randn(1, width, generator=torch.Generator().manual_seed(0))]
    for edit in edits:
        if isinstance(edit, (LowRank, GatedEdit)):
            rows = edit.down if isinstance(edit, LowRank) else edit.keys
            found.append(rows[:_ROWS].detach().to("cpu", torch.float32))
    return nn.functional.normalize(torch.cat(found), dim=1)


def _put(layer: nn.Module, layout: Geometry, edit: LowRank) -> None:
    device = device_of(layer)
    tensors = {"up": edit.up.to(device), "down": edit.down.to(device)}
    tensors[STRENGTH] = torch.ones((), device=device)
    install(layer, made(layer, edit, layout, (0, layout.out_features), tensors))
