"""Many concepts learned one after the other, by one process or several, with one table of all."""

from __future__ import annotations

import json
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import rankedit as rk
from rankedit.atomic import atomic_write
from rankedit_recipes.command_line.counting import counted
from rankedit_recipes.diffusion.scoring import Scorer
from rankedit_recipes.diffusion.statistics import load_moment, second_moment
from rankedit_recipes.diffusion.text import Pipeline
from rankedit_recipes.perfusion.commands.opening import check_category
from rankedit_recipes.perfusion.commands.words import derived_placeholder
from rankedit_recipes.perfusion.errors import PerfusionError
from rankedit_recipes.perfusion.learning.config import Config
from rankedit_recipes.perfusion.learning.photos import load_photos
from rankedit_recipes.perfusion.learning.training import HISTORY, learn
from rankedit_recipes.perfusion.learning.validation import Validation

_FIELDS = {"photos", "category", "placeholder", "settings"}
# Steps at either end over which the loss is averaged: one alone is noise.
_STEPS = 20


@dataclass(frozen=True)
class Wanted:
    """One concept of a list.

    Attributes:
        name: of its files.
        photos: a folder, or a photo.
        category: what kind of thing it is.
        placeholder: the word for it.
        settings: of learning, other than those of the whole list.
    """

    name: str
    photos: str
    category: str
    placeholder: str
    settings: Mapping[str, Any] = field(default_factory=dict)


