"""Which batches a process has still to run, and whether they are those of the interrupted run."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Sized
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

from rankedit.collecting.batches import Noted
from rankedit.collecting.checkpoint import Plan, State
from rankedit.collecting.digests import batch_digest
from rankedit.collecting.ranks import Ranks, check_shares
from rankedit.errors import StatisticsError

Batch = TypeVar("Batch")


@runtime_checkable
class Stateful(Protocol):
    """Something to loop over that goes on from a place, as torchdata and datasets have it.

    One whose state leads to other data, as that of a shuffle buffer of datasets does, is refused.
    """

    def state_dict(self) -> dict[str, Any]:
        """The place behind what was given last."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Begin there when looped over next."""
        ...


@runtime_checkable
class Measured(Protocol):
    """Something to loop over whose length nobody knows, but how much of it is done."""

    def share(self) -> float | None:
        """The part of all that was given, from 0 to 1; None if that is not known either."""
        ...


class Remaining(Generic[Batch]):
    """This process's batches, less those that were done earlier; to be looped over once.

    Args:
        batches: all that `collect` was given.
        plan: which share of them is this process's.
        state: how far the run was that is gone on with.
        file: the checkpoint, for messages.

    Attributes:
        total: number of this process's batches, with those that were done; None if unknown.
        first: digest of the first batch of all, once that is known.
        done: digest of this process's batches up to the one that came last.
        place: where batches that can go on from a place were before the one that came last, and
            `done` there, as JSON; empty where none can.
    """

    def __init__(
        self, batches: Iterable[Batch], plan: Plan, state: State, file: Path | None
    ) -> None:
        self._batches, self._plan, self._state, self._file = batches, plan, state, file
        self._ranks = Ranks(plan.rank, plan.size)
        self.first, self.done, self.place = state.first, "", ""
        self._behind = ""  # the place behind the batch that came last
        self.total = len(batches) if isinstance(batches, Sized) else None
        if self.total is not None and plan.shard:
            self.total = self._ranks.share_of(self.total)

    def share(self) -> float | None:
        """The part of all batches that was given; None if nobody knows."""
        return self._batches.share() if isinstance(self._batches, Measured) else None

    def check_even(self) -> None:
        """Processes that hold parts of one model wait for each other in every forward pass.

        Raises:
            StatisticsError: they would have to run unequally many.
        """
        size, batches = self._ranks.size, self._batches
        if self._plan.shard and isinstance(batches, Sized) and len(batches) % size:
            raise StatisticsError(
                f"collect: the model is sharded over {size} processes, which must run equally many "
                f"batches, but {len(batches)} batches cannot be shared evenly; pass a multiple of "
                f"{size}."
            )

    def __iter__(self) -> Iterator[Batch]:
        place = _parsed(self._state.place)
        for batch in self._from_place(*place) if place else self._from_front():
            self.place, self._behind = self._behind, self._noted()
            yield batch

    def _noted(self) -> str:
        if self._file is None or not isinstance(self._batches, Stateful):
            return ""
        try:
            return json.dumps({"state": self._batches.state_dict(), "done": self.done})
        except (TypeError, ValueError):  # such as tensors: this one is read from the front
            return ""

    def _from_place(self, place: dict[str, Any], done: str) -> Iterator[Batch]:
        """The batches behind those that were done, which are not read again."""
        if not isinstance(self._batches, Stateful):
            raise StatisticsError(self._other_data("data that could go on from a place"))
        # What cannot be compared any more is what the file says: all processes still agree on it.
        self._check_first(self._state.first)
        self._batches.load_state_dict(place)
        self.done = done
        left: Iterable[Batch] = self._batches
        if self._plan.shard:  # the next one of this process comes after one of each of the others
            left = itertools.islice(left, self._ranks.size - 1, None, self._ranks.size)
        known = False
        for batch in left:
            self.done = batch_digest(batch, before=self.done, whole=False)
            if known:
                yield batch
                continue
            # The last one that was done comes again: only so a state is known to lead back to it.
            if self.done != self._state.done:
                raise StatisticsError(self._other_data("data whose state leads back to them"))
            known, self._behind = True, self._noted()
        if not known:
            raise StatisticsError(self._other_data("data that went on behind it"))

    def _from_front(self) -> Iterator[Batch]:
        done = self._state.batches
        common = Noted(self._batches)
        number = -1
        for number, batch in enumerate(self._ranks.share(common) if self._plan.shard else common):
            if number == 0:
                self._check_first(common.first)
            self.done = batch_digest(batch, before=self.done, whole=False)
            if number == done - 1 and self._state.done != self.done:
                raise StatisticsError(self._other_data(f"other data in its {done} batches"))
            if number >= done:
                yield batch
        # Without a batch of its own, a process agrees with the others all the same.
        if number < 0:
            self._check_first(common.first)
        if number + 1 < done:
            raise StatisticsError(
                f"collect: the checkpoint '{self._file}' has {done} batches of this process, but "
                f"there are only {number + 1}; resume with the same data, or remove the file."
            )

    def _check_first(self, first: str) -> None:
        """The data must be those of the other processes, and those of the interrupted run."""
        check_shares(self._ranks, first, sharded_here=self._plan.shard)
        if self._state.first not in ("", first):
            raise StatisticsError(self._other_data("data with another first batch"))
        self.first = first

    def _other_data(self, data: str) -> str:
        return (
            f"collect: the checkpoint '{self._file}' was made from {data}; resume with the same "
            "data in the same order (a shuffled loader needs a fixed seed), or remove the file to "
            "start again."
        )


def _parsed(place: str) -> tuple[dict[str, Any], str] | None:
    """The state of the data, and `done` there; None if it says neither."""
    noted = json.loads(place or "null")
    if not isinstance(noted, dict) or noted.keys() != {"state", "done"}:
        return None  # earlier checkpoints had the place behind the last batch
    return noted["state"], noted["done"]
