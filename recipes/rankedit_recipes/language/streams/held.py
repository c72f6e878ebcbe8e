"""The facts of a stream in memory, changed only after they were written."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

import rankedit as rk
from rankedit.interrupt import completely
from rankedit.shapes import check_rows
from rankedit_recipes.language.editing import Engine, enter
from rankedit_recipes.language.errors import LanguageError
from rankedit_recipes.language.requests import Request
from rankedit_recipes.language.searching.spreading import Facts


class Held:
    """Facts with their keys, and the ledgers that solve for them.

    Args:
        engine: model, method and statistics.

    Attributes:
        ledgers: by projection.
        requests: the facts by name, in the order of entry.
        keys: by name, what the lowest projection reads.
    """

    def __init__(self, engine: Engine) -> None:
        self.ledgers = engine.ledgers()
        self.requests: dict[str, Request] = {}
        self.keys: dict[str, Tensor] = {}
        self._engine = engine
        self._whole = True

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
        left = [request for name, request in self.requests.items() if name not in out]
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
        for name in self.ledgers:
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
            lambda: self._enter(facts),
            then or (lambda: None),
            lambda: setattr(self, "_whole", True),
        ])  # fmt: skip

    def _remove(self, names: Sequence[str]) -> None:
        for name in names:
            for ledger in self.ledgers.values():
                if name in ledger:
                    ledger.remove(name)
            self.requests.pop(name, None)
            self.keys.pop(name, None)

    def _enter(self, facts: Facts | None) -> None:
        if facts is None:
            return
        enter(self.ledgers, facts)
        first = self._engine.chosen[0].down
        for number, request in enumerate(facts.requests):
            self.requests[request.label] = request
            self.keys[request.label] = facts.keys[first][number]
