"""The file in which an interrupted collection waits to be resumed.

A safetensors file with the sums of every group and one JSON entry `rankedit.collect`: what was
collected, from which model, how many batches are in it, and a digest of all of this. Only this
library reads it (statistics are exchanged in the format of `rankedit.files.storage`).
"""

from __future__ import annotations

import glob
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from rankedit.accumulating import Policy
from rankedit.atomic import atomic_write, check_target, remove_stale
from rankedit.collecting.ranks import Ranks
from rankedit.collecting.sharing import Group
from rankedit.errors import EditFileError, RankeditError, StatisticsError
from rankedit.files.container import (
    NO_DIGEST,
    as_tensors,
    file_digest,
    read_data,
    write_tensors,
)
from rankedit.files.header import Header, Limits, parse_json, read_header
from rankedit.moments import SecondMoment
from rankedit.packing import COARSENESS
from rankedit.provenance import Provenance
from rankedit.sums import Products

_ENTRY = "rankedit.collect"
_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in COARSENESS}
_LIMITS = Limits(header=1 << 26, tensors=1_000_000, separators=1 << 26)


@dataclass(frozen=True)
class Checkpoint:
    """Where and how often `collect` keeps its partial result.

    Attributes:
        path: the file. Processes that collect together add `.rank0-of-2` and so on to it.
        seconds: how long to work between two writes; 0 to write after every batch. Large
            statistics are written less often: writing takes no more than a tenth of the time.
        keep: whether the file stays when the collection is complete, until `remove` is called. The
            result is in memory only until it is saved: a process killed before loses it all.

    Raises:
        StatisticsError: path is no path, or seconds no number of at least 0.
    """

    path: str | os.PathLike[str]
    seconds: float = 60.0
    keep: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.path, (str, os.PathLike)):
            raise StatisticsError(f"Checkpoint: path must be a path, got {self.path!r:.80}.")
        if not isinstance(self.seconds, (int, float)) or not self.seconds >= 0:
            raise StatisticsError(
                f"Checkpoint: seconds must be a number of at least 0, got {self.seconds!r:.80}."
            )

    def remove(self) -> None:
        """Remove this process's file, once the result is saved."""
        _remove(file_of(self, Ranks.current()))


@dataclass(frozen=True)
class Plan:
    """What a collection is of. A checkpoint of another plan is refused.

    Attributes:
        names, weights: the projections, and a mark of the model's weights.
        mask: which vectors count, in words.
        provenance: what the caller says of model, tokenizer and corpus.
        rank, size: number of the process, and number of processes.
        shard: whether each process takes its share of common batches.
        extremes, products: as `SecondMoment` has them.
    """

    names: tuple[str, ...]
    weights: str
    mask: str
    provenance: Provenance
    rank: int
    size: int
    shard: bool
    extremes: Policy
    products: Products


@dataclass(frozen=True)
class State:
    """How far a collection is.

    Attributes:
        batches: number of batches done by this process.
        first, done: digests of the first batch, and of samples of all done, in their order.
        groups: the sums.
        place: where batches that can go on from a place were before the last one; empty for others.
    """

    batches: int
    first: str
    done: str
    groups: Sequence[Group]
    place: str = ""


def file_of(checkpoint: Checkpoint, process: Plan | Ranks) -> Path:
    """This process's file."""
    path = Path(checkpoint.path)
    return path if process.size == 1 else path.with_name(f"{path.name}{_suffix(process)}")


def _suffix(process: Plan | Ranks) -> str:
    return f".rank{process.rank}-of-{process.size}"


def _remove(file: Path) -> None:
    file.unlink(missing_ok=True)
    remove_stale(file)


def write(file: Path, plan: Plan, state: State) -> None:
    """Replace the file in one step."""
    tensors = {
        f"{number}/{name}": tensor.cpu().contiguous()
        for number, group in enumerate(state.groups)
        for name, tensor in group.moment.state().items()
    }
    groups = [
        {"members": g.members, "kept": g.kept, "offered": g.offered,
         "dtype": str(g.moment.dtype).removeprefix("torch.")}
        for g in state.groups
    ]  # fmt: skip
    entry = {
        "digest": NO_DIGEST,  # replaced by that of the file
        "plan": asdict(plan),
        "batches": state.batches,
        "first": state.first,
        "done": state.done,
        "place": state.place,
        "groups": groups,
    }
    text = json.dumps(entry, separators=(",", ":"))
    with atomic_write(file) as temporary, temporary.open("wb") as stream:
        write_tensors(stream, tensors, {_ENTRY: text})


def read(file: Path, plan: Plan) -> State | None:
    """The state of an earlier run of the same plan; None if there is none.

    Raises:
        StatisticsError: the file belongs to another plan, or to another number of processes.
        EditFileError: the file is damaged.
    """
    check_target(file)  # now, and not when all is done and only the file is to go
    if not file.exists():
        _check_no_other_layout(file, plan)
        return None
    try:
        with file.open("rb") as stream:
            header = read_header(stream, file.stat().st_size, _LIMITS)
            entry, tensors = _contents(stream, header)
        _check_plan(file, plan, entry["plan"])
        groups = [_group(g, n, tensors, plan) for n, g in enumerate(entry["groups"])]
        place = entry.get("place", "")  # not in files of earlier versions
        state = State(entry["batches"], entry["first"], entry["done"], groups, place)
        _check_possible(state, plan)
        return state
    except StatisticsError:
        raise  # a good file, but another plan
    # What a list or a number has not, and what the library itself refuses.
    except (KeyError, TypeError, AttributeError, ValueError, RankeditError) as error:
        raise EditFileError(
            f"collect: the checkpoint '{file}' is damaged or no checkpoint: {error}. Remove the "
            "file to start again."
        ) from error


