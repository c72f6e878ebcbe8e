"""Tables of the units that are done."""

import math
from collections.abc import Sequence
from typing import Any

from benchmarks.erasing.units import MAIN

Row = dict[str, Any]
# How many of each kind the study erases.
_KINDS = {"category": ("categories", 10), "colour": ("colours", 8), "style": ("styles", 4)}


def of(rows: Sequence[Row], what: str) -> list[Row]:
    """Units of one sort that were not refused."""
    return [row for row in rows if row["of"] == what and "refused" not in row]


def pooled(rows: Sequence[Row], name: str) -> tuple[int, int]:
    """How many of how many, over units."""
    counts = [row[name] for row in rows]
    return sum(c[0] for c in counts), sum(c[1] for c in counts)


def share(counts: Sequence[int]) -> str:
    """In per cent, and of how many."""
    return f"{counts[0] / counts[1]:.1%} of {counts[1]}" if counts[1] else "-"


def groups(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    """Erasures by what was erased and by method, in the order of the study."""
    found: dict[tuple[str, str], list[Row]] = {}
    erased = of(rows, "erased")
    for kind in dict.fromkeys(row["kind"] for row in erased):
        for method in MAIN:
            own = [row for row in erased if (row["kind"], row["method"]) == (kind, method)]
            if own:
                found[kind, method] = own
    return found


def erasing(rows: Sequence[Row]) -> str:
    """One line for each kind and method, pooled over what was erased."""
    lines = [
        "| erased | by | direct | implicit | before | others obeyed | before | others changed |",
        "|---|---|---|---|---|---|---|---|",
    ]
    plain = {row["concepts"][0]: row for row in of(rows, "plain")}
    for (kind, method), own in groups(rows).items():
        names = [name for row in own for name in row["concepts"]]
        before = pooled([plain[n] for n in dict.fromkeys(names) if n in plain], "implicit")
        changed = [row["changed"] for row in own]
        title = kind
        if kind in _KINDS:
            plural, every = _KINDS[kind]
            title = f"{len(own)} of {every} {plural}"
        lines.append(
            f"| {title} | {method} | {share(pooled(own, 'direct'))} | "
            f"{share(pooled(own, 'implicit'))} | {share(before)} | "
            f"{share(pooled(own, 'others'))} | {share(pooled(own, 'others before'))} | "
            f"{_changed(sum(changed) / len(changed))} |"
        )
    return "\n".join(lines) + "\n"


def each(rows: Sequence[Row]) -> str:
    """One line for each thing that was erased, by each method: direct / implicit / changed."""
    erased = of(rows, "erased")
    lines = [f"| erased | {' | '.join(MAIN)} |", "|---" * (1 + len(MAIN)) + "|"]
    for name in dict.fromkeys(_title(row) for row in erased):
        cells = []
        for method in MAIN:
            own = [r for r in erased if (_title(r), r["method"]) == (name, method)]
            cells.append(
                f"{own[0]['direct'][0]}/{own[0]['direct'][1]}, {own[0]['implicit'][0]}/"
                f"{own[0]['implicit'][1]}, {_changed(own[0]['changed'])}"
                if own
                else "-"
            )
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def returning(rows: Sequence[Row]) -> str:
    """Presence after each number of steps, for each learner and method."""
    found = of(rows, "returning")
    if not found:
        return ""
    steps = found[0]["steps"]
    heads = ["learner", "erased by", *(f"{s} steps" for s in steps), "back to half", "others kept"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for learner in found[0]["curves"]:
        for row in found:
            shown = [f"{share:.0%}" for _, share in row["curves"][learner]]
            half = row["half"][learner]
            told = "not at all" if half is None else f"after {half:.0f}"
            lines.append(
                f"| {learner} | {row['method']} | {' | '.join(shown)} | {told} | "
                f"{row['around'][1]:.0%} |"
            )
    return "\n".join(lines) + "\n"


def costs(rows: Sequence[Row]) -> str:
    """Seconds, memory and size at full size."""
    lines = [
        "| model | concepts | ours, s | published, s | time | peak, MB | its peak, MB | file |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in of(rows, "cost"):
        ours, peer = row["ours"], row["published"]
        lines.append(
            f"| {row['model']} | {row['concepts']} | {ours['seconds']:.2f} | "
            f"{peer['seconds']:.1f} | {ours['seconds'] / peer['seconds']:.4f} | "
            f"{ours['megabytes']:.0f} | {peer['megabytes']:.0f} | "
            f"{row['file'] / row['weights']:.4%} |"
        )
    return "\n".join(lines) + "\n"


def _title(row: Row) -> str:
    return " and ".join(row["concepts"]) if row["kind"] in _KINDS else str(row["kind"])


def _changed(value: float) -> str:
    return "0" if value == 0 else f"{value:.{max(2, 1 - math.floor(math.log10(value)))}f}"
