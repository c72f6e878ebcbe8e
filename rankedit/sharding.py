"""One of several parts into which work is divided, by numbers that every launcher can count."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass

from rankedit.errors import RankeditWarning, StatisticsError

_TYPED = re.compile(r"(\d{1,9})/(\d{1,9})", re.ASCII)
# What launchers tell each process of its place, and of how many there are.
_TORCHRUN = ("RANK", "WORLD_SIZE")
_SLURM = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT")


@dataclass(frozen=True)
class Shard:
    """Part `index` of `count`, counted from 1: of things numbered from 0 every `count`-th.

    Thing k is in shard `k mod count + 1`. Each is in exactly one shard, whatever their number, and
    nobody needs to know that number.

    Attributes:
        index: from 1 to `count`.
        count: how many parts there are.

    Raises:
        StatisticsError: no whole numbers, or an index that is none of 1 to `count`.

    Example:
        >>> shard = Shard.parse("2/3")
        >>> [number for number in range(8) if shard.takes(number)], str(shard)
        ([1, 4, 7], '2/3')
    """

    index: int
    count: int

    def __post_init__(self) -> None:
        whole = type(self.index) is int and type(self.count) is int
        if not whole or not 1 <= self.index <= self.count:
            raise StatisticsError(
                f"Shard: must be one of 1 to the number of shards, such as 3/64 or 64/64, got "
                f"{self.index!r:.40}/{self.count!r:.40}; shards are counted from 1, ranks from 0."
            )

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def takes(self, number: int) -> bool:
        """Whether the thing with this number, from 0, is in this part."""
        return number % self.count == self.index - 1

    @classmethod
    def parse(cls, text: str, environment: Mapping[str, str] | None = None) -> Shard:
        """From `"3/64"`; from what torchrun or a Slurm array says of this process if `"auto"`.

        Args:
            text: what somebody typed.
            environment: variables of the process, `os.environ`.

        Raises:
            StatisticsError: neither, or nothing or two different things are said.
        """
        if text == "auto":
            return _from_environment(environment or {})
        typed = _TYPED.fullmatch(text.strip())
        if typed is None:
            raise StatisticsError(
                f"Shard: must be a part and the number of parts, such as 3/64, or 'auto' under "
                f"torchrun and in a Slurm array, got {text!r:.80}."
            )
        return cls(int(typed[1]), int(typed[2]))

    def mark(self, corpus: str, settings: Mapping[str, str | int]) -> str:
        """What a file of this part says of itself, as one text of its metadata (`"shard"`).

        Args:
            corpus: of all parts together.
            settings: what must be the same in all parts.
        """
        return encoded_mark([self.index], self.count, corpus, settings)


def encoded_mark(
    shards: list[int], count: int, corpus: str, settings: Mapping[str, str | int]
) -> str:
    """The mark of a file that holds the sums of several parts."""
    mark = {"count": count, "shards": shards, "corpus": corpus, "settings": dict(settings)}
    return json.dumps(mark, separators=(",", ":"), sort_keys=True)


def missing_in(mark: str) -> tuple[list[int], int]:
    """Which shards a file does not hold, by its mark, and of how many; none without a mark.

    Raises:
        StatisticsError: it is none.
    """
    if not mark:
        return [], 0
    try:
        found = json.loads(mark)
        shards, count = set(found["shards"]), found["count"]
        return [number for number in range(1, count + 1) if number not in shards], count
    except (ValueError, KeyError, TypeError) as error:
        raise StatisticsError(
            f"Shard: what a file says of its shards is damaged: {error}; collect it again."
        ) from error


def warn_of_missing(call: str, path: object, mark: str) -> None:
    """Warn that a file holds the statistics of a part of the data only.

    Warns:
        RankeditWarning: how many shards are missing.
    """
    missing, count = missing_in(mark)
    if missing:
        warnings.warn(
            f"{call}: '{path}' holds {count - len(missing)} of {count} shards of its data; merge "
            "all of them (`rankedit stats merge`, or rankedit.merge_shards) to use the rest too.",
            RankeditWarning,
            stacklevel=3,
        )


def _from_environment(environment: Mapping[str, str]) -> Shard:
    found = []
    if all(name in environment for name in _TORCHRUN):
        rank, size = (_number(environment, name) for name in _TORCHRUN)
        found.append(Shard(rank + 1, size))
    if all(name in environment for name in _SLURM):
        task, count = (_number(environment, name) for name in _SLURM)
        # Arrays begin anywhere and may count in steps: --array=10-70:20 has 10, 30, 50 and 70.
        first = _number(environment, "SLURM_ARRAY_TASK_MIN", "1")
        step = _number(environment, "SLURM_ARRAY_TASK_STEP", "1")
        found.append(Shard((task - first) // max(step, 1) + 1, count))
    several = [shard for shard in found if shard.count > 1]
    if len(several) > 1 or not found:
        said = " and ".join(map(str, several)) or "nothing"
        raise StatisticsError(
            f"Shard: 'auto' needs RANK and WORLD_SIZE (torchrun, accelerate launch) or an array "
            f"job of Slurm, and one of the two; the environment says {said}. Name the part, such "
            "as 3/64."
        )
    return (several or found)[0]


def _number(environment: Mapping[str, str], name: str, default: str = "") -> int:
    text = environment.get(name, default)
    if not re.fullmatch(r"\d{1,9}", text, re.ASCII):
        raise StatisticsError(f"Shard: {name} must be a whole number, got {text!r:.40}.")
    return int(text)
