"""What one Stream has: facts that are read from its folder when they are asked for, then held."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

from rankedit_recipes.language.editing import Engine
from rankedit_recipes.language.errors import LanguageError
from rankedit_recipes.language.requests import Request
from rankedit_recipes.language.searching.spreading import Facts
from rankedit_recipes.language.streams.folder import Folder
from rankedit_recipes.language.streams.held import Held, Solving
from rankedit_recipes.language.streams.manifest import Manifest
from rankedit_recipes.language.streams.original import Original
from rankedit_recipes.language.streams.resuming import begun_with, check_places, settings_to_go_on
from rankedit_recipes.language.streams.rows import joined

_T = TypeVar("_T")
# As for a reader of the whole folder.
_TRIES = 20


class Kept:
    """Facts in memory, and in a folder as it was when it was opened, or last written to from here.

    Numbered files never change, so that what `stream.json` said then can be read later, unless
    another process has taken it out since. If nobody has seen a fact of it by then, the folder is
    opened anew, as it is now; else that is refused, for what was seen would not be what is solved.

    Args:
        engine: model, method and statistics.
        folder: begun, or gone on with; None for memory only.

    Attributes:
        original: the projections, as they are to stay.
        lock: around everything that changes facts: a change is made to what the last one left.
    """

    def __init__(self, engine: Engine, folder: Folder | None) -> None:
        self._engine, self._held = engine, Held(engine)
        self.original = Original(engine.model, [block.down for block in engine.chosen])
        self.lock = threading.RLock()
        self._folder = folder
        if folder is None:
            self._held.take(())
            return
        self._manifest = self._accepted(folder)
        lacks = not self._manifest.numbers <= self._manifest.digests.keys()
        # A new one has no facts; of version 1, which has no digests, what is there now is held to.
        if self._manifest.next == 0 or lacks:
            self.loaded("Stream.open")

    def _accepted(self, folder: Folder) -> Manifest:
        """Begin the stream in a folder, or take over what is there, which is not read yet."""
        noted = begun_with(self._engine, self.original.base)
        head = folder.head()
        if head is None:
            return folder.begin(noted)
        # Asked again by `open`'s own engine: the folder may have been begun anew meanwhile.
        settings_to_go_on(head, folder.path, self._engine.settings)
        check_places(head, folder.path, self._engine.model, None, self._engine.prefixes)
        head.check(noted, folder.path)
        self.original.check("Stream.open")
        return head

    def named(self, call: str) -> dict[str, Request]:
        """The facts by name, in the order of entry; keys and values are not read for them.

        Args:
            call: for messages.

        Raises:
            LanguageError: pages are damaged, or gone.
        """
        # Without the lock where they are there: whoever adds may hold it for an hour.
        if self._held.requests is None and self._folder is not None:
            with self.lock:
                self._name(self._folder, call)
        return self._held.named

    def loaded(self, call: str) -> Solving:
        """Ledgers and keys of the facts.

        Args:
            call: for messages.

        Raises:
            LanguageError: files are damaged, or gone, or the model is edited.
        """
        if self._held.solving is None and self._folder is not None:
            with self.lock:
                # Ledgers take nothing for a layer that is edited.
                self.original.check(call)
                self._load(self._folder, call)
        return self._held.loaded

    def _name(self, folder: Folder, call: str) -> None:
        if self._held.requests is None:
            self._manifest = self._read(folder, call, folder.whole)
            self._held.name(self._manifest.requests)

    def _load(self, folder: Folder, call: str) -> None:
        if self._held.solving is None:
            self._manifest, facts = self._read(folder, call, folder.loaded)
            self._held.take(self._manifest.requests, joined(facts) if facts else None)

    def _read(self, folder: Folder, call: str, act: Callable[[Manifest, str], _T]) -> _T:
        for _ in range(_TRIES):
            try:
                return act(self._manifest, call)
            except LanguageError:
                if folder.mark() == self._manifest.mark:
                    raise
                if self._held.requests is not None:
                    folder.check(call, self._manifest)
            self._manifest = self._accepted(folder)
        raise folder.busy()

    def check(self, call: str) -> None:
        """Read all that is on the disk again, and compare it with its digests.

        Raises:
            LanguageError: a file is damaged or gone, or somebody else wrote to the folder.
        """
        if self._folder is None:
            return
        with self.lock:
            self._folder.check(call, self._manifest)
            # By a reader of its own: one that has read a page before does not read it again.
            again = Folder(self._folder.path)
            head = again.head(call)
            if head is not None:
                again.loaded(head, call)

    def check_current(self, call: str) -> None:
        """Refuse before anything is searched for what would be refused after it."""
        if self._folder is not None:
            self._folder.check(call, self._manifest)

    def change(self, call: str, gone: Sequence[str], facts: Facts | None) -> None:
        """Take facts out and put others in: on the disk first, then in memory."""

        def done(manifest: Manifest) -> None:
            # If this is not reached, the next change is refused: the folder is another one then.
            self._held.exchange(gone, facts, lambda: setattr(self, "_manifest", manifest))

        with self.lock:
            self.original.check(call)
            self.named(call)
            requests = self._held.after(gone, facts)
            if self._folder is None:
                self._held.exchange(gone, facts)
            else:
                self._folder.write(call, self._manifest, requests, facts, done)
