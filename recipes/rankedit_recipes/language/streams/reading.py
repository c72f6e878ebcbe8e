"""Reading the folder of a stream: what it is, the facts that it has, and their keys and values.

Three steps, of which each needs more of the folder than the one before: `head` reads `stream.json`,
`whole` the pages too, `loaded` keys and values too. What is read is compared with its digest.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Callable
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import NamedTuple, TypeVar

import rankedit as rk
from rankedit.files.storage import open_regular
from rankedit_recipes.language.errors import LanguageError
from rankedit_recipes.language.searching.spreading import Facts
from rankedit_recipes.language.streams.decoding import head_of, with_pages
from rankedit_recipes.language.streams.locking import LOCK
from rankedit_recipes.language.streams.manifest import Manifest
from rankedit_recipes.language.streams.pages import Pages, name_of
from rankedit_recipes.language.streams.rows import facts_in, load_rows

NAME = "stream.json"
# What a process that was killed while it wrote leaves behind; see `rankedit.atomic`.
ASIDE = re.compile(
    r"\.(facts-[0-9]+\.safetensors|(?:stream|page-[0-9]+)\.json)\..*\.rankedit-(?:tmp|lock)"
)
# What was changed by hand lacks fields, or has others than `Request` takes.
_UNREADABLE = (ValueError, TypeError, KeyError, AttributeError, RecursionError)
# A writer that is busy all the time lets a reader through sooner.
_TRIES = 20
_OPEN = "Stream.open"

_T = TypeVar("_T")


class Contents(NamedTuple):
    """A stream as it is read: what it says, and its facts in the order of entry, file by file."""

    manifest: Manifest
    facts: list[Facts]


class Reader:
    """A stream on disk, to be read; readers need no lock.

    Args:
        path: the folder.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        self.path = Path(path)
        self._pages = Pages(self.path)

    def head(self, call: str = _OPEN) -> Manifest | None:
        """What the stream is, its pages `unread`; None if nothing is there.

        Raises:
            LanguageError: damaged, of another version, or a folder of something else.
        """
        data = self._bytes(call)
        if data is None and not self._is_empty():
            data = self._bytes(call)  # it may have been begun between the two looks
            if data is None:
                raise LanguageError(
                    f"{call}: '{self.path}' holds something else than a stream; name an "
                    "empty folder or a new one."
                )
        if data is None:
            return None
        try:
            return head_of(data)
        except _UNREADABLE as error:
            raise self._damaged(call, error) from error

    def whole(self, head: Manifest, call: str = _OPEN) -> Manifest:
        """The same with the facts of its pages.

        Raises:
            LanguageError: a page is missing, or not what the stream wrote.
        """
        try:
            return with_pages(head, self._pages)
        except (OSError, *_UNREADABLE) as error:
            raise self._damaged(call, error) from error

    def loaded(self, head: Manifest, call: str = _OPEN) -> Contents:
        """The same with keys and values.

        Raises:
            LanguageError: as for `whole`, or a file is missing or not what the stream wrote.
        """
        manifest = self.whole(head, call)
        digests, files = dict(manifest.digests), {}
        for number in sorted(manifest.numbers):
            file = self._file(number)
            files[number], found = load_rows(file, len(manifest.layers), call)
            # Version 1 has none: what is there now is what will be held to.
            if digests.setdefault(number, found) != found:
                raise LanguageError(
                    f"{call}: '{file}' is not what the stream wrote: it is damaged, or of another "
                    "stream. Take the folder from a copy."
                )
        facts = []
        places = ((*manifest.places[request.label], request) for request in manifest.requests)
        for number, some in itertools.groupby(places, key=lambda place: place[0]):
            rows = [place[1:] for place in some]
            facts.append(facts_in(files[number], rows, manifest.layers, call))
        return Contents(replace(manifest, digests=digests), facts)

    def read(self) -> Manifest | None:
        """What the stream says, as it is now; None if nothing is there."""
        return self._steadily(self.whole)

    def contents(self) -> Contents | None:
        """The stream with its facts, as it is now; None if nothing is there."""
        return self._steadily(self.loaded)

    def _steadily(self, act: Callable[[Manifest], _T]) -> _T | None:
        for _ in range(_TRIES):
            head = self.head()
            if head is None:
                return None
            try:
                return act(head)
            except LanguageError:
                # Files that nobody needs any more may go while they are read. What fails while
                # `stream.json` stays the same is damaged.
                if self.mark() == head.mark:
                    raise
        raise self.busy()

    def busy(self) -> LanguageError:
        """What to say of a folder that is another one at each look."""
        return LanguageError(
            f"{_OPEN}: '{self.path}' is being changed all the time; wait until the process "
            "that writes to it has finished, and open it again."
        )

    def mark(self) -> str:
        """The digest of `stream.json`; empty if there is none."""
        data = self._bytes(_OPEN)
        return "" if data is None else hashlib.sha256(data).hexdigest()

    def _damaged(self, call: str, error: Exception) -> LanguageError:
        # The parser of headers of safetensors files speaks of these.
        why = str(error).replace("the header", "it").rstrip(".")
        return LanguageError(
            f"{call}: '{self.path / NAME}' is damaged or of another version: {why}. Take "
            "the folder from a copy, or begin a stream in another one."
        )

    def _bytes(self, call: str) -> bytes | None:
        try:
            with open_regular(self.path / NAME) as (stream, _):
                return stream.read()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, rk.EditFileError) as error:
            raise LanguageError(f"{call}: '{self.path / NAME}' cannot be read: {error}") from error

    def _file(self, number: int) -> Path:
        return self.path / name_of(number)

    def _is_empty(self) -> bool:
        if not self.path.exists():
            return True
        # A process that was killed while it began the stream leaves its lock, and what it wrote.
        return self.path.is_dir() and all(
            entry.name == LOCK or ASIDE.fullmatch(entry.name) for entry in self.path.iterdir()
        )
