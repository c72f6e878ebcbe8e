"""Every judged picture of the study, with what it is of."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from personalisation.longer import FOLDER
from personalisation.tables import Point, Result, revisions
from rankedit.atomic import atomic_write

if TYPE_CHECKING:
    from personalisation.study import Study


def numbers(study: Study, concepts: Sequence[str], results: Mapping[str, Result]) -> dict[str, Any]:
    """The judges' marks of every picture of the tables but those of attention.

    `asked` of a row says which list of `prompts_and_seeds` it is in the order of; ablations and
    longer trainings are in that of `others`. `diversity` has one number for each prompt.
    """
    world, every = study.world, {concept.name: concept for concept in study.world.concepts()}
    asked = {
        which: {
            name: [[prompt.text, seed] for prompt, seed in own(every[name])] for name in concepts
        }
        for which, own in (("chosen", world.asked), ("others", world.curve))
    }
    return {
        "provenance": world.provenance() | {"revisions": revisions(study.folder)},
        "prompts_and_seeds": asked,
        "marks": {
            name: [*_rows(result.chosen, "chosen"),
                   *(row for p in result.points
                     if (p.step, p.scale) != (result.chosen.step, result.chosen.scale)
                     for row in _rows(p, "others"))]
            for name, result in results.items()
        },
        "further": {name: _further(result, concepts) for name, result in results.items()},
        "search": _files(study.folder / "search"),
        "pairs": _files(study.folder / "pairs"),
        "ablations": _files(study.folder / "ablations"),
        FOLDER: _files(study.folder / FOLDER),
    }  # fmt: skip


def _rows(point: Point, asked: str) -> list[dict[str, Any]]:
    return [
        {"step": point.step, "scale": point.scale, "concept": concept, "asked": asked,
         **short(marks)}
        for concept, marks in point.marks.items()
    ]  # fmt: skip


def _further(result: Result, concepts: Sequence[str]) -> dict[str, dict[str, list]]:
    return {
        concept: short({figure: rows[index] for figure, rows in result.further.items()})
        for index, concept in enumerate(concepts)
    }


def _files(folder: Path) -> dict[str, dict[str, Any]]:
    """By method and file the marks in it."""
    found: dict[str, dict[str, Any]] = {}
    for file in sorted(folder.glob("*/*.json")):
        result = json.loads(file.read_text())["result"]
        own = (
            [row | {"marks": short(row["marks"])} for row in result]
            if isinstance(result, list)
            else short(result)
        )
        found.setdefault(file.parent.name, {})[file.stem] = own
    return found


def short(marks: Mapping[str, Iterable[float | None]]) -> dict[str, list[float | int | None]]:
    """Three digits, and whole numbers as such: the file is kept in git."""
    return {
        name: [None if m is None else int(m) if m == int(m) else round(m, 3) for m in row]
        for name, row in marks.items()
    }


def write_json(file: Path, document: Mapping[str, Any]) -> None:
    """Write a document without spaces."""
    with atomic_write(file) as temporary:
        temporary.write_text(json.dumps(document, separators=(",", ":")), encoding="utf-8")
