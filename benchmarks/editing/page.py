"""The results as tables, pictures and one page."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rankedit_recipes.language.evaluating.measures import MEASURES
from rankedit_recipes.language.evaluating.scores import Scores
from rankedit_recipes.language.evaluating.tracing import Trace
from rankedit_recipes.language.showing.plots import (
    growth_figure,
    png,
    relations_figure,
    trace_figure,
)
from rankedit_recipes.language.showing.reporting import Report, Table

from editing.rows import Row
from editing.world import MANY
from rankedit.atomic import atomic_write

SHOWN = (
    "score", "efficacy", "paraphrase", "inverted phrasing", "neighbourhood", "efficacy accuracy",
    "neighbourhood accuracy", "locality", "generation entropy",
)  # fmt: skip
MARKS = ("<!-- results: begin -->\n", "<!-- results: end -->\n")

BRACKETS = "In brackets: bootstrap interval of 95 % over cases."
TOGETHER = (
    "Neighbourhood: without the prompts about facts that are edited at the same time, whose "
    "answers are meant to change."
)
PARTS = ("efficacy", "paraphrase", "inverted phrasing", "neighbourhood")

LABELS = {
    "unedited": "unedited model",
    "rome": "ROME",
    "r-rome": "r-ROME",
    "memit": "MEMIT",
    "encore": "MEMIT, ENCORE's stop and ridge",
    "emmet": "EMMET",
    "alphaedit": "AlphaEdit",
    "ft": "fine-tuning one layer",
    "ft-l": "fine-tuning, norm-constrained",
    "lora": "LoRA (PEFT)",
    "rome-identity": "ROME with C = I",
    "rome-inconsistent": "ROME, inconsistent key",
    "memit-identity": "MEMIT with C = I",
}

_STREAMS = {"stream-memit": "MEMIT", "stream-alphaedit": "AlphaEdit",
            "plain-memit": "plain sequential MEMIT"}  # fmt: skip


def label(name: str) -> str:
    """How a row is called."""
    if name in LABELS:
        return LABELS[name]
    method, _, share = name.rpartition("-")
    if not share.endswith("%"):
        return name  # a method of one's own, as it was asked for
    return f"{LABELS.get(method, method)}, {share} of the statistics"


def scores_of(rows: Mapping[str, Row], start: str) -> dict[str, Scores]:
    """Scores of the rows whose key begins so, by what follows."""
    return {
        label(key.removeprefix(start)): row.last
        for key, row in rows.items()
        if key.startswith(start) and row.scores
    }


def table(every: Mapping[str, Scores], note: str = "", shown: Sequence[str] = SHOWN) -> Table:
    """A row for each model; measures with 95 % intervals."""
    names = [n for n in shown if any(n in s.figures for s in every.values())]
    lines = [
        (name, *(s.figures[n].text(MEASURES[n]) if n in s.figures else "" for n in names))
        for name, s in every.items()
    ]
    return Table(("", *names), lines, f"{note} {BRACKETS}".strip())


def tables(rows: Mapping[str, Row]) -> dict[str, Table]:
    """All tables by their titles."""
    made = {
        "Targets": _targets(rows),
        "One edit at a time": table(scores_of(rows, "single-")),
        "A batch": table(scores_of(rows, "batch-"), TOGETHER),
        "A stream of batches of ten, at its end": table(_stream_ends(rows), TOGETHER),
        "Why a batch is harder here": _sharing(rows),
        "After undoing half of the stream": _undo(rows),
        "Cost": _costs(rows),
    }
    return {title: made_table for title, made_table in made.items() if made_table.rows}


def _targets(rows: Mapping[str, Row]) -> Table:
    """What the methods should reach here, and what they do."""
    wanted = (
        ("ROME, one at a time", "single-rome", "single-unedited", (99, 90, 3)),
        ("MEMIT, batch of 500", "batch-memit", "batch-unedited", (97, 88, 5)),
        ("AlphaEdit, batch of 500", "batch-alphaedit", "batch-unedited", (97, 88, 5)),
    )
    lines = []
    for name, key, base, (efficacy, paraphrase, points) in wanted:
        if key not in rows or base not in rows:
            continue
        found, before = rows[key].last, rows[base].last
        least = (efficacy, paraphrase, before["neighbourhood"] - points)
        measures = ("efficacy", "paraphrase", "neighbourhood")
        for measure, bound in zip(measures, least, strict=True):
            value = found[measure]
            said = "reached" if value >= bound else "missed"
            lines.append((f"{name}: {measure}", f"{value:.1f}", f"≥ {bound:.1f}", said))
    return Table(("", "found", "wanted", ""), lines)


def _streams(rows: Mapping[str, Row]) -> dict[str, str]:
    """Names of the methods with a stream, by the keys of their rows; one's own come last."""
    own = [key for key in rows if key.startswith("stream-") and key not in _STREAMS]
    names = _STREAMS | {key: label(key.removeprefix("stream-")) for key in own}
    return {key: name for key, name in names.items() if key in rows}


def _stream_ends(rows: Mapping[str, Row]) -> dict[str, Scores]:
    found = {}
    for key, name in _streams(rows).items():
        curve = _curve(rows[key])
        how = name if key.startswith("plain") else f"{name} on a ledger"
        found[f"{how}, {max(curve)} edits"] = curve[max(curve)]
    return found


def _curve(row: Row) -> dict[int, Scores]:
    return {int(n): scores for n, scores in row.scores.items() if n.isdigit()}


