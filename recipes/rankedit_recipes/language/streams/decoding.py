"""`stream.json` as it is read, by itself or with the pages that it names; everything is checked.

The document says what the stream is, and has a digest of each page: it can be trusted, and gone on
with, before any page is read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from rankedit.files.header import checked_object, parse_json
from rankedit_recipes.language.requests import Request
from rankedit_recipes.language.settings import Settings
from rankedit_recipes.language.streams.manifest import NOTED, Manifest, document_digest
from rankedit_recipes.language.streams.pages import (
    Named,
    Page,
    Place,
    count_of,
    digests_of,
    facts_of,
    page_number_of,
    page_of,
    text_of,
)

VERSION = 3
_FIELDS = {
    1: {"version", *NOTED, "facts"},
    2: {"version", "digest", "generation", "next", *NOTED, "files", "facts"},
    3: {"version", "digest", "generation", "next", *NOTED, "pages", "files", "facts"},
}

ReadPage = Callable[[int, str], Page]


def written(manifest: Manifest, data: bytes) -> Manifest:
    """A manifest as it will be read from the document that was made of it, which is checked."""
    head = head_of(data)
    # Its pages are checked already, each when it was written or read: only the rest is new.
    return replace(manifest, noted=head.noted, mark=head.mark) if manifest.pages else head


def head_of(data: bytes) -> Manifest:
    """The document, after everything about it was checked; its pages are `unread`.

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
    digest = document_digest(document)
    if version > 1 and document["digest"] != digest:
        raise ValueError("its content does not match its digest")
    requests, places = facts_of(document["facts"])
    digests: dict[int, str] = {}
    if version > 1:
        digests = digests_of(document["files"], {number for number, _ in places.values()})
    unread = _named(document.get("pages", {}))
    numbers = [number for number, _ in places.values()] + [page.number for page in unread]
    generation, following = 0, 1 + max(numbers, default=-1)
    if version > 1:
        generation = count_of(document["generation"], "generation")
        _check_next(count_of(document["next"], "next"), following)
        following = document["next"]
    return Manifest(
        **_noted(document),
        requests=requests,
        places=places,
        digests=digests,
        generation=generation,
        next=following,
        noted={name: document[name] for name in NOTED},
        mark=hashlib.sha256(data).hexdigest(),
        unread=unread,
    )


def with_pages(head: Manifest, read_page: ReadPage) -> Manifest:
    """The manifest with the facts of its pages, those of the pages first, in the order of entry.

    Args:
        head: as `head_of` gives it.
        read_page: gives a page by its number and digest.

    Raises:
        OSError, ValueError, TypeError, KeyError: says what is wrong with a page.
    """
    if not head.unread:
        return head
    pages = tuple(_read(named, read_page) for named in head.unread)
    live = [fact for page in pages for fact in page.live()]
    everything: dict[str, Place] = {label: place for label, _, place in live} | dict(head.places)
    if len(everything) != len(live) + len(head.requests):
        raise ValueError("two facts have the same name")
    if len(set(everything.values())) != len(everything):
        raise ValueError("two facts have the same place")
    known = {n: d for page in pages for n, d in page.digests.items()} | dict(head.digests)
    used = {number for number, _ in everything.values()}
    _check_next(head.next, 1 + max(used, default=-1))
    requests: Sequence[Request] = [request for _, request, _ in live] + list(head.requests)
    digests = {number: digest for number, digest in known.items() if number in used}
    return replace(
        head, requests=requests, places=everything, digests=digests, pages=pages, unread=()
    )


def _check_next(following: int, least: int) -> None:
    if following < least:
        raise ValueError(f"next must be a number above all files, got {following}")


def _named(named: object) -> tuple[Named, ...]:
    pages = []
    for name, entry in checked_object(named, "pages").items():
        number, told_of = page_number_of(name), checked_object(entry, "a page")
        if number is None or told_of.keys() != {"digest", "gone"}:
            raise ValueError(f"pages must be names, digests and what is gone, got {name!r:.80}")
        gone = told_of["gone"]
        if not isinstance(gone, list) or not all(type(n) is int for n in gone):
            raise _not_numbers(number)
        pages.append(Named(number, text_of(told_of["digest"]), frozenset(gone)))
    return tuple(pages)


def _read(named: Named, read_page: ReadPage) -> Page:
    page = read_page(named.number, named.digest)
    if not named.gone <= set(range(len(page.requests))):
        raise _not_numbers(named.number)
    return replace(page, gone=named.gone)


def _not_numbers(number: int) -> ValueError:
    return ValueError(f"what is gone of '{page_of(number)}' must be numbers of its facts")


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
