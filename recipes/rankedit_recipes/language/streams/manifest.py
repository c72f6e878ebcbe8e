"""What `stream.json` says: what a stream is, which facts it has, and digests of all of it.

Every file with keys and values stands there with its SHA-256, and the document with one over itself
without it: files that are exchanged, damaged, or of another stream are refused, and so is a
document that was changed by anything but a stream. Version 1 had no digests; it is read as well.
Version 3 has pages (see `pages`); what needs none is written as version 2, for earlier readers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from rankedit.files.header import checked_object, parse_json
from rankedit_recipes.language.errors import LanguageError
from rankedit_recipes.language.requests import Request
from rankedit_recipes.language.settings import Settings
from rankedit_recipes.language.streams.pages import (
    Page,
    Place,
    count_of,
    digests_of,
    facts_of,
    name_of,
    page_number_of,
    page_of,
    text_of,
    told,
)

VERSION = 3
# What `begin` notes and nothing changes afterwards.
_NOTED = ("settings", "layers", "prefixes", "base", "metrics", "tokenizer")
_FIELDS = {
    1: {"version", *_NOTED, "facts"},
    2: {"version", "digest", "generation", "next", *_NOTED, "files", "facts"},
    3: {"version", "digest", "generation", "next", *_NOTED, "pages", "files", "facts"},
}

ReadPage = Callable[[int, str], Page]


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
        pages: where earlier facts are written; `requests`, `places` and `digests` have them too.
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
    pages: tuple[Page, ...] = ()

    @property
    def inline(self) -> Sequence[Request]:
        """The facts that are written in `stream.json` itself, the latest ones."""
        return self.requests[sum(len(p.requests) - len(p.gone) for p in self.pages) :]

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
    inline = [(request, manifest.places[request.label]) for request in manifest.inline]
    used = {number for _, (number, _) in inline}
    version = 3 if manifest.pages else 2
    rest = {
        "version": version,
        "generation": manifest.generation,
        "next": manifest.next,
        **(manifest.noted or noted_in(manifest)),
        "files": {name_of(n): d for n, d in sorted(manifest.digests.items()) if n in used},
        "facts": [told(request, place) for request, place in inline],
    }
    if manifest.pages:
        rest["pages"] = {
            page_of(p.number): {"digest": p.digest, "gone": sorted(p.gone)} for p in manifest.pages
        }
    try:
        document = {"version": version, "digest": _digest(rest), **rest}
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


def written(manifest: Manifest, data: bytes, read_page: ReadPage) -> Manifest:
    """A manifest as it will be read from the document that was made of it, which is checked."""
    if not manifest.pages:
        return decoded(data, read_page)
    # Its pages are checked already, each when it was written or read: only the rest is new.
    known = {page.number: page for page in manifest.pages}
    head = decoded(data, lambda number, _: known[number], whole=False)
    return replace(manifest, noted=head.noted, mark=head.mark)


def decoded(data: bytes, read_page: ReadPage, *, whole: bool = True) -> Manifest:
    """The document, after everything about it was checked.

    Args:
        data: what is in `stream.json`.
        read_page: gives a page by its number and digest.
        whole: whether facts of pages are to be there, too.

    Raises:
        ValueError, TypeError, RecursionError: says what is wrong with it. So do `EditFileError` and
            `LanguageError`, which are kinds of ValueError.
    """
    document = checked_object(parse_json(data), "it")
    version = document.get("version")
    if type(version) is not int or version not in _FIELDS:
        raise ValueError(f"version {version!r:.80}, expected 1 to {VERSION}")
    if document.keys() != _FIELDS[version]:
        raise ValueError(f"missing or unknown fields {sorted(document.keys() ^ _FIELDS[version])}")
    # Refuses what JSON has not, such as 1e999, of version 1 too.
    digest = _digest(document)
    if version > 1 and document["digest"] != digest:
        raise ValueError("its content does not match its digest")
    requests, places = facts_of(document["facts"])
    digests: dict[int, str] = {}
    if version > 1:
        digests = digests_of(document["files"], {number for number, _ in places.values()})
    pages = _pages(document.get("pages", {}), read_page)
    if pages and whole:
        requests, places, digests = _with_pages(pages, requests, places, digests)
    numbers = [number for number, _ in places.values()] + [page.number for page in pages]
    generation, following = 0, 1 + max(numbers, default=-1)
    if version > 1:
        generation = count_of(document["generation"], "generation")
        if count_of(document["next"], "next") < following:
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
        pages=pages,
    )


def _pages(named: object, read_page: ReadPage) -> tuple[Page, ...]:
    pages = []
    for name, entry in checked_object(named, "pages").items():
        number, told_of = page_number_of(name), checked_object(entry, "a page")
        if number is None or told_of.keys() != {"digest", "gone"}:
            raise ValueError(f"pages must be names, digests and what is gone, got {name!r:.80}")
        page, gone = read_page(number, text_of(told_of["digest"])), told_of["gone"]
        listed = isinstance(gone, list) and all(type(n) is int for n in gone)
        if not listed or not set(gone) <= set(range(len(page.requests))):
            raise ValueError(f"what is gone of '{name}' must be numbers of its facts")
        pages.append(replace(page, gone=frozenset(gone)))
    return tuple(pages)


def _with_pages(
    pages: Sequence[Page],
    requests: list[Request],
    places: dict[str, Place],
    digests: dict[int, str],
) -> tuple[list[Request], dict[str, Place], dict[int, str]]:
    """All facts, those of the pages first, in the order of entry."""
    live = [fact for page in pages for fact in page.live()]
    everything = {label: place for label, _, place in live} | places
    if len(everything) != len(live) + len(requests):
        raise ValueError("two facts have the same name")
    if len(set(everything.values())) != len(everything):
        raise ValueError("two facts have the same place")
    known = {n: d for page in pages for n, d in page.digests.items()} | digests
    used = {number for number, _ in everything.values()}
    kept = {number: digest for number, digest in known.items() if number in used}
    return [request for _, request, _ in live] + requests, everything, kept


def _noted(document: Mapping[str, Any]) -> dict[str, Any]:
    settings = dict(checked_object(document["settings"], "settings"))
    solver, extra = text_of(settings.pop("solver", "")), {}
    if solver:
        # `Settings` refuses what it does not know; the class of the method will know these.
        known = {each.name for each in fields(Settings)}
        extra = {name: settings.pop(name) for name in settings.keys() - known}
    layers = _texts(document["layers"])
    base, metrics = (
        {name: text_of(mark) for name, mark in checked_object(document[kind], kind).items()}
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
        "tokenizer": text_of(document["tokenizer"]),
    }


def _texts(value: object) -> list[str]:
    if not isinstance(value, list):
        raise ValueError(f"a list of texts is expected, got {value!r:.80}")
    return [text_of(each) for each in value]
