"""The share of one process among those that collect together, and what they must agree on."""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn

from rankedit.collecting.sharing import Group
from rankedit.errors import StatisticsError
from rankedit.models.reading import tensor_parallel
from rankedit.moments import SecondMoment

Item = TypeVar("Item")
_REMEDY = (
    "look for the first error of the other processes in the log, above this one. With checkpoint= "
    "nothing is lost: start the same command again and every process goes on where it stopped"
)


@dataclass(frozen=True)
class Ranks:
    """This process and how many there are.

    Attributes:
        rank: number of this process, from 0.
        size: number of processes; 1 if no process group of torch is initialised.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls) -> Ranks:
        """The default process group, which torchrun's variables and `init_process_group` make."""
        distributed = torch.distributed
        if not (distributed.is_available() and distributed.is_initialized()):
            return cls()
        return cls(distributed.get_rank(), distributed.get_world_size())

    def share(self, batches: Iterable[Item]) -> Iterator[Item]:
        """Every `size`-th batch, beginning with the `rank`-th."""
        return itertools.islice(batches, self.rank, None, self.size)

    def share_of(self, total: int) -> int:
        """How many of `total` batches are this process's."""
        return len(range(self.rank, total, self.size))

    def gather(self, value: Item) -> list[Item]:
        """What every process says, in the order of the processes.

        Raises:
            StatisticsError: another process died or did not answer in time.
        """
        if self.size == 1:
            return [value]
        gathered: list[Any] = [None] * self.size
        with said_clearly(self):
            torch.distributed.all_gather_object(gathered, value)
        return gathered


@contextlib.contextmanager
def said_clearly(ranks: Ranks) -> Iterator[None]:
    """Turn the transport's error after the death of a process into one that says what to do."""
    try:
        yield
    except StatisticsError:
        raise
    # The backends raise RuntimeError (and its subclass DistBackendError) for all their failures.
    except RuntimeError as error:
        raise StatisticsError(
            f"collect: process {ranks.rank} of {ranks.size} lost the others: one of them died, or "
            f"did not answer in time; {_REMEDY}. The transport said: {str(error)[:300]}"
        ) from error


def check_shares(ranks: Ranks, first: str, *, sharded_here: bool) -> None:
    """Refuse batches that would be counted twice, or of which only a part would be counted.

    Args:
        ranks: this process.
        first: a digest of the first batch that the caller passed; empty if there was none.
        sharded_here: whether `collect` takes this process's share of the batches itself.

    Raises:
        StatisticsError: on all processes at once.
    """
    firsts = [digest for digest in ranks.gather(first) if digest]
    if ranks.size == 1 or len(firsts) < 2:
        return
    if sharded_here and len(set(firsts)) > 1:
        raise StatisticsError(
            "collect: shard=True needs the same batches in every process, of which each takes its "
            "share, but the first ones differ; pass shard=False if each process has its own, and "
            "no shuffling that depends on the process otherwise."
        )
    if not sharded_here and len(set(firsts)) < len(firsts):
        raise StatisticsError(
            "collect: shard=False needs other batches in every process, but two have the same "
            "first one, which would count twice; pass shard=True to have each take its share."
        )


def reduced(groups: Sequence[Group], ranks: Ranks) -> list[Group]:
    """The sums over all processes; two projections share one if they do in every process.

    Raises:
        StatisticsError: another process died, or vectors were lost or doubled on the way.
    """
    if ranks.size == 1:
        return list(groups)
    own = {name: number for number, group in enumerate(groups) for name in group.members}
    sizes = [(group.moment.dim, group.kept, group.offered) for group in groups]
    everywhere = ranks.gather((own, sizes))
    names = dict.fromkeys(name for numbers, _ in everywhere for name in numbers)
    classes: dict[tuple[int | None, ...], list[str]] = {}
    for name in names:
        place = tuple(numbers.get(name) for numbers, _ in everywhere)
        classes.setdefault(place, []).append(name)
    result = []
    for place, members in classes.items():
        found = [
            s[number]
            for number, (_, s) in zip(place, everywhere, strict=True)
            if number is not None
        ]
        mine = place[ranks.rank]
        # A shallow copy: reducing gives it new sums and leaves those of the group alone, which
        # may be part of another class too.
        moment = SecondMoment(found[0][0]) if mine is None else copy.copy(groups[mine].moment)
        with said_clearly(ranks):
            moment.all_reduce_()
        total = Group(moment, members, sum(s[1] for s in found), sum(s[2] for s in found))
        check_count(total)
        result.append(total)
    return result


def check_count(group: Group) -> None:
    """Compare the reduced count with the vectors that the processes say they read.

    Raises:
        StatisticsError: they differ.
    """
    if group.moment.seen != group.kept:
        raise StatisticsError(
            f"collect: the processes read {group.kept} vectors at {group.members[0]!r}, but their "
            f"sum has {group.moment.seen:g}; the statistics would be wrong. Do all processes run "
            "the same version of this library?"
        )


def check_not_split(model: nn.Module, ranks: Ranks) -> None:
    """Refuse tensor parallelism, under which all processes must run the same batches.

    Raises:
        StatisticsError: a parameter stays split: each process would run its own batches, and what
            layers exchange would mix them without an error.
    """
    name = tensor_parallel(model) if ranks.size > 1 else None
    if name is not None:
        raise StatisticsError(
            f"collect: the model is split over processes by tensor parallelism ({name!r}), where "
            "all must run the same batches, but each process runs its share here; collect with the "
            "whole model in each process, spread by device_map, or under fully_shard."
        )
