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
from collections.abc import Callable, Sequence
from dataclasses import replace
from os import PathLike

import rankedit as rk
from rankedit.atomic import atomic_write, remove_stale
from rankedit_recipes.language.errors import LanguageError
from rankedit_recipes.language.requests import Request
from rankedit_recipes.language.searching.spreading import Facts
from rankedit_recipes.language.streams import pages
from rankedit_recipes.language.streams.decoding import written
from rankedit_recipes.language.streams.locking import locked
from rankedit_recipes.language.streams.manifest import Manifest, encoded
from rankedit_recipes.language.streams.pages import name_of, number_of, page_number_of, page_of
from rankedit_recipes.language.streams.reading import ASIDE, NAME, Reader
from rankedit_recipes.language.streams.rows import digest_of, tensors_of


class Folder(Reader):
    """A stream on disk, to be written too.

    Args:
        path: the folder; made when the stream begins.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        super().__init__(path)
        self._last: Manifest | None = None

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
        if self.mark() != old.mark:
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
        new, whole = written(manifest, data), False
        try:
            with atomic_write(self.path / NAME) as temporary:
                temporary.write_bytes(data)
            whole = True
        finally:
            # Ctrl-C, or an error of the disk, may come between the new name and the end of this.
            if whole or self.mark() == new.mark:
                self._last = new
                done(new)

    def _sweep(self) -> None:
        """Remove what no fact needs, and what killed processes left."""
        # By what `stream.json` says now, whatever came before. What cannot be removed now is so at
        # the next change.
        with contextlib.suppress(OSError, LanguageError):
            same = self._last is not None and self.mark() == self._last.mark
            manifest = self._last if same else self.read()
            if manifest is None:
                return
            used = {name_of(number) for number in manifest.numbers}
            used |= {page_of(page.number) for page in manifest.pages}
            for name in self._numbered().keys() - used:
                (self.path / name).unlink(missing_ok=True)
            for entry in list(self.path.iterdir()):
                aside = ASIDE.fullmatch(entry.name)
                if aside:
                    remove_stale(self.path / aside[1])

    def _numbered(self) -> dict[str, int]:
        """The numbers of files that only a stream writes, by name."""
        names = [entry.name for entry in self.path.iterdir()]
        found = {n: number_of(n) if n[:1] == "f" else page_number_of(n) for n in names}
        return {name: number for name, number in found.items() if number is not None}
