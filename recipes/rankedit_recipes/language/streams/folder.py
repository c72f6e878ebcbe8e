"""The folder in which a stream of edits is kept: one JSON file, and keys and values beside it.

    stream.json                  what the stream is, its facts, and digests of every file
    facts-000000.safetensors ... keys and values of the facts that were added together
    stream.lock                  empty; who writes holds it

A change is written under the lock, after `stream.json` was found to be the one that the change was
made to: first the new file, under a number that none ever had; then `stream.json`, which is
replaced in one step; then what no fact needs any more is removed. Whatever is interrupted, and
wherever, `stream.json` is the old one or the new one, and all that it names is there.
"""

from __future__ import annotations

import contextlib
import hashlib
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
from rankedit_recipes.language.streams.locking import LOCK, locked
from rankedit_recipes.language.streams.manifest import (
    Manifest,
    decoded,
    encoded,
    name_of,
    number_of,
)
from rankedit_recipes.language.streams.rows import digest_of, fact_in, load_rows, tensors_of

_NAME = "stream.json"
# What a process that was killed while it wrote leaves behind; see `rankedit.atomic`.
_ASIDE = re.compile(r"\.(facts-[0-9]+\.safetensors|stream\.json)\..*\.rankedit-(?:tmp|lock)")
# A writer that is busy all the time lets a reader through sooner.
_TRIES = 20


class Contents(NamedTuple):
    """A stream as it is read: what it says, and its facts one by one in the order of entry."""

    manifest: Manifest
    facts: list[Facts]


class Folder:
    """A stream on disk.

    Args:
        path: the folder; made when the stream begins.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        self.path = Path(path)

    # ------------------------------------------------------------------ reading

    def read(self) -> Manifest | None:
        """What the stream says; None if nothing is there. Its facts are not looked at.

        Raises:
            LanguageError: damaged, of another version, or a folder of something else.
        """
        file = self.path / _NAME
        data = self._bytes()
        if data is None and not self._is_empty():
            data = self._bytes()  # another process may have begun the stream between the two looks
            if data is None:
                raise LanguageError(
                    f"Stream.open: '{self.path}' holds something else than a stream; name an empty "
                    "folder or a new one."
                )
        if data is None:
            return None
        try:
            return decoded(data)
        # What was changed by hand lacks fields, or has others than `Request` takes.
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            # The parser of headers of safetensors files speaks of these.
            why = str(error).replace("the header", "it").rstrip(".")
            raise LanguageError(
                f"Stream.open: '{file}' is damaged or of another version: {why}. Take the folder "
                "from a copy, or begin a stream in another one."
            ) from error

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
                # Readers need no lock, so that they may look at folders that they cannot write to.
                # Files never change: what fails while `stream.json` stays the same is damaged.
                if self._mark() == manifest.mark:
                    raise
        raise LanguageError(
            f"Stream.open: '{self.path}' is being changed all the time; wait until the process "
            "that writes to it has finished, and open it again."
        )

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
        for request in manifest.requests:
            number, row = manifest.places[request.label]
            facts.append(fact_in(files[number], row, request, manifest.layers))
        return Contents(replace(manifest, digests=digests), facts)

    # ------------------------------------------------------------------ writing

    def begin(self, manifest: Manifest) -> Manifest:
        """Make the folder; gives what was written."""
        self.path.mkdir(parents=True, exist_ok=True)
        with locked(self.path, "Stream.open"):
            # Another process may have begun it meanwhile; what is new here has no mark.
            self.check("Stream.open", manifest)
            written: list[Manifest] = []
            self._replace(replace(manifest, generation=0), written.append)
            return written[0]

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
        # Also above what a killed process left: no number is ever given twice.
        number = max([old.next, *(1 + there for there in self._numbers())])
        places, digests = dict(old.places), dict(old.digests)
        if facts is not None:
            rk.save(tensors_of(facts, old.layers), self._file(number))
            digests[number] = digest_of(self._file(number))
            places |= {r.label: (number, row) for row, r in enumerate(facts.requests)}
            number += 1
        # Files are never rewritten: rows that were undone stay while the file has others.
        new = replace(
            old,
            requests=requests,
            places={request.label: places[request.label] for request in requests},
            generation=old.generation + 1,
            next=number,
        )
        digests = {n: digest for n, digest in digests.items() if n in new.numbers}
        self._replace(replace(new, digests=digests), done)

    def _replace(self, manifest: Manifest, done: Callable[[Manifest], object]) -> None:
        data = encoded(manifest)
        # Before it takes the place of one that can be read.
        written, whole = decoded(data), False
        try:
            with atomic_write(self.path / _NAME) as temporary:
                temporary.write_bytes(data)
            whole = True
        finally:
            # Ctrl-C, or an error of the disk, may come between the new name and the end of this.
            if whole or self._mark() == written.mark:
                done(written)

    def _sweep(self) -> None:
        """Remove what no fact needs, and what killed processes left."""
        # By what `stream.json` says now, whatever came before. What cannot be removed now is so at
        # the next change.
        with contextlib.suppress(OSError, LanguageError):
            manifest = self.read()
            if manifest is None:
                return
            for number in self._numbers() - manifest.numbers:
                self._file(number).unlink(missing_ok=True)
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

    def _numbers(self) -> set[int]:
        found = (number_of(entry.name) for entry in self.path.iterdir())
        return {number for number in found if number is not None}

    def _file(self, number: int) -> Path:
        return self.path / name_of(number)

    def _is_empty(self) -> bool:
        if not self.path.exists():
            return True
        # A process that was killed while it began the stream leaves its lock, and what it wrote.
        return self.path.is_dir() and all(
            entry.name == LOCK or _ASIDE.fullmatch(entry.name) for entry in self.path.iterdir()
        )
