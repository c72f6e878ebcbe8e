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

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path

from torch import nn

import rankedit as rk
from rankedit_recipes.language.editing import Engine, check_requests
from rankedit_recipes.language.errors import LanguageError
from rankedit_recipes.language.methods.own import Method
from rankedit_recipes.language.model.layers import Layers
from rankedit_recipes.language.model.tokens import Tokenizer
from rankedit_recipes.language.requests import Request
from rankedit_recipes.language.searching.spreading import Facts
from rankedit_recipes.language.statistics import Statistics
from rankedit_recipes.language.streams.conflicts import (
    PARALLEL,
    FactConflict,
    parallel_keys,
    refuse_same,
    same_facts,
)
from rankedit_recipes.language.streams.folder import Folder
from rankedit_recipes.language.streams.kept import Kept
from rankedit_recipes.language.streams.resuming import check_places, settings_to_go_on

# Facts that are searched for, and written, at a time.
_CHUNK = 64
_SHOWN = 5


class Stream:
    """Edits of one model that come and go; see the module's text.

    The model must be as it was when the stream began whenever facts are added: detach the edits
    first. Make one with `open`, or from an engine for a stream that is kept in memory only.

    Threads may share one. Of several processes that opened one folder, the one that writes second
    is refused, and has to open it again.

    Args:
        engine: model, tokenizer, method and statistics.
        folder: where to keep it; begun, or gone on with. None for memory only.

    Raises:
        LanguageError: as for `open`.
    """

    def __init__(self, engine: Engine, folder: str | PathLike[str] | None = None) -> None:
        if not engine.settings.consistent:
            raise LanguageError("Stream: consistent=False edits one fact at a time; see `edit`.")
        self.engine = engine
        self._kept = Kept(engine, None if folder is None else Folder(folder))

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

        Of a folder that is there only `stream.json` is read. Names and requests are read when they
        are asked for or changed, keys and values for `edits`, `attach`, `conflicts` and `add`; each
        file is compared with its digest then. `check` reads all of them.

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
                prefixes, or damaged. So does whatever reads more of the folder later.
        """
        manifest = None if folder is None else Folder(folder).head()
        if folder is not None and manifest is not None:
            check_places(manifest, Path(folder), model, layers, prefixes)
            method = settings_to_go_on(manifest, Path(folder), method)
            layers, prefixes = manifest.layers, manifest.prefixes
        engine = Engine.build(
            model, tokenizer, "memit" if method is None else method, statistics, layers=layers,
            prefixes=prefixes, progress=progress,
        )  # fmt: skip
        return cls(engine, folder)

    # ------------------------------------------------------------------ reading

    def __len__(self) -> int:
        return len(self._kept.named("Stream.__len__"))

    def __contains__(self, name: object) -> bool:
        return name in self._kept.named("Stream.__contains__")

    def names(self) -> list[str]:
        """Names of the facts, in the order of entry."""
        return list(self._kept.named("Stream.names"))

    def requests(self) -> list[Request]:
        """The facts, in the order of entry."""
        return list(self._kept.named("Stream.requests").values())

    def edits(self) -> dict[str, rk.LowRank]:
        """The edits that make all facts true; empty if there is none.

        Raises:
            SolveError: facts with the same key contradict each other, in a method of equalities.
        """
        with self._kept.lock:
            ledgers = self._kept.loaded("Stream.edits").ledgers
            return {name: ledger.edit() for name, ledger in ledgers.items() if len(ledger)}

    def attach(self, *, strength: float = 1.0) -> rk.Attachment:
        """Put the edits into the model; detach them before facts are added."""
        return rk.attach(self.engine.model, self.edits(), strength=strength)

    def check(self) -> None:
        """Read the whole folder, and compare each of its files with its digest.

        Raises:
            LanguageError: a file is missing or not what the stream wrote, or somebody else has
                written to the folder since it was opened here.
        """
        self._kept.check("Stream.check")

    def conflicts(
        self, requests: Sequence[Request], *, threshold: float = PARALLEL
    ) -> list[FactConflict]:
        """What in some requests contradicts or moves facts of the stream, or other requests.

        Needs no search for values, and writes nothing.

        Args:
            requests: those that are to be added.
            threshold: cosine from which keys count as parallel.
        """
        self._kept.original.check("Stream.conflicts")
        there = self._kept.named("Stream.conflicts")
        new = [r for r in requests if there.get(r.label) != r]
        found = same_facts(there, new)
        if not new:
            return found
        named = [request.label for request in new]
        known = self._kept.loaded("Stream.conflicts").keys
        others = {name: key for name, key in known.items() if name not in named}
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
                (`replace` exchanges it), or as for `undo`. Nothing is added then.

        Warns:
            RankeditWarning: keys nearly parallel to those of other facts; see `conflicts`.
        """
        check_requests(requests)
        with self._kept.lock:
            there = self._kept.named("Stream.add")
            new = [r for r in requests if there.get(r.label) != r]
            if not new:
                return []
            self._kept.check_current("Stream.add")
            refuse_same(self.conflicts(new))
            for start in range(0, len(new), _CHUNK):
                facts, _ = self.engine.facts(new[start : start + _CHUNK])
                self._kept.change("Stream.add", (), facts)
            return [request.label for request in new]

    def enter(self, facts: Facts) -> None:
        """Add facts whose keys and values are known; see `Engine.facts`.

        Raises:
            SolveError: a name is taken.
        """
        self._kept.change("Stream.enter", (), facts)

    def undo(self, *names: str) -> list[Request]:
        """Take facts out, as if they had never been there; without names, the latest one.

        Returns:
            What was taken out.

        Raises:
            LanguageError: no fact of this name, a model that is edited, or a folder that somebody
                else has written to; nothing is taken out then.
        """
        with self._kept.lock:
            there = self._kept.named("Stream.undo")
            chosen = list(dict.fromkeys(names or self.names()[-1:]))
            unknown = [name for name in chosen if name not in there]
            if unknown or not chosen:
                raise LanguageError(
                    f"Stream.undo: no fact is called {(unknown or ['anything'])[0]!r}; the stream "
                    f"has {len(self)}, such as {self.names()[:_SHOWN]}."
                )
            gone = [there[name] for name in chosen]
            self._kept.change("Stream.undo", chosen, None)
            return gone

    def replace(self, request: Request) -> Request:
        """Exchange the fact of the same name, or of the same subject and relation.

        Returns:
            The one that was there.

        Raises:
            LanguageError: there is none, it would contradict a second one, or as for `undo`.
        """
        with self._kept.lock:
            there = dict(self._kept.named("Stream.replace"))
            same = same_facts(there, [request])
            if not same:
                raise LanguageError(
                    f"Stream.replace: no fact is called {request.label!r} or is about "
                    f"{request.key}; use add."
                )
            old = there.pop(same[0].first)
            # The name may be that of one fact, and subject and relation those of another.
            also = same_facts(there, [request])
            if also:
                raise LanguageError(
                    f"Stream.replace: {request.label!r} would take the place of {old.label!r}, and "
                    f"{also[0].first!r} has the same subject and relation; undo that one first."
                )
            self._kept.check_current("Stream.replace")
            self._kept.original.check("Stream.replace")
            facts, _ = self.engine.facts([request])
            self._kept.change("Stream.replace", [old.label], facts)
            return old
