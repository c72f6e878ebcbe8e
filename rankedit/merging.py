"""Joining separately made gated edits into one, with an exact joint projection."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rankedit import gates
from rankedit.errors import SolveError
from rankedit.gated import GatedEdit
from rankedit.gates import Gate
from rankedit.shapes import check_kind


def merge(edits: Sequence[GatedEdit]) -> GatedEdit:
    """One gated edit with the keys of all: `y = W (x − c(x) I) + Σ_j gate_j(s_j(x)) o_j`.

    Attached one by one, edits with correlated keys each subtract their own part and so take shared
    parts away twice. The joint edit projects on the span of all keys at once (Perfusion, arXiv
    2305.01644, appendix B, equations 4 to 10), through the Gram matrix of the keys.

    Args:
        edits: made under the same metric, with gates of the same class; each keeps its own
            parameters.

    Raises:
        ShapeError: something else than gated edits.
        SolveError: no edit; different widths, statistics, gate classes, normalisation or floor;
            several edits of unknown statistics; keys of different edits that are parallel under
            the metric.
    """
    check_kind("merge", "edits", edits, Sequence, expected="list of gated edits")
    if not edits:
        raise SolveError("merge: needs at least one edit, got none; pass a list of GatedEdits.")
    first = edits[0]
    for index, edit in enumerate(edits):
        check_kind("merge", f"edits[{index}]", edit, GatedEdit)
        _check_compatible(first, edit, index)
    # Unknown ones look alike: images under two metrics would be taken for those of one.
    if len(edits) > 1 and not first.statistics:
        raise SolveError(
            "merge: the edits do not say under which statistics they were made, so that their keys "
            "cannot be compared; name them: GatedEdit.from_images(..., "
            "statistics=metric.fingerprint)."
        )
    # Written out for each key: a number of one edit is not that of another.
    counts = [len(edit.keys) for edit in edits]
    gate = _joined([gates.per_key(edit.gate, n) for edit, n in zip(edits, counts, strict=True)])
    try:
        parts = {
            n: torch.cat([getattr(e, n) for e in edits]) for n in ("keys", "targets", "images")
        }
        return first.changed(**parts, gate=gate)
    # Which keys are parallel is said by their numbers, which mean nothing to whoever gave edits.
    except SolveError as error:
        owners = [index for index, n in enumerate(counts) for _ in range(n)]
        raise SolveError(f"merge: {error} Keys belong to edits {owners}, in this order.") from error


def _check_compatible(first: GatedEdit, edit: GatedEdit, index: int) -> None:
    traits = {
        "input width": (first.in_features, edit.in_features),
        "output width": (first.out_features, edit.out_features),
        "statistics": (first.statistics, edit.statistics),
        "gate class": (type(first.gate), type(edit.gate)),
        "normalised": (first.normalised, edit.normalised),
        "floor": (first.floor, edit.floor),
    }
    for trait, (mine, theirs) in traits.items():
        if mine != theirs:
            raise SolveError(
                f"merge: all edits must have the same {trait}, but edit 0 has {mine!r} and edit "
                f"{index} has {theirs!r}; make them with one metric and one kind of gate "
                "(GatedEdit.with_gate changes the gate)."
            )


def _joined(all_gates: list[Gate]) -> Gate:
    columns = [gates.parameters(gate) for gate in all_gates]
    joined = {name: torch.cat([column[name] for column in columns]) for name in columns[0]}
    return type(all_gates[0])(**joined)
