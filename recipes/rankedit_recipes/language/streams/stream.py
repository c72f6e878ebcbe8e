"""A stream of edits: add facts in any order and any number of batches, undo or replace any of them.

What each fact asks of the projections depends on that fact alone, and the method solves for all of
them together, a solve of one's own too. Whatever the order of additions, replacements and removals,
the edit is the one of a single batch over what is there in the end; undoing leaves no trace.

    stream = Stream.open("facts/", model, tokenizer, method="alphaedit", statistics="stats...")
    stream.add(requests)
    with stream.attach():
        ...
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from os import PathLike

from torch import Tensor, nn

import rankedit as rk
from rankedit_recipes.language.editing import Engine, check_requests, enter
from rankedit_recipes.language.errors import LanguageError
from rankedit_recipes.language.methods.own import Method
from rankedit_recipes.language.model.layers import Layers
from rankedit_recipes.language.model.original import Original
from rankedit_recipes.language.model.tokens import Tokenizer
from rankedit_recipes.language.requests import Request
from rankedit_recipes.language.searching.spreading import Facts
from rankedit_recipes.language.statistics import Statistics, tokenizer_digest
from rankedit_recipes.language.streams.conflicts import (
    PARALLEL,
    FactConflict,
    parallel_keys,
    same_facts,
    shown,
)
from rankedit_recipes.language.streams.folder import Folder, Manifest
from rankedit_recipes.language.streams.resuming import check_places, settings_to_go_on

# Facts that are searched for, and written, at a time.
_CHUNK = 64
_SHOWN = 5


class Stream:
    """Edits of one model that come and go; see the module's text.

    The model must be as it was when the stream began whenever facts are added: detach the edits
    first. Make one with `open`, or from an engine for a stream that is kept in memory only.

    Args:
        engine: model, tokenizer, method and statistics.
        folder: where to keep it.
    """

    def __init__(self, engine: Engine, folder: Folder | None = None) -> None:
        if not engine.settings.consistent:
            raise LanguageError("Stream: consistent=False edits one fact at a time; see `edit`.")
        self.engine = engine
        self._folder = folder
        self._ledgers = engine.ledgers()
        self._requests: dict[str, Request] = {}
        self._keys: dict[str, Tensor] = {}
        self._original = Original(engine.model, engine.metrics)

    @classmethod
    def open(
        cls,
        folder: str | PathLike[str] | None,
        model: nn.Module,
        tokenizer: Tokenizer,
        *,
        statistics: Statistics | Mapping[str, rk.SecondMoment] | str | PathLike[str] | None,
        method: Method | None = None,
        layers: Layers = None,
        prefixes: Sequence[str] | None = None,
        progress: bool = True,
    ) -> Stream:
        """Begin a stream, or go on with the one in a folder.

        Args:
            folder: where the stream is kept; made if it is not there. None for memory only.
            model: the original model, without the stream's edits.
            tokenizer: its tokenizer.
            statistics: as for `edit`; the same ones each time.
            method: as for `edit`; None for the folder's, or MEMIT for a new stream. One of your own
                must be passed again, for a folder holds no code.
            layers: as for `edit`, but `"traced"`: pass what `locate` finds.
            prefixes: as for `edit`.
            progress: show it.

        Raises:
            LanguageError: the folder is of another model, tokenizer, statistics, method, layers or
                prefixes, or damaged.
        """
        kept = None if folder is None else Folder(folder)
        manifest = None if kept is None else kept.read()
        if kept is not None and manifest is not None:
            check_places(manifest, kept.path, model, layers, prefixes)
            method = settings_to_go_on(manifest, kept.path, method)
            layers, prefixes = manifest.layers, manifest.prefixes
        engine = Engine.build(
            model, tokenizer, "memit" if method is None else method, statistics, layers=layers,
            prefixes=prefixes, progress=progress,
        )  # fmt: skip
        stream = cls(engine, kept)
        if kept is None:
            return stream
        if manifest is None:
            kept.begin(stream.manifest())
        else:
            manifest.check(stream.manifest(), kept.path)
            stream._restore(kept, manifest)
        return stream

    # ------------------------------------------------------------------ reading

    def __len__(self) -> int:
        return len(self._requests)

    def __contains__(self, name: object) -> bool:
        return name in self._requests

    def names(self) -> list[str]:
        """Names of the facts, in the order of entry."""
        return list(self._requests)

    def requests(self) -> list[Request]:
        """The facts, in the order of entry."""
        return list(self._requests.values())

    def edits(self) -> dict[str, rk.LowRank]:
        """The edits that make all facts true; empty if there is none.

        Raises:
            SolveError: facts with the same key contradict each other, in a method of equalities.
        """
        return {name: ledger.edit() for name, ledger in self._ledgers.items() if len(ledger)}

    def attach(self, *, strength: float = 1.0) -> rk.Attachment:
        """Put the edits into the model; detach them before facts are added."""
        return rk.attach(self.engine.model, self.edits(), strength=strength)

    def conflicts(
        self, requests: Sequence[Request], *, threshold: float = PARALLEL
    ) -> list[FactConflict]:
        """What in some requests contradicts or moves facts of the stream, or other requests.

        Needs no search for values, and writes nothing.

        Args:
            requests: those that are to be added.
            threshold: cosine from which keys count as parallel.
        """
        self._original.check("Stream.conflicts")
        new = [r for r in requests if self._requests.get(r.label) != r]
        found = same_facts(self._requests, new)
        if not new:
            return found
        named = [request.label for request in new]
        others = {name: key for name, key in self._keys.items() if name not in named}
        metric = self.engine.metrics[self.engine.chosen[0].down]
        keys = dict(zip(named, self.engine.keys(new), strict=True))
        return found + parallel_keys(others, keys, metric, threshold)

    # ------------------------------------------------------------------ changing

    def add(self, requests: Sequence[Request]) -> list[str]:
        """Add facts; those that are there already, word for word, are skipped.

        After a crash the same call goes on with the facts that are not written yet.

        Returns:
            Names of the facts that were added.

        Raises:
            LanguageError: a request has the subject and relation, or the name, of another fact
                (`replace` exchanges it). Nothing is added then.

        Warns:
            RankeditWarning: keys nearly parallel to those of other facts; see `conflicts`.
        """
        check_requests(requests)
        new = [request for request in requests if self._requests.get(request.label) != request]
        if not new:
            return []
        conflicts = self.conflicts(new)
        same = [conflict for conflict in conflicts if conflict.kind == "same"]
        if same:
            raise LanguageError(
                f"Stream.add: {len(same)} requests are about what the stream has already, such as "
                f"{shown(same)}; use replace, or undo the old ones first."
            )
        if conflicts:
            warnings.warn(
                f"Stream.add: {len(conflicts)} pairs of facts have nearly parallel keys and move "
                f"each other's values: {shown(conflicts)}",
                rk.RankeditWarning,
                stacklevel=2,
            )
        for start in range(0, len(new), _CHUNK):
            facts, _ = self.engine.facts(new[start : start + _CHUNK])
            self.enter(facts)
        return [request.label for request in new]

    def enter(self, facts: Facts) -> None:
        """Add facts whose keys and values are known; see `Engine.facts`.

        Raises:
            SolveError: a name is taken.
        """
        self._original.check("Stream.enter")
        enter(self._ledgers, facts, self.engine.model)
        first = self.engine.chosen[0].down
        for number, request in enumerate(facts.requests):
            self._requests[request.label] = request
            self._keys[request.label] = facts.keys[first][number]
        if self._folder is not None:
            self._folder.add(facts, self.manifest())

    def undo(self, *names: str) -> list[Request]:
        """Take facts out, as if they had never been there; without names, the latest one.

        Returns:
            What was taken out.

        Raises:
            LanguageError: no fact of this name; nothing is taken out then.
        """
        chosen = names or tuple(self.names()[-1:])
        unknown = [name for name in chosen if name not in self._requests]
        if unknown or not chosen:
            raise LanguageError(
                f"Stream.undo: no fact is called {(unknown or ['anything'])[0]!r}; the stream has "
                f"{len(self)}, such as {self.names()[:_SHOWN]}."
            )
        gone = []
        for name in dict.fromkeys(chosen):
            for ledger in self._ledgers.values():
                ledger.remove(name)
            gone.append(self._requests.pop(name))
            self._keys.pop(name)
        if self._folder is not None:
            self._folder.write(self.manifest())
        return gone

    def replace(self, request: Request) -> Request:
        """Exchange the fact of the same name, or of the same subject and relation.

        Returns:
            The one that was there.

        Raises:
            LanguageError: there is none.
        """
        same = same_facts(self._requests, [request])
        if not same:
            raise LanguageError(
                f"Stream.replace: no fact is called {request.label!r} or is about "
                f"{request.key}; use add."
            )
        self._original.check("Stream.replace")
        facts, _ = self.engine.facts([request])  # before anything is given up
        (old,) = self._remove(same[0].first)
        self.enter(facts)
        return old

    def _remove(self, name: str) -> list[Request]:
        """Take a fact out of memory; what is on disk changes when its successor is entered."""
        folder, self._folder = self._folder, None
        try:
            return self.undo(name)
        finally:
            self._folder = folder

    # ------------------------------------------------------------------ keeping

    def manifest(self) -> Manifest:
        """Everything about the stream but keys and values."""
        engine = self.engine
        names = [block.down for block in engine.chosen]
        return Manifest(
            settings=engine.settings,
            solver=engine.settings.solver,
            layers=names,
            prefixes=list(engine.prefixes),
            base={name: rk.fingerprint(engine.model.get_submodule(name))[:16] for name in names},
            metrics={name: engine.metrics[name].fingerprint for name in names},
            tokenizer=tokenizer_digest(engine.tokenizer),
            requests=self.requests(),
        )

    def _restore(self, folder: Folder, manifest: Manifest) -> None:
        kept, self._folder = self._folder, None
        try:
            for facts in folder.facts(manifest):
                self.enter(facts)
        finally:
            self._folder = kept
