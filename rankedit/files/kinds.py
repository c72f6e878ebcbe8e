"""How each kind of thing is written as an entry of a file, and read back.

One encoder and one planner per kind. A planner sees the document and the shapes of the tensors, no
data; it checks everything and returns what builds the objects once the data are there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import fields

import torch
from torch import Tensor

from rankedit.edits import EditReport, LowRank
from rankedit.errors import EditFileError
from rankedit.files.entries import (
    Build,
    Entry,
    Fields,
    Item,
    TensorTable,
    checked_number,
)
from rankedit.files.header import checked_place, checked_text
from rankedit.files.statistics import plan_moment
from rankedit.gated import GatedEdit
from rankedit.gates import Gate

KEYS = 512  # sets of keys in a file; each is factorised when it is loaded
# The numbers of a report; its warnings are texts and stand beside them.
_FIGURES = ("residual", "drift", "condition")


# -------------------------------------------------------------------- low-rank edits


def encode_low_rank(
    name: str, edit: LowRank, table: TensorTable, dtype: torch.dtype | None
) -> Entry:
    """`up` and `down`; in 16 bits with the norm of each rank split evenly between the two."""
    kept = dtype or torch.float32
    # In 16 bits the table scales what it stores into their range.
    balanced = edit.balanced() if kept.itemsize == 2 else edit.to(kept)
    entry: Entry = {
        "kind": "low-rank",
        "module": name,
        "up": table.add(f"up of {name!r}", balanced.up, kept),
        "down": table.add(f"down of {name!r}", balanced.down, kept),
    }
    if edit.report:
        figures = {figure: getattr(edit.report, figure) for figure in _FIGURES}
        # nan and infinity are no JSON; both mean that the figure is not known.
        known = {figure: x if math.isfinite(x) else None for figure, x in figures.items()}
        entry["report"] = {**known, "warnings": list(edit.report.warnings)}
    return entry


def plan_low_rank(entry: Fields) -> Build:
    """Check a low-rank entry: `up [out, r]` and `down [r, in]`, and what the solver reported."""
    up = entry.tensor("up", None, None)
    name = entry.place("module", up.shape[0])
    down = entry.tensor("down", up.shape[1], None)
    raw = entry.optional("report")
    report = None if raw is None else _report(Fields(raw, "a report", entry.context))
    return lambda tensors: {name: LowRank(up.resolve(tensors), down.resolve(tensors), report)}


def _report(raw: Fields) -> EditReport:
    values = {figure: raw.take(figure) for figure in _FIGURES}
    figures = {
        figure: math.nan if x is None else checked_number(x, f"{figure!r} of a report")
        for figure, x in values.items()
    }
    notes = raw.take("warnings")
    raw.finish()
    if not isinstance(notes, list):
        raise EditFileError(f"the warnings of a report must be a list, got {notes!r:.80}")
    return EditReport(
        **figures, warnings=tuple(checked_text(note, "a warning of a report") for note in notes)
    )


# -------------------------------------------------------------------- gated edits


def encode_gated(
    items: Mapping[str, GatedEdit], table: TensorTable, dtype: torch.dtype | None
) -> list[Entry]:
    """Edits that differ in their targets only share one entry; `targets` are side by side."""
    kept = dtype or torch.float32
    groups: dict[str, tuple[Entry, dict[str, GatedEdit]]] = {}
    for name, edit in items.items():
        common = _gated_settings(name, edit, table, kept)
        # By their text: gate parameters are floats, which must agree to the last digit.
        groups.setdefault(repr(common), (common, {}))[1][name] = edit
    entries = []
    for common, members in groups.values():
        targets = torch.cat([e.targets.detach().cpu() for e in members.values()], dim=1)
        number = table.add(f"targets of {', '.join(members)!r:.80}", targets, kept)
        widths = {name: edit.targets.shape[1] for name, edit in members.items()}
        entries.append({**common, "targets": number, "modules": widths})
    return entries


def _gated_settings(name: str, edit: GatedEdit, table: TensorTable, dtype: torch.dtype) -> Entry:
    return {
        "kind": "gated",
        "statistics": edit.statistics,
        "keys": table.add(f"keys of {name!r}", edit.keys, dtype),
        "images": table.add(f"images of {name!r}", edit.images, dtype),
        "gate": edit.gate.name,
        "parameters": {f.name: _written(getattr(edit.gate, f.name)) for f in fields(edit.gate)},
        "normalised": edit.normalised,
        "floor": edit.floor,
    }


def _written(parameter: float | Tensor) -> object:
    """A number as it is, so that it comes back exactly; a vector as a list."""
    return parameter.tolist() if isinstance(parameter, Tensor) else float(parameter)


def plan_gated(entry: Fields) -> Build:
    """Check a gated entry: `keys` and `images` `[n, in]`, `targets [n, sum of the widths]`."""
    keys = entry.tensor("keys", None, None)
    if keys.shape[0] > keys.shape[1]:
        raise EditFileError(f"keys {list(keys.shape)} are more than can be independent")
    images = entry.tensor("images", *keys.shape)
    entry.context.keys.add((keys, images))
    if len(entry.context.keys) > KEYS:
        raise EditFileError(f"gated entries may have at most {KEYS} different keys")
    widths = _widths(entry.mapping("modules"))
    targets = entry.tensor("targets", keys.shape[0], sum(widths.values()))
    gate = _gate(entry, keys.shape[0])
    normalised, statistics = entry.flag("normalised"), entry.text("statistics")
    floor = entry.take("floor")
    height = None if floor is None else checked_number(floor, "'floor' of a gated edit")

    def build(tensors: Mapping[str, Tensor]) -> Mapping[str, Item]:
        parts = targets.resolve(tensors).split(list(widths.values()), dim=1)
        blocks = [part.contiguous() for part in parts]
        bases = entry.context.bases
        # To factorise the keys is most of the time of loading; equal ones share it.
        if (keys, images) in bases:
            base = bases[keys, images].changed(
                targets=blocks[0], statistics=statistics, gate=gate, normalised=normalised,
                floor=height,
            )  # fmt: skip
        else:
            # Complete at once: an edit that is changed afterwards is checked again each time.
            base = bases[keys, images] = GatedEdit.from_images(
                keys.resolve(tensors), blocks[0], images.resolve(tensors), gate,
                normalised=normalised, floor=height, statistics=statistics,
            )  # fmt: skip
        edits = (base, *(base.with_targets(block) for block in blocks[1:]))
        return dict(zip(widths, edits, strict=True))

    return build


def _widths(modules: dict[str, object]) -> dict[str, int]:
    widths = {}
    for name, width in modules.items():
        # Python writes no whole number of more than 4,300 digits, not even into a message.
        if type(width) is not int or not 0 < width < 1 << 63:
            raise EditFileError(
                f"the width of module {name[:80]!r} must be positive, got {width!r:.80}"
            )
        widths[checked_place(name, width)] = width
    return widths


def _gate(entry: Fields, n: int) -> Gate:
    name, values, gates = entry.text("gate"), entry.mapping("parameters"), entry.context.gates
    if name not in gates:
        raise EditFileError(
            f"the file uses the gate {name!r:.80}, known are {', '.join(sorted(gates))}; "
            "pass its class: load(path, gates=[...])"
        )
    wanted = [f.name for f in fields(gates[name])]
    if sorted(values) != sorted(wanted):
        raise EditFileError(
            f"gate {name!r} has the parameters {wanted}, got {sorted(values)!r:.80}"
        )
    given = {key: _parameter(key, value, n) for key, value in values.items()}
    try:
        return gates[name](**given)
    except (TypeError, ValueError) as error:  # ShapeError is a ValueError
        raise EditFileError(f"gate {name!r} refuses its parameters: {error}") from error


def _parameter(name: str, value: object, n: int) -> float | Tensor:
    """One number, or one for each of the n keys."""
    if not isinstance(value, list):
        return checked_number(value, f"gate parameter {name[:80]!r}")
    if len(value) != n:
        raise EditFileError(
            f"gate parameter {name[:80]!r} must have one value or one for each of the {n} keys, "
            f"got {len(value)}"
        )
    return torch.tensor([checked_number(v, f"gate parameter {name[:80]!r}") for v in value])


# -------------------------------------------------------------------- plain tensors


def encode_tensor(
    name: str, tensor: Tensor, table: TensorTable, dtype: torch.dtype | None
) -> Entry:
    """Anything else that a recipe needs beside its edits, such as the embedding of a new word."""
    number = table.add(f"tensor {name!r}", tensor, dtype or tensor.dtype)
    return {"kind": "tensor", "module": name, "tensor": number}


def plan_tensor(entry: Fields) -> Build:
    """Check a plain tensor: any shape that the header allows."""
    name = entry.module("module")
    reference = entry.any_tensor("tensor")
    return lambda tensors: {name: reference.resolve(tensors)}


PLANNERS: dict[str, Callable[[Fields], Build]] = {
    "low-rank": plan_low_rank,
    "gated": plan_gated,
    "moment": plan_moment,
    "tensor": plan_tensor,
}
