"""What `stream.json` says: what a stream is, which facts it has, and digests of all of it.

Every file with keys and values stands there with its SHA-256, and the document with one over itself
without it: files that are exchanged, damaged, or of another stream are refused, and so is a
document that was changed by anything but a stream. Version 1 had no digests; it is read as well.
Version 3 has pages (see `pages`); what needs none is written as version 2, for earlier readers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rankedit_recipes.language.errors import LanguageError
from rankedit_recipes.language.requests import Request
from rankedit_recipes.language.settings import Settings
from rankedit_recipes.language.streams.pages import Named, Page, Place, name_of, page_of, told

# What `begin` notes and nothing changes afterwards.
NOTED = ("settings", "layers", "prefixes", "base", "metrics", "tokenizer")


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
        unread: pages that were not read yet, whose facts `requests`, `places` and `digests` lack.
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
    unread: tuple[Named, ...] = ()

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
        document = {"version": version, "digest": document_digest(rest), **rest}
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
    return {**{name: getattr(manifest, name) for name in NOTED}, "settings": settings}


def document_digest(document: Mapping[str, Any]) -> str:
    """SHA-256 of the canonical form of everything but the digest itself."""
    rest = {name: value for name, value in document.items() if name != "digest"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()
