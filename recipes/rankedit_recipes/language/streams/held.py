"""The facts of a stream in memory, changed only after they were written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

import rankedit as rk
from rankedit.interrupt import completely
from rankedit.shapes import check_rows
from rankedit_recipes.language.editing import Engine, enter
from rankedit_recipes.language.errors import LanguageError
from rankedit_recipes.language.requests import Request
from rankedit_recipes.language.searching.spreading import Facts


class Solving(NamedTuple):
    """What edits are solved from.

    Attributes:
        ledgers: by projection.
        keys: by name of the fact, what the lowest projection reads.
    """

    ledgers: dict[str, rk.Ledger]
    keys: dict[str, Tensor]


class Held:
    """Facts, and their keys and values in ledgers, once these were read.

    Args:
        engine: model, method and statistics.

    Attributes:
        requests: the facts by name, in the order of entry; None as long as they were not read.
        solving: ledgers and keys; None as long as keys and values were not read.
    """

    def __init__(self, engine: Engine) -> None:
        self.requests: dict[str, Request] | None = None
        self.solving: Solving | None = None
        self._engine = engine
        self._whole = True

    @property
    def named(self) -> dict[str, Request]:
        """`requests`, which were read."""
        if self.requests is None:
            raise RuntimeError("Held: the facts were not read yet; see Kept.name.")
        return self.requests

    @property
    def loaded(self) -> Solving:
        """`solving`, which was read."""
        if self.solving is None:
            raise RuntimeError("Held: keys and values were not read yet; see Kept.load.")
        return self.solving

    def take(self, requests: Sequence[Request], facts: Facts | None = None) -> None:
        """Hold facts that are there already.

        Args:
            requests: the facts.
            facts: the same with keys and values; None if there are no facts.
        """
        solving = Solving(self._engine.ledgers(), {})
        self._enter(solving, facts)
        # What was built beside is put in its place in one step each: Ctrl-C leaves it unread.
        self.name(requests)
        self.solving = solving

    def name(self, requests: Sequence[Request]) -> None:
        """Hold facts that are there already, without keys and values."""
        self.requests = {request.label: request for request in requests}

    def after(self, gone: Sequence[str], facts: Facts | None) -> list[Request]:
        """The facts that there will be after `exchange`; it cannot be refused then.

        Raises:
            SolveError: a name is taken.
            ShapeError: keys or values do not fit.
            LanguageError: an earlier exchange was interrupted twice.
        """
        if not self._whole:
            raise LanguageError(
                "Stream: a change of this stream was interrupted twice, and what it has in memory "
                "is not known; open it again."
            )
        out = set(gone)
        left = [request for name, request in self.named.items() if name not in out]
        if facts is None:
            return left
        names = {request.label for request in left}
        for request in facts.requests:
            if request.label in names:
                raise rk.SolveError(
                    f"Stream.enter: {request.label!r} is in the stream already; use replace, or "
                    "another name."
                )
        self._check_shapes(facts)
        # What ledgers would refuse is refused by empty ones, before anything is written.
        enter(self._engine.ledgers(), facts)
        return left + list(facts.requests)

    def _check_shapes(self, facts: Facts) -> None:
        for name in self._engine.metrics:
            view = rk.Projection(self._engine.model.get_submodule(name))
            for kind, rows, width in (
                ("keys", facts.keys, view.in_features),
                ("lacking", facts.lacking, view.out_features),
            ):
                # One number would do for a row where they are added.
                check_rows("Stream.enter", f"{kind} of {name!r}", rows.get(name), width, len(facts))

    def exchange(
        self, gone: Sequence[str], facts: Facts | None, then: Callable[[], object] | None = None
    ) -> None:
        """Take facts out, put others in, and do what belongs to it; whole, under signals too."""
        # Each may be repeated: what is there by then is taken out again, and put in anew.
        names = [*gone, *(request.label for request in (facts.requests if facts else ()))]
        completely([
            lambda: setattr(self, "_whole", False),
            lambda: self._remove(names),
            lambda: self._put(facts),
            then or (lambda: None),
            lambda: setattr(self, "_whole", True),
        ])  # fmt: skip

    def _remove(self, names: Sequence[str]) -> None:
        requests = self.named
        for name in names:
            requests.pop(name, None)
            if self.solving is None:
                continue
            for ledger in self.solving.ledgers.values():
                if name in ledger:
                    ledger.remove(name)
            self.solving.keys.pop(name, None)

    def _put(self, facts: Facts | None) -> None:
        if facts is None:
            return
        # Keys and values that were not read yet will be read with these, in the order of entry.
        if self.solving is not None:
            self._enter(self.solving, facts)
        self.named.update({request.label: request for request in facts.requests})

    def _enter(self, solving: Solving, facts: Facts | None) -> None:
        if facts is None:
            return
        enter(solving.ledgers, facts)
        first = self._engine.chosen[0].down
        for number, request in enumerate(facts.requests):
            solving.keys[request.label] = facts.keys[first][number]