def read_list(path: Path, model: str) -> list[Wanted]:
    """The concepts of a TOML file: a table for each, with `photos` and `category`.

    Paths are from the file's own folder.

    Raises:
        PerfusionError: no such list, or something is wrong with one of its concepts.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PerfusionError(f"learn-many: '{path}' is no TOML: {error}.") from error
    found = [_wanted(path, name, table, model) for name, table in tables.items()]
    words = [wanted.placeholder for wanted in found]
    twice = next((word for word in words if words.count(word) > 1), "")
    if not found or twice:
        what = f"two of {twice!r}" if twice else "none"
        raise PerfusionError(
            f"learn-many: '{path}' must have concepts of different words, got {what}; write "
            '[bean] and below it photos = "photos/bean" and category = "cat".'
        )
    return found


def _wanted(path: Path, name: str, table: object, model: str) -> Wanted:
    given = table if isinstance(table, dict) else {}
    texts = [given.get(key, "") for key in ("photos", "category", "placeholder")]
    wrong = not all(isinstance(text, str) for text in texts) or not (texts[0] and texts[1])
    if wrong or given.keys() - _FIELDS or Path(name).name != name or not name.strip("."):
        raise PerfusionError(
            f"learn-many: [{name}] of '{path}' must have photos and category, and may have "
            f"placeholder and settings, got {table!r:.200}."
        )
    photos = path.parent / texts[0]
    load_photos(photos)  # refused now, and not after hours of others
    check_category(texts[1], model)
    word = texts[2] or derived_placeholder(Path(name), None)
    return Wanted(name, str(photos), texts[1], word, dict(given.get("settings", {})))


@dataclass(frozen=True)
class Study:
    """What is common to the concepts of a list.

    Attributes:
        folder: where files, run folders, rows and the table go.
        config: how to learn.
        captions: texts, or a file of their statistics.
        scorer: judges on the way, if there is one.
    """

    folder: Path
    config: Config
    captions: Sequence[str] | Path
    scorer: Scorer | None

    def config_of(self, wanted: Wanted) -> Config:
        """The settings of one concept.

        Raises:
            PerfusionError: unknown ones, or of another type.
        """
        return self.config.changed(dict(wanted.settings))

    def row_of(self, wanted: Wanted) -> dict[str, Any] | None:
        """What is known of a concept; None if nothing is.

        Raises:
            PerfusionError: the folder has another concept of that name.
        """
        file = self.folder / f"{wanted.name}.json"
        if not file.exists():
            return None
        row: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if row["asked"] != self._asked(wanted):
            raise PerfusionError(
                f"learn-many: '{file}' is of another {wanted.name!r}: of "
                f"{row['asked']}, not {self._asked(wanted)}; give another --out, or remove it."
            )
        return row

    def _asked(self, wanted: Wanted) -> dict[str, Any]:
        return {**asdict(wanted), "config": self.config_of(wanted).digest()}

    def write_row(self, wanted: Wanted, row: Mapping[str, Any]) -> None:
        """Keep what came of a concept."""
        text = json.dumps({"asked": self._asked(wanted), **row}, indent=1)
        with atomic_write(self.folder / f"{wanted.name}.json") as aside:
            aside.write_text(text, encoding="utf-8")


def learn_all(pipe: Pipeline, concepts: Sequence[Wanted], study: Study) -> Iterator[str]:
    """Learn concepts that are not there yet; one that fails does not keep others from it.

    Raises:
        PerfusionError: some failed; names them.
    """
    moments: dict[str, rk.SecondMoment] = {}
    failed = []
    for wanted in concepts:
        row = study.row_of(wanted)
        if row is not None and "error" not in row:
            yield f"{wanted.name}: there already"
            continue
        try:
            row = _learned(pipe, wanted, study, moments)
        except rk.RankeditError as error:
            row = {"error": " ".join(str(error).split())}
            failed.append(wanted.name)
        study.write_row(wanted, row)
        yield f"{wanted.name}: {row.get('error') or row['phrase']}"
    if failed:
        raise PerfusionError(
            f"learn-many: {counted(len(failed), 'concept')} could not be learned: "
            f"{', '.join(failed)}; the table says why. Give the same command to try them again."
        )


def _learned(
    pipe: Pipeline, wanted: Wanted, study: Study, moments: dict[str, rk.SecondMoment]
) -> dict[str, Any]:
    config = study.config_of(wanted)
    if config.tokens not in moments:
        captions = study.captions
        moments[config.tokens] = (
            load_moment(captions, pipe, config.tokens)
            if isinstance(captions, Path)
            # Kept beside the concepts: other processes and later runs find it there.
            else second_moment(pipe, captions, tokens=config.tokens, cache=study.folder)
        )
    started, run = time.monotonic(), study.folder / f"{wanted.name}.run"
    concept = learn(
        pipe,
        wanted.photos,
        placeholder=wanted.placeholder,
        category=wanted.category,
        statistics=moments[config.tokens],
        config=config,
        validation=None if study.scorer is None else Validation(study.scorer),
        run=run,
    )
    concept.save(study.folder / f"{wanted.name}.safetensors")
    history = json.loads((run / HISTORY).read_text(encoding="utf-8"))
    losses = history["losses"]
    return {
        "phrase": concept.phrase,
        "step": history["best_step"],
        "losses": [sum(part) / len(part) for part in (losses[:_STEPS], losses[-_STEPS:])],
        "balance": max((row[3] for row in history["validations"]), default=None),
        "seconds": time.monotonic() - started,
    }


def table(concepts: Sequence[Wanted], study: Study) -> str:
    """What is known of all concepts of the list, of other processes' too, in Markdown."""
    lines = ["| concept | prompts say | step | loss | balance | seconds |"]
    lines += ["|---|---|---:|---:|---:|---:|"]
    for wanted in concepts:
        row = study.row_of(wanted)
        if row is None or "error" in row:
            said = "not yet" if row is None else row["error"].replace("|", "\\|")
            lines.append(f"| {wanted.name} | {said} | | | | |")
            continue
        first, last = row["losses"]
        balance = "" if row["balance"] is None else f"{row['balance']:.3f}"
        lines.append(
            f"| {wanted.name} | {row['phrase']} | {row['step']} | {first:.4f} → {last:.4f} | "
            f"{balance} | {row['seconds']:.0f} |"
        )
    return "\n".join(lines)