def _contents(stream: BinaryIO, header: Header) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The entry and the tensors, after the digest of all of them was compared."""
    entry = parse_json(header.metadata[_ENTRY])
    if not isinstance(entry, dict) or not isinstance(entry["digest"], str):
        raise EditFileError(f"{_ENTRY} must be an object with a digest")
    data = read_data(stream, header)
    if file_digest(header.raw, entry["digest"], data.values()) != entry["digest"]:
        raise EditFileError("its content does not match its digest")
    return entry, as_tensors(data, header)


def _group(
    entry: Mapping[str, Any], number: int, tensors: Mapping[str, torch.Tensor], plan: Plan
) -> Group:
    prefix = f"{number}/"
    state = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    moment = SecondMoment.from_state(
        state, Provenance(), _DTYPES[entry["dtype"]], extremes=plan.extremes, products=plan.products
    )
    if not isinstance(entry["members"], list):
        raise EditFileError("the members of a group must be a list")
    return Group(moment, entry["members"], entry["kept"], entry["offered"])


def _check_possible(state: State, plan: Plan) -> None:
    """Refuse what no run could have written, whoever signed it.

    Raises:
        EditFileError: says what is impossible.
    """
    members = [name for group in state.groups for name in group.members]
    # `type` rather than `isinstance`: True is an int.
    if type(state.batches) is not int or state.batches < 1 or not state.groups:
        raise EditFileError(f"it must hold at least one batch, got {state.batches!r:.80}")
    if {str} != {*map(type, (state.first, state.done, state.place))} or not state.first:
        raise EditFileError("it must hold digests of its batches")
    if len(set(members)) != len(members) or not set(members) <= set(plan.names):
        raise EditFileError("each projection must be in one group, and be one that is collected")
    for group in state.groups:
        counted = type(group.kept) is int and type(group.offered) is int and bool(group.members)
        if not counted or not 0 <= group.kept <= group.offered:
            raise EditFileError(f"{group.kept!r:.80} of {group.offered!r:.80} vectors cannot count")
        if group.moment.seen != group.kept:
            raise EditFileError(
                f"its sums are of {group.moment.seen:g} vectors, not of {group.kept}"
            )


def _check_plan(file: Path, plan: Plan, found: Mapping[str, object]) -> None:
    wanted = json.loads(json.dumps(asdict(plan)))
    different = [name for name, value in wanted.items() if found[name] != value]
    if different:
        name = different[0]
        raise StatisticsError(
            f"collect: the checkpoint '{file}' is of another collection: its {name} is "
            f"{str(found[name])[:200]}, this one's is {str(wanted[name])[:200]}. Remove the file "
            "to start again, or give this collection another checkpoint."
        )


def _check_no_other_layout(file: Path, plan: Plan) -> None:
    """A file of another number of processes would be neither resumed nor noticed."""
    name = file.name.removesuffix(_suffix(plan)) if plan.size > 1 else file.name
    candidates = [*file.parent.glob(f"{glob.escape(name)}.rank*-of-*"), file.with_name(name)]
    own = f"-of-{plan.size}"
    others = [c for c in candidates if c.exists() and (plan.size == 1 or not c.name.endswith(own))]
    if others:
        raise StatisticsError(
            f"collect: the checkpoint '{others[0]}' was written by another number of processes "
            f"than {plan.size}. Resume with as many, or remove it to start again."
        )


class Keeper:
    """Writes the checkpoint of one process when it is time to.

    Args:
        checkpoint: where; None for no checkpoint at all.
        plan: what is collected.
    """

    def __init__(self, checkpoint: Checkpoint | None, plan: Plan) -> None:
        self.file = None if checkpoint is None else file_of(checkpoint, plan)
        self._plan = plan
        self._pause = 0.0 if checkpoint is None else checkpoint.seconds
        self.keeps = checkpoint is not None and checkpoint.keep
        self._written = time.monotonic()

    def read(self) -> State:
        """Where an earlier run stopped; an empty state if there was none."""
        return (self.file and read(self.file, self._plan)) or State(0, "", "", [])

    def offer(self, state: State) -> None:
        """Write the state if the last writing is long enough ago."""
        if time.monotonic() - self._written >= self._pause:
            self.write(state)

    def write(self, state: State) -> None:
        """Write the state now."""
        if self.file is None:
            return
        start = time.monotonic()
        write(self.file, self._plan, state)
        self._written = time.monotonic()
        if self._pause:
            self._pause = max(self._pause, 9 * (self._written - start))

    def remove(self) -> None:
        """The collection is complete; without the caller's word, the file is not needed."""
        if self.file is not None and not self.keeps:
            _remove(self.file)
