"""Put static edits into the weights, and take them out bit for bit.

    fuse_(model, {"h.3.mlp.c_proj": edit})      W ← round(W + ΔW)
    unfuse_(model)                              W ← the bits that were overwritten

Only a weight that can be read, written and is what the layer multiplies by can take an edit: plain
floating-point weights. Everything else keeps its edits beside the weight, with `attach`.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from rankedit.edits import LowRank
from rankedit.errors import AttachError, RankeditWarning
from rankedit.interrupt import completely
from rankedit.models.asking import gradients_kept
from rankedit.models.experts import parts_of
from rankedit.models.fingerprints import content_digest
from rankedit.models.projections import Projection
from rankedit.models.selecting import clean_name
from rankedit.models.swapping import FUSED, LOCK
from rankedit.models.targets import Edits, Target, resolve
from rankedit.models.writable import (
    check_untied,
    is_transposed,
    plain_weight,
    weight_of,
    written,
)
from rankedit.shapes import check_kind

# Share of an edit that rounding to the weight's dtype may lose before the user is told.
# bfloat16 keeps 8 bits, so that an edit below 1/256 of the weight's entries is rounded away.
SWALLOWED = 0.05


@dataclass(frozen=True, eq=False)
class _Fused:
    """What a fused layer needs to be restored; it travels with copies and pickles of the layer.

    Attributes:
        original: the weight before the first edit.
        digest: of the weight that was written, sampled: to keep it would be one more copy.
        edits: digests of the edits in it.
    """

    original: Tensor
    digest: str
    edits: frozenset[str]


@dataclass(frozen=True, eq=False)
class _Change:
    """One layer's new weight, computed but not yet written."""

    layer: nn.Module
    weight: Tensor
    fused: Tensor
    present: Tensor
    earlier: _Fused | None
    record: _Fused

    def do(self) -> None:
        """Keep what is needed to undo it, then write."""
        vars(self.layer)[FUSED] = self.record
        _write(self.weight, self.fused)

    def undo(self) -> None:
        """As before `do`, however far that came."""
        _write(self.weight, self.present)
        if self.earlier is None:
            vars(self.layer).pop(FUSED, None)
        else:
            vars(self.layer)[FUSED] = self.earlier


@gradients_kept
def fuse_(model: nn.Module | Projection, edits: Edits, *, tied: bool = False) -> None:
    """Add static edits to the weights in place. All edits are checked before any is written.

    The overwritten weights are kept with their layers (one more copy of each edited weight) until
    `unfuse_`; fusing again on top keeps the first originals.

    An edit in the weight acts wherever the model reads that weight, also in functions of its own
    and in layers that it never calls. So nothing is observed here, as it is for `attach`, whose
    edits act only where a layer is called; a layer whose weight no forward reads at all cannot be
    told from others, but for projections that diffusers has fused into one, which are refused.

    `I Wᵀ` of gated edits that are attached to the same layers is fixed when they are attached: call
    `refresh` or attach them again after fusing.

    Args:
        model: a model, with `edits` by name; or a layer or `Projection`, with `edits` for it.
        edits: `LowRank` edits, addressed as in `attach`. Gated edits have no weight form; choose
            `edit.linearised(...)` yourself.
        tied: allow weights that other modules share (an output head tied to the embedding): all of
            them change. Only sharing within `model` can be seen.

    Raises:
        ProjectionError: a name is unknown, or not a projection.
        ShapeError: an edit is of another size than its projection.
        AttachError: an edit is not static, or a weight is quantised, on the meta device, sharded,
            kept on disk, computed, shared, changed since it was last fused, has the same edit in
            it already, or would overflow.

    Warns:
        RankeditWarning: rounding to the weight's dtype loses more than 5 % of an edit; with the
            figure `‖round(W + ΔW) − W − ΔW‖/‖ΔW‖`.
    """
    targets = resolve("fuse_", model, edits)
    groups: dict[int, list[Target]] = {}
    for target in targets:
        groups.setdefault(id(target.layer), []).append(target)
        _check_static(target)
    root = model.module if isinstance(model, Projection) else model
    if not tied:
        check_untied(root, targets)
    _check_one_layer(root, targets)
    # All are computed before one is written; a forward beside this sees old and new layers mixed.
    with LOCK:
        changes = [_change(group) for group in groups.values()]
        try:
            for change in changes:
                change.do()
        except BaseException:
            completely([change.undo for change in reversed(changes)])
            raise


def fused(model: nn.Module) -> dict[str, Tensor]:
    """The weights of a model that `fuse_` changed, by the name of the layer: what they were."""
    layers = parts_of(model)
    return {clean_name(n): vars(m)[FUSED].original for n, m in layers if FUSED in vars(m)}


@gradients_kept
def unfuse_(model: nn.Module, *, force: bool = False) -> int:
    """Put back, bit for bit, every weight of the model that `fuse_` overwrote.

    Args:
        model: the model or any part of it.
        force: restore also weights that were changed since they were fused (trained, cast or
            loaded over); those changes are lost.

    Returns:
        How many layers were restored.

    Raises:
        AttachError: a weight was changed since; nothing is restored then.
    """
    check_kind("unfuse_", "model", model, nn.Module)
    found = [(name, layer) for name, layer in parts_of(model) if FUSED in vars(layer)]
    changed = []
    for name, layer in found:
        record: _Fused = vars(layer)[FUSED]
        if content_digest(written(name, layer, record.original.shape)) != record.digest:
            changed.append(name)
    if changed and not force:
        raise AttachError(
            f"unfuse_: {len(changed)} weights, the first that of {changed[0]!r}, are not what "
            "fuse_ left there: they were trained, cast or loaded over. Pass force=True to put back "
            "the originals all the same."
        )
    with LOCK:
        completely([partial(_unfuse, layer) for _, layer in found])
    return len(found)


