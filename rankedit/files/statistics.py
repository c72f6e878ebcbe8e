"""How statistics are written as an entry of a file, and read back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from typing import Any

import torch
from torch import Tensor

from rankedit.errors import EditFileError, ShapeError
from rankedit.files.container import DTYPES
from rankedit.files.entries import Build, Entry, Fields, Item, TensorTable
from rankedit.files.header import checked_text
from rankedit.moments import SecondMoment
from rankedit.provenance import Provenance

ACTIVATION_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES.values()}
_MOMENT_SUMS = ("count", "weight_squares", "fourth")


def encode_moment(
    name: str, moment: SecondMoment, table: TensorTable, dtype: torch.dtype | None
) -> Entry:
    """The sums; of the symmetric one the upper triangle."""
    # In 16 bits a sum of squares has no small eigenvalue left that is right.
    kept = dtype or torch.float64
    if kept.itemsize == 2:
        raise ShapeError(
            f"save: statistics can be stored as float64 or float32, got {kept} for {name!r}; "
            "save them without dtype=, in a file of their own."
        )
    state = moment.state()
    entry: Entry = {
        "kind": "moment",
        "module": name,
        "outer": table.add(f"sum of squares of {name!r}", state["outer_packed"], kept),
        "total": table.add(f"sum of {name!r}", state["total"], kept),
        **{key: float(state[key]) for key in _MOMENT_SUMS},
        "dtype": str(moment.dtype).removeprefix("torch."),
        "provenance": {k: v for k, v in asdict(moment.provenance).items() if v},
    }
    if "extremes" in state:
        entry["extremes"] = {
            "rows": table.add(f"extremes of {name!r}", state["extreme_rows"], kept),
            "total": table.add(f"sum of extremes of {name!r}", state["extreme_total"], kept),
            "energies": table.add(f"energies of {name!r}", state["energies"], torch.float64),
            **dict(zip(_MOMENT_SUMS, state["extremes"].tolist(), strict=True)),
        }
    return entry


def plan_moment(entry: Fields) -> Build:
    """Check statistics: `total [dim]`, `outer [dim·(dim + 1)/2]`, three sums of at least zero."""
    name = entry.module("module")
    total = entry.tensor("total", None)
    dim = total.shape[0]
    outer = entry.tensor("outer", dim * (dim + 1) // 2)
    sums = _sums(entry)
    extremes = _extremes(entry, dim)
    dtype = ACTIVATION_DTYPES.get(entry.text("dtype"))
    if dtype is None:
        raise EditFileError(
            f"the dtype of statistics must be one of {', '.join(ACTIVATION_DTYPES)}"
        )
    provenance = _provenance(entry.mapping("provenance"))

    def build(tensors: Mapping[str, Tensor]) -> Mapping[str, Item]:
        state = {"outer_packed": outer.resolve(tensors), "total": total.resolve(tensors)}
        state |= {key: torch.tensor(value, dtype=torch.float64) for key, value in sums.items()}
        state |= extremes(tensors)
        return {name: SecondMoment.from_state(state, provenance, dtype)}

    return build


def _sums(entry: Fields) -> dict[str, float]:
    sums = {key: entry.number(key) for key in _MOMENT_SUMS}
    if min(sums.values()) < 0:
        raise EditFileError(f"the sums of statistics must not be negative, got {sums}")
    return sums


def _extremes(entry: Fields, dim: int) -> Callable[[Mapping[str, Tensor]], dict[str, Tensor]]:
    """Check what is kept of vectors of extreme energy: no field of version 1."""
    raw = entry.optional("extremes") if entry.context.version > 1 else None
    if raw is None:
        return lambda _: {}
    found = Fields(raw, "extremes", entry.context)
    rows, total = found.tensor("rows", None, dim), found.tensor("total", dim)
    energies, sums = found.tensor("energies", 2, None), _sums(found)
    found.finish()
    return lambda tensors: {
        "extreme_rows": rows.resolve(tensors),
        "extreme_total": total.resolve(tensors),
        "energies": energies.resolve(tensors),
        "extremes": torch.tensor(list(sums.values()), dtype=torch.float64),
    }


def _provenance(values: dict[str, object]) -> Provenance:
    known = {f.name for f in fields(Provenance)}
    if not values.keys() <= known:
        raise EditFileError(f"provenance has unknown fields {sorted(values.keys() - known)!r:.80}")
    # Above 2**63 − 1 torch's integers end, in which counts are added up over processes.
    tokens = values.pop("tokens", 0)
    if type(tokens) is not int or not 0 <= tokens < 1 << 63:
        raise EditFileError(f"provenance: tokens must be a whole number, got {tokens!r:.80}")
    texts: dict[str, Any] = {k: checked_text(v, f"provenance {k!r}") for k, v in values.items()}
    return Provenance(**texts, tokens=tokens)
