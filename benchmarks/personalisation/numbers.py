"""Every judged picture of the study, with what it is of."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from personalisation.pairs import asked as pair_prompts
from personalisation.prompts import Prompt
from personalisation.retraining import RETRAININGS
from personalisation.study import Study
from personalisation.tables import Point, Result, revisions
from rankedit.atomic import atomic_write


def numbers(study: Study, concepts: Sequence[str], results: Mapping[str, Result]) -> dict[str, Any]:
    """The judges' marks of every picture of the tables, with its prompt, seed and revision.

    `asked` of a row says which list of `prompts_and_seeds` it is in the order of; ablations and
    retrainings are in that of `others`, `leak` in that of `plain`. `diversity` has one number for
    each prompt.
    """
    world = study.world
    return {
        "provenance": world.provenance() | {"training_seed": world.settings(0.0).seed},
        "files_by_revision": revisions(study.folder),
        "prompts_and_seeds": _asked(study, concepts),
        "marks": {
            name: [*_rows(result.chosen, "chosen"),
                   *(row for p in result.points
                     if (p.step, p.scale) != (result.chosen.step, result.chosen.scale)
                     for row in _rows(p, "others"))]
            for name, result in results.items()
        },
        "further": {name: _further(result, concepts) for name, result in results.items()},
        "attention": _attention(study.folder / "attention"),
        **{
            name: _files(study.folder / name)
            for name in ("search", "pairs", "ablations", *(kind.folder for kind in RETRAININGS))
        },
    }  # fmt: skip


def _asked(study: Study, concepts: Sequence[str]) -> dict[str, dict[str, list]]:
    """By list and concept its prompts and seeds; those of pairs have the concepts' places."""
    world, every = study.world, {concept.name: concept for concept in study.world.concepts()}
    lists = {"chosen": world.asked, "others": world.curve, "off": world.off, "plain": world.plain}
    found = {
        which: {name: _told(own(every[name])) for name in concepts} for which, own in lists.items()
    }
    found["search"] = {c.name: _told(world.searched(c)) for c in world.search_concepts()}
    found["pairs"] = {"all": _told(pair_prompts("{first}", "{second}", world.plan.pair_pictures))}
    return found


def _told(asked: Sequence[tuple[Prompt, int]]) -> list[list]:
    return [[prompt.text, seed] for prompt, seed in asked]


def _attention(folder: Path) -> dict[str, dict[str, dict[str, list]]]:
    """By concept and method the shares of each picture; the maps are in the figure."""
    return {
        file.stem: {
            name: short({part: own[part] for part in ("taken", "inside")})
            for name, own in json.loads(file.read_text())["result"].items()
        }
        for file in sorted(folder.glob("*.json"))
    }


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
