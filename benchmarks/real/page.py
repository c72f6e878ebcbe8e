"""The results as tables, a picture and a section of the documentation."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from editing.page import TOGETHER, compact, table
from editing.rows import Row
from rankedit_recipes.language.evaluating.scores import Scores, joined
from rankedit_recipes.language.showing.plots import growth_figure, png
from rankedit_recipes.language.showing.reporting import Table

from rankedit.atomic import atomic_write
from real.study import PROMPTED, TUNED, UNEDITED, Plan

MARKS = ("<!-- real: begin -->\n", "<!-- real: end -->\n")
SHOWN = (
    "free generation", "paraphrase free generation", "neighbourhood free generation", "efficacy",
    "paraphrase", "neighbourhood", "locality",
)  # fmt: skip
LABELS = {
    UNEDITED: "unedited model",
    PROMPTED: "the fact in the prompt",
    TUNED: "fine-tuning, breadth first",
    "memit": "MEMIT",
    "alphaedit": "AlphaEdit",
    "rome": "ROME",
    "encore": "ENCORE",
    "emmet": "EMMET",
}
SINGLE = {"efficacy": 100, "free generation": 90, "paraphrase": 92, "neighbourhood": -3,
          "locality": 2}  # fmt: skip
BATCHES = {
    50: {"efficacy": 98, "free generation": 85, "paraphrase": 88, "neighbourhood": -6,
         "locality": 20},
    250: {"efficacy": 90},
}  # fmt: skip
"""What defaults are to reach: locality at most, neighbourhood so many points below unedited."""


def label(name: str) -> str:
    """How a row is called."""
    method, _, tokens = name.partition("-") if name not in LABELS else (name, "", "")
    return LABELS.get(method, method) + (f", {int(tokens):,} tokens" if tokens else "")


def singles(rows: Mapping[str, Row]) -> dict[str, Scores]:
    """Scores of one edit at a time by name: of all cases that a row is there of."""
    parts: dict[str, list[Scores]] = defaultdict(list)
    for key, row in sorted(rows.items()):
        if key.startswith("single-"):
            parts[key.removeprefix("single-").rpartition("-")[0]].append(row.last)
    return {name: joined(found) for name, found in parts.items()}


def batches(rows: Mapping[str, Row], size: int) -> dict[str, Row]:
    """The rows of a batch of this size by name."""
    end = f"-{size:03}"
    return {
        key.removeprefix("batch-").removesuffix(end): row
        for key, row in rows.items()
        if key.startswith("batch-") and key.endswith(end)
    }


def tables(rows: Mapping[str, Row], plan: Plan) -> dict[str, Table]:
    """All tables by their titles; those without a row are left out."""
    alone = singles(rows)
    made = {"Against what is wanted": _wanted(rows, alone)}
    made["One edit at a time"] = table(
        {f"{label(name)} ({len(found.names)})": found for name, found in alone.items()},
        "In brackets behind a name: how many facts.", SHOWN,
    )  # fmt: skip
    for size in plan.sizes:
        found = {label(name): row.last for name, row in batches(rows, size).items()}
        made[f"A batch of {size}"] = table(found, TOGETHER, SHOWN)
    made["What the model can still do"] = _capability(rows, plan)
    made["A stream, against one batch of the same facts"] = _streams(rows)
    made["Not computed yet"] = _missing(rows, plan)
    return {title: part for title, part in made.items() if part.rows}


def _wanted(rows: Mapping[str, Row], alone: Mapping[str, Scores]) -> Table:
    lines: list[tuple[str, ...]] = []
    if UNEDITED in alone:
        for name in ("memit", "alphaedit", "rome"):
            if name in alone:
                lines += _compared(f"{label(name)}, one", alone[name], alone[UNEDITED], SINGLE)
    for size, wanted in BATCHES.items():
        found = batches(rows, size)
        for name in ("memit", "alphaedit"):
            if name in found and UNEDITED in found:
                pair = (found[name].last, found[UNEDITED].last)
                lines += _compared(f"{label(name)}, {size}", *pair, wanted)
    return Table(("", "found", "wanted", ""), lines, "By the methods' defaults alone.")


def _compared(
    name: str, found: Scores, before: Scores, wanted: Mapping[str, float]
) -> list[tuple[str, ...]]:
    lines = []
    for measure, bound in wanted.items():
        if measure not in found.figures:
            continue
        value = found[measure]
        most = measure == "locality"
        least = before[measure] + bound if measure == "neighbourhood" else float(bound)
        reached = value <= least if most else value >= least
        sign = "≤" if most else "≥"
        lines.append((f"{name}: {measure}", f"{value:.1f}", f"{sign} {least:.1f}",
                      "reached" if reached else "missed"))  # fmt: skip
    return lines


def _capability(rows: Mapping[str, Row], plan: Plan) -> Table:
    before = rows.get("capability-unedited")
    if before is None:
        return Table((), ())
    lines = [_able(label(UNEDITED), before.numbers, before.numbers)]
    for size in plan.sizes:
        lines += [
            _able(f"{label(name)}, {size}", row.numbers, before.numbers)
            for name, row in batches(rows, size).items()
            if "perplexity" in row.numbers
        ]
    note = "Perplexity of Python's documentation, which no statistics are of, and its change."
    return Table(("", "perplexity", "change", "cloze, % right"), lines, note)


def _able(name: str, now: Mapping[str, Any], before: Mapping[str, Any]) -> tuple[str, ...]:
    change = now["perplexity"] / before["perplexity"] - 1
    return (name, f"{now['perplexity']:.2f}", f"{change:+.1%}", f"{now['cloze']:.1f}")


def _streams(rows: Mapping[str, Row]) -> Table:
    lines = [
        (label(key.removeprefix("stream-")), f"{row.settings['facts']}",
         f"{row.numbers['difference to a batch']:.1e}")
        for key, row in rows.items()
        if key.startswith("stream-")
    ]  # fmt: skip
    note = "Relative difference of the weights: the scores of a stream are those of the batch."
    return Table(("", "facts", "difference"), lines, note)


def _missing(rows: Mapping[str, Row], plan: Plan) -> Table:
    """What the plan has and no row is there of."""
    lines = []
    alone = singles(rows)
    for name in (*plan.methods, PROMPTED, TUNED):
        count = len(alone[name].names) if name in alone else 0
        if count < plan.single:
            lines.append((f"{label(name)}, one at a time", f"{plan.single - count} facts"))
    for size in plan.sizes:
        found = batches(rows, size)
        lacking = [label(name) for name in (*plan.methods, TUNED) if name not in found]
        if lacking:
            lines.append((f"batch of {size}", ", ".join(lacking)))
    return Table(("what", "lacks"), lines, "`make bench-real` goes on with these.")


def curves(rows: Mapping[str, Row], plan: Plan) -> dict[str, dict[int, Scores]]:
    """Scores against the number of facts that are edited together, by method."""
    alone = singles(rows)
    names = [*plan.methods, TUNED, PROMPTED]
    found = {name: {1: alone[name]} if name in alone else {} for name in names}
    for size in plan.sizes:
        for name, row in batches(rows, size).items():
            if name in found:
                found[name][size] = row.last
    return {label(name): curve for name, curve in found.items() if curve}


def write(
    rows: Mapping[str, Row], plan: Plan, folder: Path, page: Path | None, facts: Mapping[str, str]
) -> None:
    """Write the figures and the picture; put the tables into the documentation, if it is given."""
    folder.mkdir(parents=True, exist_ok=True)
    made = tables(rows, plan)
    lines = curves(rows, plan)
    if lines:
        measures = ("free generation", "paraphrase", "neighbourhood")
        base = singles(rows).get(UNEDITED)
        picture = growth_figure(lines, measures, base=base)
        (folder / "curves.png").write_bytes(png(picture, resolution=80))
    told = {key: compact(row) for key, row in rows.items()}
    with atomic_write(folder / "results.json") as temporary:
        temporary.write_text(json.dumps({"facts": dict(facts), "rows": told}, indent=1) + "\n")
    if page is not None:
        _document(made, page, facts)


def _document(made: Mapping[str, Table], page: Path, facts: Mapping[str, str]) -> None:
    text = page.read_text(encoding="utf-8")
    before, _, rest = text.partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    if not after:
        raise ValueError(f"'{page}' has no '{MARKS[0].strip()}' with its end; put them in.")
    parts: Sequence[str] = [
        f"### {title}\n\n{part.markdown()}" + (f"\n{part.note}\n" if part.note else "")
        for title, part in made.items()
    ]
    said = "\n".join([*parts, "; ".join(f"{name}: {value}" for name, value in facts.items())])
    with atomic_write(page) as temporary:
        temporary.write_text(f"{before}{MARKS[0]}\n{said}.\n\n{MARKS[1]}{after}", encoding="utf-8")
