"""The study's results as files: every number, the plots, tables in Markdown, and one HTML page."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from personalisation import plots
from personalisation.measures import DEFINITIONS
from personalisation.numbers import numbers, write_json
from personalisation.retraining import RETRAININGS, retraining_table
from personalisation.side_tables import ablation_table, attention_table, pair_table
from personalisation.study import Study
from personalisation.tables import Area, Figure, Result, areas, figure_of, results_of, revisions
from personalisation.telling import ABOVE, RATIO, compared
from rankedit.atomic import atomic_write

Rows = list[list[str]]

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 0 auto; padding: 1rem;
  color: #1d2330; background: #fff; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
img { max-width: 100%; height: auto; background: #fff; } .scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .8rem; }
caption { text-align: left; padding: .3rem 0; }
td, th { padding: .2rem .6rem; text-align: left; border-bottom: 1px solid #dde1e8;
  white-space: nowrap; font-variant-numeric: tabular-nums; }
dt { font-weight: 600; } dd { margin: 0 0 .4rem 1rem; }
@media (prefers-color-scheme: dark) { body { color: #e4e7ee; background: #14171d; }
  td, th { border-color: #303644; } }
"""

MAIN = ("identity", "text", "category", "scene", "other", "colour", "relation")
MORE = ("clip_i", "clip_t", "diversity", "off_kept", "off_changed", "leak")
COSTS = ("kilobytes", "train_seconds", "train_megabytes", "overhead")


def write_results(study: Study, folder: Path) -> None:
    """Write what is there so far; nothing if no concept was judged with every method.

    Args:
        study: the study.
        folder: of the results.
    """
    concepts, results = results_of(study)
    if not concepts:
        print("comparison: no concept was judged with every method yet; run it again to go on")
        return
    folder.mkdir(parents=True, exist_ok=True)
    methods = list(study.methods)
    sections = _sections(study, results, methods)
    _pictures(study, results, methods, folder)
    summary = _summary(study, concepts, results, sections)
    write_json(folder / "summary.json", summary)
    (folder / "tables.md").write_text("\n\n".join(compared(summary)) + "\n", encoding="utf-8")
    write_json(folder / "numbers.json", numbers(study, concepts, results))
    with atomic_write(folder / "index.html") as temporary:
        temporary.write_text(_page(study, concepts, sections, folder), encoding="utf-8")
    print(_markdown(sections))
    size = sum(file.stat().st_size for file in folder.iterdir()) / 1e6
    print(f"written to {folder}: {size:.2f} MB")


# ---------------------------------------------------------------------------- tables


def _sections(
    study: Study, results: Mapping[str, Result], methods: Sequence[str]
) -> dict[str, Rows]:
    """By title a table; the first row is its head."""
    found = {
        "What is asked for": _figures(results, MAIN),
        "Similarity by CLIP, diversity, damage off the concept": _figures(results, MORE),
        "Cost": _figures(results, COSTS, only=methods),
        "Settings chosen by the search": [
            ["method", "setting"], *([name, results[name].choice] for name in methods),
        ],
        "Hypervolume": _areas(results, methods),
    }  # fmt: skip
    pairs = pair_table(study)
    if pairs:
        found["Two concepts in one picture"] = _generic(pairs)
    ablated = ablation_table(study)
    if ablated:
        found["Ablations"] = _ablations(ablated)
    for kind in RETRAININGS:
        again = retraining_table(kind, study, results)
        if again:
            found[kind.title] = _retrained(again)
    attended = attention_table(study)
    if attended:
        found["Attention to the concept's word"] = _generic(attended)
    return found


def _figures(results: Mapping[str, Result], names: Sequence[str], only: Sequence[str] = ()) -> Rows:
    rows = [["", *names]]
    for name, result in results.items():
        figures = result.figures()
        if any(figure in figures for figure in names) and (not only or name in only):
            rows.append([name, *(_cell(figures.get(figure)) for figure in names)])
    return rows


def _cell(figure: Figure | None) -> str:
    if figure is None:
        return ""
    digits = 0 if abs(figure.mean) >= 100 else 1 if abs(figure.mean) >= 10 else 2
    return f"{figure.mean:.{digits}f} [{figure.low:.{digits}f}, {figure.high:.{digits}f}]"


def _areas(results: Mapping[str, Result], methods: Sequence[str]) -> Rows:
    kinds = {
        "judges, above both trivial methods": ("judges", False),
        "judges, above (0, 0)": ("judges", True),
        "CLIP, above both trivial methods": ("CLIP", False),
    }
    found = {
        title: areas(results, methods, plane, zero=zero) for title, (plane, zero) in kinds.items()
    }
    rows = [["", *kinds, RATIO, ABOVE]]
    perfusion = results["Perfusion"].chosen
    by_judges = next(iter(found.values()))
    for name in methods:
        cells = [_area(own[name]) for own in found.values()]
        above = figure_of(perfusion.gained(results[name].chosen))
        beside = [_cell(by_judges[name].ratio), _cell(above)] if name != "Perfusion" else ["", ""]
        rows.append([name, *cells, *beside])
    best = [max(own.values(), key=_baseline) for own in found.values()]
    last = ["Perfusion / best baseline", *(_cell(area.ratio) for area in best), "", ""]
    return [*rows, last]


