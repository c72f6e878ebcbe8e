"""Facts of a large stream that are written once: a page, of which `stream.json` says what is gone.

`stream.json` is written whole at each change. Beyond a thousand facts that would take seconds, and
so the facts in it are moved to a page, a file of its own that never changes.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from operator import ne
from pathlib import Path
from typing import Any, NamedTuple

from rankedit.atomic import atomic_write
from rankedit.files.header import checked_object, parse_json
from rankedit.files.storage import open_regular
from rankedit_recipes.language.requests import Request

Place = tuple[int, int]

# Facts that `stream.json` holds at most: about 300 KB, which are written in a tenth of a second.
SEALED_AT = 1000
_NAME = re.compile(r"page-([0-9]{6,12})\.json", re.ASCII)
_FILE = re.compile(r"facts-([0-9]{6,12})\.safetensors", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)


def name_of(number: int) -> str:
    """The name of the file with keys and values of this number."""
    return f"facts-{number:06}.safetensors"


def page_of(number: int) -> str:
    """The name of the page of this number."""
    return f"page-{number:06}.json"


def number_of(name: str) -> int | None:
    """The number of a file with keys and values; None for any other file."""
    match = _FILE.fullmatch(name)
    # Written in one way only: no two names have one number.
    return int(match[1]) if match and name_of(int(match[1])) == name else None


def page_number_of(name: str) -> int | None:
    """The number of a page; None for any other file."""
    match = _NAME.fullmatch(name)
    return int(match[1]) if match and page_of(int(match[1])) == name else None


class Named(NamedTuple):
    """What `stream.json` says of a page: number and digest of its file, and facts that are gone."""

    number: int
    digest: str
    gone: frozenset[int]


@dataclass(frozen=True)
class Page:
    """Facts that are together in one file.

    Attributes:
        number: of the file.
        digest: SHA-256 of it.
        labels, requests: names of the facts, and the facts, in the order of entry.
        places: of each, the number of the file with its keys and values, and its row.
        digests: by number, SHA-256 of each of these files.
        gone: numbers of facts, from 0, that were taken out since.
    """

    number: int
    digest: str
    labels: tuple[str, ...]
    requests: tuple[Request, ...]
    places: tuple[Place, ...]
    digests: Mapping[int, str]
    gone: frozenset[int] = frozenset()

    def live(self) -> list[tuple[str, Request, Place]]:
        """The facts that are still there, with their names and places."""
        found = zip(self.labels, self.requests, self.places, strict=True)
        if not self.gone:
            return list(found)
        return [fact for number, fact in enumerate(found) if number not in self.gone]

    def of(self, places: Mapping[str, Place]) -> Page:
        """The page where only what is in its old place is still there."""
        # By place: a fact that was replaced may have its name, at another one.
        now = map(places.get, self.labels)
        gone = [n for n, found in enumerate(map(ne, now, self.places)) if found]
        return replace(self, gone=frozenset(gone))


class Pages:
    """The pages of a folder by number and digest; they never change, and are read once.

    Args:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[tuple[int, str], Page] = {}

    def __call__(self, number: int, digest: str) -> Page:
        """A page.

        Raises:
            OSError, ValueError, TypeError, KeyError: it is not there, or another one.
        """
        known = self._known.get((number, digest))
        if known is None:
            with open_regular(self._path / page_of(number)) as (stream, _):
                known = decoded_page(number, stream.read())
            if known.digest != digest:
                raise ValueError(f"'{page_of(number)}' is not what the stream wrote")
            self._known[number, digest] = known
        return known

    def write(
        self, number: int, facts: Sequence[tuple[Request, Place]], digests: Mapping[int, str]
    ) -> Page:
        """Write a page, and read it again."""
        data = encoded_page(facts, digests)
        with atomic_write(self._path / page_of(number)) as temporary:
            temporary.write_bytes(data)
        return self(number, hashlib.sha256(data).hexdigest())


def encoded_page(facts: Sequence[tuple[Request, Place]], digests: Mapping[int, str]) -> bytes:
    """The page of some facts, to be read by people too."""
    numbers = {number for _, (number, _) in facts}
    document = {
        "files": {name_of(n): d for n, d in sorted(digests.items()) if n in numbers},
        "facts": [told(request, place) for request, place in facts],
    }
    return json.dumps(document, ensure_ascii=False, indent=1, allow_nan=False).encode()


def decoded_page(number: int, data: bytes) -> Page:
    """A page, after everything about it was checked.

    Raises:
        ValueError, TypeError, KeyError: says what is wrong with it.
    """
    document = checked_object(parse_json(data), "a page")
    if document.keys() != {"files", "facts"}:
        raise ValueError(f"a page has unknown or missing fields {sorted(document)!r:.80}")
    requests, places = facts_of(document["facts"])
    digests = digests_of(document["files"], {file for file, _ in places.values()})
    digest = hashlib.sha256(data).hexdigest()
    return Page(number, digest, tuple(places), tuple(requests), tuple(places.values()), digests)


def told(request: Request, place: Place) -> dict[str, Any]:
    """A fact in JSON."""
    return {**request.to_dict(), "label": request.label, "place": list(place)}


def facts_of(listed: object) -> tuple[list[Request], dict[str, Place]]:
    """Facts and their places from JSON.

    Raises:
        ValueError, TypeError, KeyError: says what is wrong with them.
    """
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
        if not isinstance(place, list) or len(place) != 2 or label in places:
            raise ValueError(f"fact {label!r:.80} has no place of its own")
        # Negative ones count from the end in Python: another fact's row, or none.
        places[label] = (count_of(place[0], "place"), count_of(place[1], "place"))
        requests.append(request)
    if len(set(places.values())) != len(places):
        raise ValueError("two facts have the same place")
    return requests, places


def digests_of(named: object, used: set[int]) -> dict[int, str]:
    """Digests by the numbers of files, which must be those that are used.

    Raises:
        ValueError: says what is wrong with them.
    """
    digests = {}
    for name, digest in checked_object(named, "files").items():
        number = number_of(name)
        if number is None or not _SHA256.fullmatch(text_of(digest)):
            raise ValueError(f"files must be names and SHA-256 digests, got {name!r:.80}")
        digests[number] = digest
    if digests.keys() != used:
        raise ValueError(f"files {sorted(digests.keys() ^ used)[:8]} are missing or of no fact")
    return digests


def count_of(value: object, what: str) -> int:
    """A whole number of at least 0."""
    # By type: True is an integer to isinstance.
    if type(value) is not int or value < 0:
        raise ValueError(f"{what} must be a whole number of at least 0, got {value!r:.80}")
    return value


def text_of(value: object) -> str:
    """A text."""
    if not isinstance(value, str):
        raise ValueError(f"a text is expected, got {value!r:.80}")
    return value
