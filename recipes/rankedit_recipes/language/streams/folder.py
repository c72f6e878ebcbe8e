"""The folder in which a stream of edits is kept: one JSON file, and keys and values beside it.

`stream.json` says what the stream is and which facts it has; it is replaced in one step.
`facts-000000.safetensors` and so on hold keys and values of the facts that were added together, and
never change. A file is written before `stream.json` names it: a crash in between leaves a file that
nothing refers to, which the next addition overwrites.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor

import rankedit as rk
from rankedit.atomic import atomic_write
from rankedit_recipes.language.errors import LanguageError
from rankedit_recipes.language.requests import Request
from rankedit_recipes.language.searching.spreading import Facts
from rankedit_recipes.language.settings import Settings

VERSION = 1
_NAME = "stream.json"


@dataclass(frozen=True)
class Manifest:
    """What a stream is, and which facts it has.

    Attributes:
        settings: the method.
        layers: the edited projections, from the lowest.
        prefixes: what stands before the prompts.
        base: by projection, a fingerprint of its weights.
        metrics: by projection, a fingerprint of what a change costs.
        tokenizer: a mark of the vocabulary.
        requests: the facts, in the order of entry.
        solver: `Settings.solver`; where it is not empty, `settings` has no solve of its own as it
            is read, and what solves must be passed again: a file names no code that is run.
        extra: settings that only the class of a method of one's own knows.
        places: for each fact by name, the file with its keys and values, and its row there.
    """

    settings: Settings
    layers: list[str]
    prefixes: list[str]
    base: dict[str, str]
    metrics: dict[str, str]
    tokenizer: str
    requests: list[Request]
    solver: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)
    places: Mapping[str, tuple[int, int]] | None = None

    def check(self, actual: Manifest, path: Path) -> None:
        """Refuse to go on with another model, tokenizer or statistics.

        Raises:
            LanguageError: says what differs.
        """
        # In this order: with another model the statistics differ too, and the model is what to say.
        for name, what in (
            ("base", "model"),
            ("tokenizer", "tokenizer"),
            ("metrics", "statistics"),
        ):
            if getattr(self, name) != getattr(actual, name):
                raise LanguageError(
                    f"Stream.open: '{path}' is a stream of edits of another {what}: expected "
                    f"{getattr(self, name)}, got {getattr(actual, name)}; open it with the "
                    f"{what} it began with."
                )


class Folder:
    """A stream on disk.

    Args:
        path: the folder; made when the stream begins.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        self.path = Path(path)
        self._places: dict[str, tuple[int, int]] = {}
        self._next = 0

    def read(self) -> Manifest | None:
        """What is there; None if nothing is.

        Raises:
            LanguageError: damaged, of another version, or a folder of something else.
        """
        file = self.path / _NAME
        if not file.exists():
            if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
                raise LanguageError(
                    f"Stream.open: '{self.path}' holds something else than a stream; name an empty "
                    "folder or a new one."
                )
            return None
        try:
            manifest = _decoded(json.loads(file.read_text(encoding="utf-8")))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise LanguageError(
                f"Stream.open: '{file}' is damaged or of another version: {error}."
            ) from error
        self._places = dict(manifest.places or {})
        # Above what is referred to, not above what is there: files of a crash are overwritten.
        self._next = 1 + max((number for number, _ in self._places.values()), default=-1)
        return manifest

    def begin(self, manifest: Manifest) -> None:
        """Make the folder."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.write(manifest)

    def add(self, facts: Facts, manifest: Manifest) -> None:
        """Write facts that the manifest has already."""
        tensors: dict[str, Tensor] = {}
        for number, name in enumerate(manifest.layers):
            tensors[f"keys.{number}"] = facts.keys[name]
            tensors[f"lacking.{number}"] = facts.lacking[name]
        # Before `stream.json` names it; see the top of the file.
        rk.save(tensors, self._file(self._next))
        for row, request in enumerate(facts.requests):
            self._places[request.label] = (self._next, row)
        self._next += 1
        self.write(manifest)

    def write(self, manifest: Manifest) -> None:
        """Replace `stream.json`, in one step, and drop files of which nothing is left."""
        # Files are never rewritten: rows that were undone stay while the file has others.
        kept = {request.label: self._places[request.label] for request in manifest.requests}
        gone = {number for number, _ in self._places.values()}
        gone -= {number for number, _ in kept.values()}
        self._places = kept
        text = json.dumps(_encoded(replace(manifest, places=kept)), ensure_ascii=False, indent=1)
        with atomic_write(self.path / _NAME) as temporary:
            temporary.write_text(text, encoding="utf-8")
        # After the new `stream.json` is in place: what it refers to is always there.
        for number in gone:
            self._file(number).unlink(missing_ok=True)

    def facts(self, manifest: Manifest) -> Iterator[Facts]:
        """The facts one by one, in the order of entry.

        Raises:
            LanguageError: a file is missing or holds something else.
        """
        # In the order of entry, which files do not have; each is read once.
        files: dict[int, dict[str, Any]] = {}
        for request in manifest.requests:
            number, row = self._places[request.label]
            if number not in files:
                files[number] = self._load(number, len(manifest.layers))
            rows = slice(row, row + 1)
            named = list(enumerate(manifest.layers))
            yield Facts(
                (request,),
                {name: files[number][f"keys.{i}"][rows] for i, name in named},
                {name: files[number][f"lacking.{i}"][rows] for i, name in named},
                {},
            )

    def _load(self, number: int, layers: int) -> dict[str, Any]:
        file = self._file(number)
        try:
            loaded = rk.load(file)
        except (OSError, rk.EditFileError) as error:
            raise LanguageError(f"Stream.open: '{file}' cannot be read: {error}") from error
        expected = {f"{kind}.{i}" for kind in ("keys", "lacking") for i in range(layers)}
        if set(loaded) != expected or not all(isinstance(t, Tensor) for t in loaded.values()):
            raise LanguageError(
                f"Stream.open: '{file}' must hold {sorted(expected)}, got {sorted(loaded)[:8]}."
            )
        return dict(loaded)

    def _file(self, number: int) -> Path:
        return self.path / f"facts-{number:06}.safetensors"


def _encoded(manifest: Manifest) -> dict[str, Any]:
    places = manifest.places or {}
    facts = [
        {**asdict(request), "label": request.label, "place": list(places[request.label])}
        for request in manifest.requests
    ]
    settings = manifest.settings.to_dict()
    if manifest.solver:
        # Readers that know no methods of one's own refuse an unknown setting.
        settings["solver"] = manifest.solver
    return {
        "version": VERSION,
        "settings": settings,
        "layers": manifest.layers,
        "prefixes": manifest.prefixes,
        "base": manifest.base,
        "metrics": manifest.metrics,
        "tokenizer": manifest.tokenizer,
        "facts": facts,
    }


def _decoded(document: dict[str, Any]) -> Manifest:
    if document["version"] != VERSION:
        raise ValueError(f"version {document['version']!r}, expected {VERSION}")
    requests, places = [], {}
    for fact in document["facts"]:
        number, row = map(int, fact.pop("place"))
        # It follows from the rest, and is written for people who read the file.
        fact.pop("label")
        request = Request(**fact)
        # Negative ones count from the end in Python: another fact's row, or none.
        if number < 0 or row < 0 or request.label in places:
            raise ValueError(f"fact {request.label!r} has no place of its own")
        requests.append(request)
        places[request.label] = (number, row)
    settings = dict(document["settings"])
    solver, extra = str(settings.pop("solver", "")), {}
    if solver:
        # `Settings` refuses what it does not know; the class of the method will know these.
        known = {each.name for each in fields(Settings)}
        extra = {name: settings.pop(name) for name in settings.keys() - known}
    return Manifest(
        settings=Settings.from_dict(settings),
        solver=solver,
        extra={n: tuple(v) if isinstance(v, list) else v for n, v in extra.items()},
        layers=[str(name) for name in document["layers"]],
        prefixes=[str(text) for text in document["prefixes"]],
        base={str(k): str(v) for k, v in document["base"].items()},
        metrics={str(k): str(v) for k, v in document["metrics"].items()},
        tokenizer=str(document["tokenizer"]),
        requests=requests,
        places=places,
    )