def _undo(rows: Mapping[str, Row]) -> Table:
    lines = []
    for key, name in _streams(rows).items():
        row = rows[key]
        if "kept, after" not in row.scores:
            continue
        for part in ("kept, before", "kept, after"):
            s = row.scores[part]
            lines.append((f"{name}: facts that stay, {part[6:]}", *_numbers(s, PARTS)))
        for part in ("undone, before", "undone, after", "undone, unedited"):
            s = row.scores[part]
            lines.append((f"{name}: old answers of the undone facts, {part[8:]}",
                          *_numbers(s, PARTS[:-1]), ""))  # fmt: skip
        apart = row.numbers["difference to never added"]
        lines.append((f"{name}: weights, relative difference to never having added them",
                      f"{apart:.1e}", *[""] * (len(PARTS) - 1)))  # fmt: skip
    return Table(("", *PARTS), lines, TOGETHER)


def _numbers(scores: Scores, names: Sequence[str]) -> list[str]:
    return [f"{scores[name]:.1f}" if name in scores.figures else "" for name in names]


def _sharing(rows: Mapping[str, Row]) -> Table:
    row = rows.get("sharing")
    if row is None:
        return Table((), ())
    n = row.numbers
    note = (
        f"The {MANY} subjects end in {n['last words']:.0f} words. Mean cosine of keys under the "
        f"metric: {n['cosine, same last word']:.2f} for two subjects with the same last word, "
        f"{n['cosine, others']:.2f} for others. {TOGETHER}"
    )
    return table(row.scores, note)


def _costs(rows: Mapping[str, Row]) -> Table:
    if "costs" not in rows:
        return Table((), ())
    n = rows["costs"].numbers
    pairs = (
        ("statistics of all layers: one pass against one pass for each", "statistics, one pass",
         "statistics, layer by layer", "s"),
        ("search for values, per fact: 48 together against one by one",
         "seconds per fact, together", "seconds per fact, one by one", "s"),
        ("memory of the search: 48 together against one by one", "peak MB, together",
         "peak MB, one by one", "MB"),
        ("size: edits of one fact against the whole model", "bytes per fact",
         "bytes of the model", "bytes"),
    )  # fmt: skip
    lines = [
        (what, f"{n[ours] / n[theirs]:.3g}", f"{n[ours]:.3g} {unit}", f"{n[theirs]:.3g} {unit}")
        for what, ours, theirs, unit in pairs
    ]
    return Table(("", "ratio", "first", "second"), lines, "Processor time of one thread.")


def traced(rows: Mapping[str, Row]) -> Trace | None:
    """The causal trace."""
    if "trace" not in rows:
        return None
    n = rows["trace"].numbers
    grids = {kind: torch.tensor(grid) for kind, grid in n["effects"].items()}
    return Trace(grids, n["clean"], n["disturbed"], n["facts"])


def curves(rows: Mapping[str, Row]) -> dict[str, dict[int, Scores]]:
    """Scores against the number of edits."""
    return {
        "MEMIT, plain" if key.startswith("plain") else f"{name}, ledger": _curve(rows[key])
        for key, name in _streams(rows).items()
    }


def write(
    rows: Mapping[str, Row], folder: Path, page: Path | None, facts: Mapping[str, str]
) -> None:
    """Write figures, tables and the page; put the tables into the documentation, if it is given."""
    folder.mkdir(parents=True, exist_ok=True)
    made, base = tables(rows), rows.get("batch-unedited")
    pictures: dict[str, Any] = {}
    trace = traced(rows)
    if trace is not None:
        pictures["trace"] = trace_figure(trace)
    if curves(rows):
        pictures["stream"] = growth_figure(curves(rows), base=base.last if base else None)
    best = rows.get("batch-memit")
    if best is not None:
        pictures["relations"] = relations_figure(best.last)
    for name, picture in pictures.items():
        (folder / f"{name}.png").write_bytes(png(picture, resolution=80))
    told = {key: compact(row) for key, row in rows.items()}
    with atomic_write(folder / "results.json") as temporary:
        temporary.write_text(json.dumps({"facts": dict(facts), "rows": told}, indent=1) + "\n")
    Report(
        title="Editing facts of the sandbox's language model",
        scores={} if best is None else {"MEMIT, batch": best.last},
        base=None if base is None else base.last,
        curves=curves(rows),
        trace=trace,
        tables=made,
        settings=facts,
    ).save(folder / "index.html")
    if page is not None:
        _document(made, page)


def _document(made: Mapping[str, Table], page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    before, _, rest = text.partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    said = "\n".join(
        f"### {title}\n\n{part.markdown()}" + (f"\n{part.note}\n" if part.note else "")
        for title, part in made.items()
    )
    page.write_text(f"{before}{MARKS[0]}\n{said}\n{MARKS[1]}{after}", encoding="utf-8")


def compact(row: Row) -> dict[str, Any]:
    """A row without what each case gave."""
    scores = {
        part: {
            name: [round(f.value, 3), round(f.low, 3), round(f.high, 3), f.count]
            for name, f in found.figures.items()
        }
        for part, found in row.scores.items()
    }
    return {"scores": scores, "numbers": dict(row.numbers), "settings": dict(row.settings)}


def machine() -> str:
    """What the figures were computed with."""
    return f"Python {platform.python_version()}, torch {torch.__version__}, one thread"