def _baseline(area: Area) -> float:
    """Its area; those that nothing is compared with come last."""
    return area.value.mean if area.ratio else -1.0


def _area(area: Area) -> str:
    return f"{area.value.mean:.3f} [{area.value.low:.3f}, {area.value.high:.3f}]"


def _generic(table: Mapping[str, Mapping[str, Figure]]) -> Rows:
    names = list(next(iter(table.values())))
    return [["", *names], *([row, *(_cell(own[n]) for n in names)] for row, own in table.items())]


def _ablations(table: Mapping[str, Mapping[str, Any]]) -> Rows:
    names = ("identity", "text", "category")
    rows = [["", "harmonic mean", "area above (0, 0)", *names, "at scale", "identity gained"]]
    for name, own in table.items():
        cells = [f"{own['balance']:.3f}", f"{own['area']:.3f}"]
        cells += [_cell(own[figure]) for figure in names]
        rows.append([name, *cells, f"{own['scale']:g}", _cell(own["gained"])])
    return rows


def _retrained(table: Mapping[str, Mapping[str, Any]]) -> Rows:
    head = ["", "identity", "text", "identity gained", "at scale"]
    rows = [[*head, "hypervolume", "that of the usual training", RATIO]]
    for name, own in table.items():
        cells = [_cell(own[figure]) for figure in ("identity", "text", "gained")]
        after = own["now"]
        both = [_area(after), _area(own["usual"])]
        rows.append([name, *cells, f"{own['scale']:g}", *both, _cell(after.ratio)])
    return rows


def _markdown(sections: Mapping[str, Rows]) -> str:
    parts = []
    for title, (head, *rows) in sections.items():
        lines = [f"### {title}", "", _line(head), _line(["---"] * len(head)), *map(_line, rows), ""]
        parts.append("\n".join(lines))
    return "\n".join(parts)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


# ---------------------------------------------------------------------------- files


def _pictures(
    study: Study, results: Mapping[str, Result], methods: Sequence[str], folder: Path
) -> None:
    plots.save(plots.trade_off(results, methods, "judges"), folder / "trade-off.png")
    plots.save(plots.trade_off(results, methods, "CLIP"), folder / "trade-off-clip.png")
    ablated = ablation_table(study)
    if ablated:
        plots.save(plots.ablation_plot(ablated), folder / "ablations.png")
    attended = sorted((study.folder / "attention").glob("*.json"))
    if attended:
        result = json.loads(attended[0].read_text())["result"]
        plots.save(plots.attention_plot(result), folder / "attention.png", dpi=80)
    plots.save(plots.samples(study, study.world.concepts()[0]), folder / "samples.png")


def _summary(
    study: Study,
    concepts: Sequence[str],
    results: Mapping[str, Result],
    sections: Mapping[str, Rows],
) -> dict[str, Any]:
    return {
        "provenance": study.world.provenance() | {"revisions": list(revisions(study.folder))},
        "definitions": DEFINITIONS,
        "concepts": list(concepts),
        "methods": {
            name: {
                "choice": result.choice,
                "figures": {n: asdict(figure) for n, figure in result.figures().items()},
                "points": [
                    {"step": point.step, "scale": point.scale}
                    | {n: round(point.mean(n), 4) for n in ("text", "identity", "clip_t", "clip_i")}
                    for point in result.points
                ],
            }
            for name, result in results.items()
        },
        "tables": sections,
    }


def _page(study: Study, concepts: Sequence[str], sections: Mapping[str, Rows], folder: Path) -> str:
    shown = {
        "Concept fidelity against text fidelity": "trade-off.png",
        "The same by the sandbox's CLIP": "trade-off-clip.png",
        "Pictures at the chosen settings": "samples.png",
        "Ablations of Perfusion": "ablations.png",
        "Attention to the concept's word": "attention.png",
    }
    figures = "".join(
        f"<h2>{html.escape(title)}</h2>{_image(folder / name, title)}"
        for title, name in shown.items()
        if (folder / name).exists()
    )
    tables = "".join(_table(title, rows) for title, rows in sections.items())
    terms = "".join(
        f"<dt>{html.escape(name)}</dt><dd>{html.escape(text)}</dd>"
        for name, text in DEFINITIONS.items()
    )
    plan = html.escape(json.dumps(study.world.provenance()))
    note = (
        f"{len(concepts)} concepts: {', '.join(concepts)}. In brackets bootstrap 95 % intervals "
        "over concepts and pictures."
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Perfusion against baselines</title><style>{_STYLE}</style></head><body>"
        f"<h1>Perfusion against baselines, on the sandbox</h1><p>{html.escape(note)}</p>{figures}"
        f"<h2>Tables</h2>{tables}<h2>Definitions</h2><dl>{terms}</dl>"
        f"<h2>Provenance</h2><p><code>{plan}</code></p></body></html>\n"
    )


def _image(file: Path, title: str) -> str:
    data = base64.b64encode(file.read_bytes()).decode()
    return f'<img alt="{html.escape(title, quote=True)}" src="data:image/png;base64,{data}">'


def _table(title: str, rows: Rows) -> str:
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in rows[0])
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
        for row in rows[1:]
    )
    return (
        f'<div class="scroll"><table><caption>{html.escape(title)}</caption>'
        f"<tr>{head}</tr>{body}</table></div>"
    )