def _unfuse(layer: nn.Module) -> None:
    record = vars(layer).get(FUSED)
    if record is not None:
        _write(weight_of(layer), record.original)
        del vars(layer)[FUSED]


def _write(weight: Tensor, values: Tensor) -> None:
    with torch.no_grad():
        weight.copy_(values)


# ---------------------------------------------------------------------------------- computing


def _change(group: list[Target]) -> _Change:
    """The new weight of one layer, with all edits on rows of it."""
    layer, layout = group[0].layer, group[0].view.layout
    weight = plain_weight(group[0])
    earlier: _Fused | None = vars(layer).get(FUSED)
    _check_unchanged(group[0], weight, earlier)
    edits = _check_new(group, earlier)
    transposed = is_transposed(group[0], weight)
    delta = torch.zeros(
        layout.out_features, layout.in_features, dtype=torch.float64, device=weight.device
    )
    for target in group:
        start, stop = target.view.bounds
        for edit in target.edits:
            if isinstance(edit, LowRank):
                delta[start:stop] += edit.to(torch.float64, weight.device).delta()
    placed = (delta.T if transposed else delta).reshape(weight.shape)
    # Rounded once, from float64: rounding ΔW first would lose what is below its own last digit.
    exact = weight.detach().double() + placed
    written = exact.to(weight.dtype)
    _check_rounding(group[0], written, exact, placed)
    present = weight.detach().clone()
    original = earlier.original if earlier else present
    known = edits | (earlier.edits if earlier else frozenset())
    record = _Fused(original, content_digest(written), known)
    return _Change(layer, weight, written, present, earlier, record)


def _check_rounding(target: Target, fused: Tensor, exact: Tensor, delta: Tensor) -> None:
    if not bool(torch.isfinite(fused).all()):
        raise AttachError(
            f"fuse_: the edited weight of {target.name!r} overflows {fused.dtype}: largest entry "
            f"{float(exact.abs().max()):.3g}; use attach, or load the model in a wider dtype."
        )
    # Relative to the edit, not to the weight: what is lost of W is nothing, and of ΔW may be all.
    lost = float((fused.double() - exact).norm() / delta.norm().clamp_min(1e-300))
    if lost > SWALLOWED and bool(delta.any()):
        warnings.warn(
            f"fuse_: rounding to {fused.dtype} loses {lost:.0%} of the edit of {target.name!r} "
            f"(‖round(W + ΔW) − W − ΔW‖/‖ΔW‖ = {lost:.3g}); attach keeps all of it.",
            RankeditWarning,
            stacklevel=6,
        )


# ----------------------------------------------------------------------------------- refusals


def _check_static(target: Target) -> None:
    wrong = next((edit for edit in target.edits if not isinstance(edit, LowRank)), None)
    if wrong is not None:
        raise AttachError(
            f"fuse_: the edit of {target.name!r} must be a LowRank, got {type(wrong).__name__}, "
            "whose effect depends on the input; fuse edit.linearised(outputs), which is another "
            "edit and reports how far it differs, or use attach."
        )


def _check_one_layer(root: nn.Module, targets: Sequence[Target]) -> None:
    """Refuse edits of one weight through several layers: each would be written over the others."""
    fused = [part for part in root.modules() if FUSED in vars(part)]
    layers = {id(part._parameters.get("weight")): part for part in fused}
    for target in targets:
        weight = target.layer._parameters.get("weight")
        if weight is not None and layers.setdefault(id(weight), target.layer) is not target.layer:
            raise AttachError(
                f"fuse_: the weight of {target.name!r} is edited as that of another layer, too, "
                "and unfuse_ could not tell what it was: name one of the layers that share it, "
                "with a list of all edits."
            )


def _check_new(group: Sequence[Target], earlier: _Fused | None) -> frozenset[str]:
    """Digests of the edits; refuses those that are in the weight already."""
    digests = {}
    for target in group:
        for edit in target.edits:
            if isinstance(edit, LowRank):
                up, down = content_digest(edit.up), content_digest(edit.down)
                digests[f"{target.view.bounds} {up} {down}"] = target.name
    again = [name for digest, name in digests.items() if earlier and digest in earlier.edits]
    if again:
        raise AttachError(
            f"fuse_: the weight of {again[0]!r} has this very edit in it already, and would get it "
            "twice; call unfuse_ first, or fuse `2 * edit` if twice is meant."
        )
    return frozenset(digests)


def _check_unchanged(target: Target, weight: Tensor, kept: _Fused | None) -> None:
    """Refuse a fused weight that was changed since: `unfuse_` would not notice after another."""
    if kept is not None and content_digest(weight) != kept.digest:
        raise AttachError(
            f"fuse_: the weight of {target.name!r} is not what fuse_ left there: it was trained, "
            "cast or loaded over, which unfuse_ would undo without a word after another edit. Call "
            "unfuse_ with force=True to give the changes up, or load the state_dict into a fresh "
            "model to keep them."
        )
