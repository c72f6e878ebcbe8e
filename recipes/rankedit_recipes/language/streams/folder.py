"""The folder in which a stream of edits is kept: one JSON file, and keys and values beside it.

    stream.json                  what the stream is, its facts, and digests of every file
    facts-000000.safetensors ... keys and values of the facts that were added together
    page-000016.json ...         of large streams, facts that `stream.json` had before
    stream.lock                  empty; who writes holds it

A change is written under the lock, after `stream.json` was found to be the one that the change was
made to: first the new file, under a number that none ever had; then `stream.json`, which is
replaced in one step; then what no fact needs any more is removed. Whatever is interrupted, and
wherever, `stream.json` is the old one or the new one, and all that it names is there.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import rankedit as rk
from rankedit.atomic import atomic_write, remove_stale
from rankedit.files.storage import open_regular
from rankedit_recipes.language.errors import LanguageError
from rankedit_recipes.language.requests import Request
from rankedit_recipes.language.searching.spreading import Facts
from rankedit_recipes.language.streams import pages
from rankedit_recipes.language.streams.locking import LOCK, locked
from rankedit_recipes.language.streams.manifest import Manifest, decoded, encoded, written
from rankedit_recipes.language.streams.pages import name_of, number_of, page_number_of, page_of
from rankedit_recipes.language.streams.rows import digest_of, facts_in, load_rows, tensors_of

_NAME = "stream.json"
# What a process that was killed while it wrote leaves behind; see `rankedit.atomic`.
_ASIDE = re.compile(
    r"\.(facts-[0-9]+\.safetensors|(?:stream|page-[0-9]+)\.json)\..*\.rankedit-(?:tmp|lock)"
)
# What was changed by hand lacks fields, or has others than `Request` takes.
_UNREADABLE = (ValueError, TypeError, KeyError, AttributeError, RecursionError)
# A writer that is busy all the time lets a reader through sooner.
_TRIES = 20


class Contents(NamedTuple):
    """A stream as it is read: what it says, and its facts in the order of entry, file by file."""

    manifest: Manifest
    facts: list[Facts]


class Folder:
    """A stream on disk.

    Args:
        path: the folder; made when the stream begins.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        self.path = Path(path)
        self._pages = pages.Pages(self.path)
        self._last: Manifest | None = None

    # ------------------------------------------------------------------ reading

    def read(self) -> Manifest | None:
        """What the stream says; None if nothing is there. Keys and values are not looked at.

        Raises:
            LanguageError: damaged, of another version, or a folder of something else.
        """
        for _ in range(_TRIES):
            data = self._bytes()
            if data is None and not self._is_empty():
                data = self._bytes()  # it may have been begun between the two looks
                if data is None:
                    raise LanguageError(
                        f"Stream.open: '{self.path}' holds something else than a stream; name an "
                        "empty folder or a new one."
                    )
            if data is None:
                return None
            try:
                return decoded(data, self._pages)
            except (OSError, *_UNREADABLE) as error:
                # Pages that nobody needs any more may go while they are read.
                if self._bytes() == data:
                    raise self._damaged(error) from error
        raise LanguageError(self._busy())

    def _damaged(self, error: Exception) -> LanguageError:
        # The parser of headers of safetensors files speaks of these.
        why = str(error).replace("the header", "it").rstrip(".")
        return LanguageError(
            f"Stream.open: '{self.path / _NAME}' is damaged or of another version: {why}. Take "
            "the folder from a copy, or begin a stream in another one."
        )

    def _busy(self) -> str:
        return (
            f"Stream.open: '{self.path}' is being changed all the time; wait until the process "
            "that writes to it has finished, and open it again."
        )

    def contents(self) -> Contents | None:
        """The stream with its facts; None if nothing is there.

        Raises:
            LanguageError: as for `read`, or a file is missing or not what the stream wrote.
        """
        for _ in range(_TRIES):
            manifest = self.read()
            if manifest is None:
                return None
            try:
                return self._loaded(manifest)
            except LanguageError:
                # Readers need no lock. What fails while `stream.json` stays the same is damaged.
                if self._mark() == manifest.mark:
                    raise
        raise LanguageError(self._busy())

    def _loaded(self, manifest: Manifest) -> Contents:
        digests, files = dict(manifest.digests), {}
        for number in sorted(manifest.numbers):
            files[number], found = load_rows(self._file(number), len(manifest.layers))
            # Version 1 has none: what is there now is what will be held to.
            if digests.setdefault(number, found) != found:
                raise LanguageError(
                    f"Stream.open: '{self._file(number)}' is not what the stream wrote: it is "
                    "damaged, or of another stream. Take the folder from a copy."
                )
        facts = []
        places = ((*manifest.places[request.label], request) for request in manifest.requests)
        for number, some in itertools.groupby(places, key=lambda place: place[0]):
            facts.append(facts_in(files[number], [place[1:] for place in some], manifest.layers))
        return Contents(replace(manifest, digests=digests), facts)

    # ------------------------------------------------------------------ writing

    def begin(self, manifest: Manifest) -> Manifest:
        """Make the folder; gives what was written."""
        self.path.mkdir(parents=True, exist_ok=True)
        with locked(self.path, "Stream.open"):
            # Another process may have begun it meanwhile; what is new here has no mark.
            self.check("Stream.open", manifest)
            begun: list[Manifest] = []
            self._replace(replace(manifest, generation=0), begun.append)
            return begun[0]

    def check(self, call: str, old: Manifest) -> None:
        """Refuse what would be made to another stream than the caller has read or written.

        Raises:
            LanguageError: somebody else wrote to the folder.
        """
        if self._mark() != old.mark:
            raise LanguageError(
                f"{call}: '{self.path}' was changed since it was opened here, by another process "
                "or another Stream; nothing was written. Open it again with Stream.open and repeat "
                "the call."
            )

    def write(
        self,
        call: str,
        old: Manifest,
        requests: Sequence[Request],
        facts: Facts | None,
        done: Callable[[Manifest], object],
    ) -> None:
        """Change what is there.

        Args:
            call: for messages.
            old: as the folder was read or written by the caller; refused if it is another now.
            requests: the facts that there shall be, in the order of entry.
            facts: those of them that are new, with their keys and values.
            done: called with what was written, once it is on the disk; also where an exception
                comes after that.

        Raises:
            LanguageError: somebody else wrote to the folder, or it cannot be locked.
            OSError: the disk is full, ...; the stream is as it was.
        """
        with locked(self.path, call):
            self.check(call, old)
            try:
                self._write(old, requests, facts, done)
            finally:
                self._sweep()

    def _write(
        self,
        old: Manifest,
        requests: Sequence[Request],
        facts: Facts | None,
        done: Callable[[Manifest], object],
    ) -> None:
        # Also above what a killed process left.
        number = max([old.next, *(1 + there for there in self._numbered().values())])
        places, digests = dict(old.places), dict(old.digests)
        if facts is not None:
            rk.save(tensors_of(facts, old.layers), self._file(number))
            digests[number] = digest_of(self._file(number))
            places |= {r.label: (number, row) for row, r in enumerate(facts.requests)}
            number += 1
        # Files are never rewritten: rows that were undone stay while the file has others.
        labels = [request.label for request in requests]
        new = replace(
            old,
            requests=requests,
            places=dict(zip(labels, map(places.__getitem__, labels), strict=True)),
            generation=old.generation + 1,
            next=number,
        )
        used = new.numbers
        digests = {n: digest for n, digest in digests.items() if n in used}
        left = [page.of(new.places) for page in old.pages]
        left = [page for page in left if len(page.gone) < len(page.requests)]
        self._replace(self._sealed(replace(new, digests=digests, pages=tuple(left))), done)

    def _sealed(self, manifest: Manifest) -> Manifest:
        """The facts of `stream.json` in a page of their own, if they are many."""
        inline = [(request, manifest.places[request.label]) for request in manifest.inline]
        if len(inline) <= pages.SEALED_AT:
            return manifest
        page = self._pages.write(manifest.next, inline, manifest.digests)
        return replace(manifest, pages=(*manifest.pages, page), next=manifest.next + 1)

    def _replace(self, manifest: Manifest, done: Callable[[Manifest], object]) -> None:
        data = encoded(manifest)
        # Before it takes the place of one that can be read.
        new, whole = written(manifest, data, self._pages), False
        try:
            with atomic_write(self.path / _NAME) as temporary:
                temporary.write_bytes(data)
            whole = True
        finally:
            # Ctrl-C, or an error of the disk, may come between the new name and the end of this.
            if whole or self._mark() == new.mark:
                self._last = new
                done(new)

    def _sweep(self) -> None:
        """Remove what no fact needs, and what killed processes left."""
        # By what `stream.json` says now, whatever came before. What cannot be removed now is so at
        # the next change.
        with contextlib.suppress(OSError, LanguageError):
            same = self._last is not None and self._mark() == self._last.mark
            manifest = self._last if same else self.read()
            if manifest is None:
                return
            used = {name_of(number) for number in manifest.numbers}
            used |= {page_of(page.number) for page in manifest.pages}
            for name in self._numbered().keys() - used:
                (self.path / name).unlink(missing_ok=True)
            for entry in list(self.path.iterdir()):
                aside = _ASIDE.fullmatch(entry.name)
                if aside:
                    remove_stale(self.path / aside[1])

    # ------------------------------------------------------------------ what is there

    def _bytes(self) -> bytes | None:
        try:
            with open_regular(self.path / _NAME) as (stream, _):
                return stream.read()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, rk.EditFileError) as error:
            raise LanguageError(
                f"Stream.open: '{self.path / _NAME}' cannot be read: {error}"
            ) from error

    def _mark(self) -> str:
        """The digest of `stream.json`; empty if there is none."""
        data = self._bytes()
        return "" if data is None else hashlib.sha256(data).hexdigest()

    def _numbered(self) -> dict[str, int]:
        """The numbers of files that only a stream writes, by name."""
        names = [entry.name for entry in self.path.iterdir()]
        found = {n: number_of(n) if n[:1] == "f" else page_number_of(n) for n in names}
        return {name: number for name, number in found.items() if number is not None}

    def _file(self, number: int) -> Path:
        return self.path / name_of(number)

    def _is_empty(self) -> bool:
        if not self.path.exists():
            return True
        # A process that was killed while it began the stream leaves its lock, and what it wrote.
        return self.path.is_dir() and all(
            entry.name == LOCK or _ASIDE.fullmatch(entry.name) for entry in self.path.iterdir()
        )
