"""The tables beside the main one: two concepts in one picture, ablations, attention."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from personalisation.ablations import PLAIN
from personalisation.choosing import slug
from personalisation.fronts import hypervolume
from personalisation.pairs import PAIRED
from personalisation.study import Study
from personalisation.tables import Figure, Point, differences, figure_of, points_of, read
from personalisation.telling import OFTENER


def pair_table(study: Study) -> dict[str, dict[str, Figure]]:
    """Two concepts in one picture, by method, on the pairs that all methods have.

    How much more often Perfusion is right is counted picture by picture.
    """
    files = {name: _files(study.folder / "pairs" / slug(name)) for name in PAIRED}
    shared = set.intersection(*(set(own) for own in files.values()))
    if not shared:
        return {}
    every = {name: [read(own[pair]) for pair in sorted(shared)] for name, own in files.items()}
    perfusion = [result["both_right"] for result in every["Perfusion"]]
    found = {}
    for name, results in every.items():
        rows = {figure: [result[figure] for result in results] for figure in results[0]}
        rows[OFTENER] = differences(perfusion, rows["both_right"])
        found[name] = {figure: figure_of(own) for figure, own in rows.items()}
    return found


def ablation_table(study: Study) -> dict[str, dict[str, Any]]:
    """Each change at its own best scale by the harmonic mean, on the concepts that all have.

    `gained` is the identity above that of the recipe as it is at its best, picture by picture; it
    may have been bought with text, which the harmonic mean (`balance`) shows.
    """
    files = {name: _files(study.folder / "ablations" / slug(name)) for name in study.ablations}
    files = {name: own for name, own in files.items() if own}
    shared = sorted(set.intersection(*(set(own) for own in files.values()))) if files else []
    if not shared or PLAIN not in files:
        return {}
    points = {
        name: points_of({concept: read(own[concept]) for concept in shared})
        for name, own in files.items()
    }
    best = {name: max(own, key=Point.balance) for name, own in points.items()}
    return {
        name: {
            "scale": own.scale,
            "balance": own.balance(),
            "area": hypervolume([(p.mean("text"), p.mean("identity")) for p in points[name]]),
            "concepts": len(shared),
            **{figure: figure_of(own.of(figure)) for figure in ("identity", "text", "category")},
            "gained": figure_of(own.gained(best[PLAIN])),
            "points": [[p.scale, p.mean("text"), p.mean("identity")] for p in points[name]],
        }
        for name, own in best.items()
    }


def attention_table(study: Study) -> dict[str, dict[str, Figure]]:
    """How much of the picture each method's word takes, and how much of that on its object."""
    rows: dict[str, list[Mapping[str, Any]]] = {}
    for file in _files(study.folder / "attention").values():
        for name, result in read(file).items():
            rows.setdefault(name, []).append(result)
    return {
        name: {part: figure_of([row[part] for row in own]) for part in ("taken", "inside")}
        for name, own in rows.items()
    }


def _files(folder: Path) -> dict[str, Path]:
    return {file.stem: file for file in sorted(folder.glob("*.json"))}
