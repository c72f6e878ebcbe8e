"""Whether a file is of the weights of a model, in whatever precision either of them is.

Beside the fingerprints that `rankedit.save` keeps, files of this recipe have a sketch of each
projection: of what it gives for inputs of ±1. See
`docs/decisions/a-sketch-beside-the-fingerprint.md`.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

import rankedit as rk
from rankedit.models.targets import gathered_layer

# Relative to their length, what projections give in bfloat16 and in float32 differs by 0.0025: by
# the rounding of the weights and of what is given; the estimate is off by 12 %.
ROUNDING = 0.004
# Eight bits for a weight, one scale for each row: 0.006 to 0.013 in SmolLM2's blocks, the more the
# further the largest weight of a row lies off. A copy that was fine-tuned for 500 steps: 0.044.
ROUNDING_IN_8_BITS = 0.025
# Inputs: they must meet every direction about alike, and are as many as a sketch has numbers.
_INPUTS = 32
_SKETCHES, _ROUNDING = "sketches", "rounding"


def base_marks(model: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """Sketches of projections, as metadata of a file; nothing where weights have fewer than 8 bits.

    Under FSDP weights are gathered, so that every process must make the call.

    Args:
        model: what the file is for, unedited.
        names: of the projections that the file holds something for.
    """
    layers = {name: model.get_submodule(name.partition("[")[0]) for name in sorted(set(names))}
    roundings = [_rounding(layer) for layer in layers.values()]
    known = [value for value in roundings if value is not None]
    if not known or len(known) < len(roundings):
        return {}
    sketches = {}
    for name, layer in layers.items():
        # A layer of a model under FSDP cannot be run by itself: its weight is a part of one.
        with gathered_layer(model, name.partition("[")[0]):
            sketches[name] = _sketch(layer)
    texts = ",".join("" if made is None else made.text() for made in sketches.values())
    return {_SKETCHES: texts, _ROUNDING: f"{max(known):g}"}


def check_base(model: nn.Module, loaded: rk.EditFile) -> None:
    """Refuse a file that was made for other weights than those of a model.

    A file of float32 serves the same weights in bfloat16, float16 and 8 bits, and the other way
    round. Files without sketches, and models in 4 bits, go by fingerprints alone.

    Args:
        model: the model, unedited.
        loaded: what `rankedit.load` returned.

    Raises:
        EditFileError: the weights differ by more than rounding, or nothing tells.
        ProjectionError: the model lacks a layer that the file names.
        AttachError: a layer has an edit fused into its weight.
    """
    try:
        rk.check_base(model, loaded)
    except rk.EditFileError:
        ours, theirs = base_marks(model, loaded.base), loaded.metadata
        if not ours or not theirs.get(_SKETCHES) or not loaded.base:
            raise
        _compare(sorted(loaded.base), ours, theirs)


def _compare(names: list[str], ours: dict[str, str], theirs: dict[str, str]) -> None:
    allowed = max(float(ours[_ROUNDING]), _number(theirs.get(_ROUNDING, "")))
    mine, kept = (marks[_SKETCHES].split(",") for marks in (ours, theirs))
    for name, one, other in zip(names, mine, kept, strict=False):
        apart = _distance(one, other)
        if not apart < allowed:
            raise rk.EditFileError(
                f"check_base: the file was made for another base model: the weights of {name!r} "
                f"differ by {apart:.1%} of their size, and precision explains {allowed:.1%}. Load "
                "the model that it was made for, in any precision of 8 bits or more and with no "
                "edits in it."
            )
    if len(mine) != len(kept):
        raise rk.EditFileError(
            f"check_base: the file has {len(kept)} sketches for {len(mine)} layers, so that it is "
            "damaged; make it again."
        )


def _distance(one: str, other: str) -> float:
    """Infinite where one has nothing to compare, or is damaged."""
    try:
        return rk.Sketch.parse(one).distance(rk.Sketch.parse(other))
    except ValueError:
        # Zero weights have no sketch: those of two models are the same ones.
        return 0.0 if one == other == "" else float("inf")


def _number(text: str) -> float:
    try:
        # What a file says of itself cannot make any weights pass for its own.
        return min(float(text), ROUNDING_IN_8_BITS)
    except ValueError:
        return 0.0


def _rounding(layer: nn.Module) -> float | None:
    """By how much weights may differ for the precision that they are stored in; None if too far."""
    try:
        if rk.Sketch.of({"": layer}) is not None:
            return ROUNDING
    except rk.ProjectionError:  # zero weights, which no precision changes
        return ROUNDING
    view = rk.Projection(layer)
    state = [value for value in layer.state_dict().values() if isinstance(value, Tensor)]
    # The weight's own bytes, without tables and scales, and not its dtype: four bits are kept as
    # bytes of two, or as integers of eight.
    stored = max((value.numel() * value.element_size() for value in state), default=0)
    return ROUNDING_IN_8_BITS if stored >= view.in_features * view.out_features else None


def _sketch(layer: nn.Module) -> rk.Sketch | None:
    view = rk.Projection(layer)
    generator = torch.Generator().manual_seed(0)
    # ±1 is exact in every precision, that of int8's inputs among them.
    signs = torch.randint(2, (_INPUTS, view.in_features), generator=generator) * 2.0 - 1
    given = nn.Module()
    # By running: layouts and quantised forms differ between libraries, what a layer gives does not.
    given.weight = nn.Parameter(rk.linear_output(layer, signs).float(), requires_grad=False)
    try:
        return rk.Sketch.of({"": given})
    except rk.ProjectionError:  # a layer that gives nothing for anything
        return None
