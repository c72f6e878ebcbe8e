"""What `stream.json` says: what a stream is, which facts it has, and digests of all of it.

Every file with keys and values stands there with its SHA-256, and the document with one over itself
without it: files that are exchanged, damaged, or of another stream are refused, and so is a
document that was changed by anything but a stream. Version 1 had no digests; it is read as well.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from rankedit.files.header import checked_object, parse_json
from rankedit_recipes.language.errors import LanguageError
from rankedit_recipes.language.requests import Request
from rankedit_recipes.language.settings import Settings

VERSION = 2
# What `begin` notes and nothing changes afterwards.
_NOTED = ("settings", "layers", "prefixes", "base", "metrics", "tokenizer")
_FIELDS = {
    1: {"version", *_NOTED, "facts"},
    2: {"version", "digest", "generation", "next", *_NOTED, "files", "facts"},
}
_NAME = re.compile(r"facts-([0-9]{6,12})\.safetensors", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)

Place = tuple[int, int]


def name_of(number: int) -> str:
    """The name of the file with this number."""
    return f"facts-{number:06}.safetensors"


def number_of(name: str) -> int | None:
    """The number of a file with keys and values; None for any other file."""
    match = _NAME.fullmatch(name)
    # Written in one way only: no two names have one number.
    return int(match[1]) if match and name_of(int(match[1])) == name else None


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
        places: for each fact by name, the number of the file with its keys and values, and its row.
        digests: by number, SHA-256 of each of these files.
        generation: how often the stream was written.
        next: a number that no file ever had, nor any above it.
        noted: what `begin` wrote, as it was read: it is written back as it is.
        mark: SHA-256 of `stream.json`; empty for what was not written.
    """

    settings: Settings
    layers: list[str]
    prefixes: list[str]
    base: dict[str, str]
    metrics: dict[str, str]
    tokenizer: str
    requests: Sequence[Request] = ()
    solver: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)
    places: Mapping[str, Place] = field(default_factory=dict)
    digests: Mapping[int, str] = field(default_factory=dict)
    generation: int = 0
    next: int = 0
    noted: Mapping[str, Any] = field(default_factory=dict)
    mark: str = ""

    @property
    def numbers(self) -> set[int]:
        """Of the files that facts are in."""
        return {number for number, _ in self.places.values()}

    def check(self, actual: Manifest, path: Path) -> None:
        """Refuse to go on with another model, tokenizer or statistics.

        Raises:
            LanguageError: says what differs.
        """
        # In this order: with another model the statistics differ too, and the model is what to say.
        for name, what in (
            ("layers", "order of projections"),
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


def encoded(manifest: Manifest) -> bytes:
    """The document, to be read by people too.

    Raises:
        LanguageError: a text that no file can hold.
    """
    facts = [
        {**r.to_dict(), "label": r.label, "place": list(manifest.places[r.label])}
        for r in manifest.requests
    ]
    rest = {
        "version": VERSION,
        "generation": manifest.generation,
        "next": manifest.next,
        **(manifest.noted or noted_in(manifest)),
        "files": {name_of(number): d for number, d in sorted(manifest.digests.items())},
        "facts": facts,
    }
    try:
        document = {"version": VERSION, "digest": _digest(rest), **rest}
        return json.dumps(document, ensure_ascii=False, indent=1, allow_nan=False).encode()
    # Halves of surrogate pairs, numbers that are not finite, settings of one's own kinds.
    except (ValueError, TypeError) as error:
        raise LanguageError(
            f"Stream: requests and settings must be such as JSON in UTF-8 can hold: {error}."
        ) from error


def noted_in(manifest: Manifest) -> dict[str, Any]:
    """What `begin` writes down."""
    settings = manifest.settings.to_dict()
    if manifest.solver:
        # Readers that know no methods of one's own refuse an unknown setting.
        settings["solver"] = manifest.solver
    return {**{name: getattr(manifest, name) for name in _NOTED}, "settings": settings}


def _digest(document: Mapping[str, Any]) -> str:
    """SHA-256 of the canonical form of everything but the digest itself."""
    rest = {name: value for name, value in document.items() if name != "digest"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def decoded(data: bytes) -> Manifest:
    """The document, after everything about it was checked.

    Raises:
        ValueError, TypeError, RecursionError: says what is wrong with it. So do `EditFileError` and
            `LanguageError`, which are kinds of ValueError.
    """
    document = checked_object(parse_json(data), "it")
    version = document.get("version")
    if type(version) is not int or version not in _FIELDS:
        raise ValueError(f"version {version!r:.80}, expected {VERSION}")
    if document.keys() != _FIELDS[version]:
        raise ValueError(f"missing or unknown fields {sorted(document.keys() ^ _FIELDS[version])}")
    # Refuses what JSON has not, such as 1e999, of version 1 too.
    digest = _digest(document)
    if version > 1 and document["digest"] != digest:
        raise ValueError("its content does not match its digest")
    requests, places = _facts(document["facts"])
    numbers = {number for number, _ in places.values()}
    digests: dict[int, str] = {}
    generation, following = 0, 1 + max(numbers, default=-1)
    if version > 1:
        digests = _digests(document["files"], numbers)
        generation = _count(document["generation"], "generation")
        if _count(document["next"], "next") < following:
            raise ValueError(f"next must be a number above all files, got {document['next']}")
        following = document["next"]
    return Manifest(
        **_noted(document),
        requests=requests,
        places=places,
        digests=digests,
        generation=generation,
        next=following,
        noted={name: document[name] for name in _NOTED},
        mark=hashlib.sha256(data).hexdigest(),
    )


def _noted(document: Mapping[str, Any]) -> dict[str, Any]:
    settings = dict(checked_object(document["settings"], "settings"))
    solver, extra = _text(settings.pop("solver", "")), {}
    if solver:
        # `Settings` refuses what it does not know; the class of the method will know these.
        known = {each.name for each in fields(Settings)}
        extra = {name: settings.pop(name) for name in settings.keys() - known}
    layers = _texts(document["layers"])
    base, metrics = (
        {name: _text(mark) for name, mark in checked_object(document[kind], kind).items()}
        for kind in ("base", "metrics")
    )
    # The marks are written in the order of the layers: one that was changed by hand alone shows.
    if len(set(layers)) != len(layers) or not layers == list(base) == list(metrics):
        raise ValueError("layers, base and metrics must name the same projections, in one order")
    return {
        "settings": Settings.from_dict(settings),
        "solver": solver,
        "extra": {n: tuple(v) if isinstance(v, list) else v for n, v in extra.items()},
        "layers": layers,
        "prefixes": _texts(document["prefixes"]),
        "base": base,
        "metrics": metrics,
        "tokenizer": _text(document["tokenizer"]),
    }


def _facts(listed: object) -> tuple[list[Request], dict[str, Place]]:
    if not isinstance(listed, list):
        raise ValueError(f"facts must be a list, got {listed!r:.80}")
    requests, places = [], {}
    for entry in listed:
        fact = dict(checked_object(entry, "a fact"))
        place, label = fact.pop("place"), fact.pop("label")
        request = Request(**fact)
        # It follows from the rest, and is written for people who read the file.
        if label != request.label:
            raise ValueError(f"the fact {request.label!r:.80} is labelled {label!r:.80}")
        if not isinstance(place, list) or len(place) != 2 or request.label in places:
            raise ValueError(f"fact {request.label!r:.80} has no place of its own")
        # Negative ones count from the end in Python: another fact's row, or none.
        places[request.label] = (_count(place[0], "place"), _count(place[1], "place"))
        requests.append(request)
    if len(set(places.values())) != len(places):
        raise ValueError("two facts have the same place")
    return requests, places


def _digests(named: object, used: set[int]) -> dict[int, str]:
    digests = {}
    for name, digest in checked_object(named, "files").items():
        number = number_of(name)
        if number is None or not _SHA256.fullmatch(_text(digest)):
            raise ValueError(f"files must be names and SHA-256 digests, got {name!r:.80}")
        digests[number] = digest
    if digests.keys() != used:
        raise ValueError(f"files {sorted(digests.keys() ^ used)[:8]} are missing or of no fact")
    return digests


def _count(value: object, what: str) -> int:
    # By type: True is an integer to isinstance.
    if type(value) is not int or value < 0:
        raise ValueError(f"{what} must be a whole number of at least 0, got {value!r:.80}")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"a text is expected, got {value!r:.80}")
    return value


def _texts(value: object) -> list[str]:
    if not isinstance(value, list):
        raise ValueError(f"a list of texts is expected, got {value!r:.80}")
    return [_text(each) for each in value]
