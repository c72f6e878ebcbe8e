"""The file in which an interrupted collection waits to be resumed.

A safetensors file with the sums of every group and one JSON entry `rankedit.collect` in its
metadata: what was collected, from which model, and how many batches are in it. It is not the format
in which statistics are exchanged (that is `rankedit.files.storage`), only this library reads it,
and it is removed when the collection is complete.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from rankedit.atomic import atomic_write, remove_stale
from rankedit.collecting.sharing import Group
from rankedit.errors import EditFileError, ShapeError, StatisticsError
from rankedit.files.container import as_tensors, read_data, write_tensors
from rankedit.files.header import Limits, parse_json, read_header
from rankedit.moments import SecondMoment
from rankedit.packing import COARSENESS
from rankedit.provenance import Provenance

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
    """

    path: str | os.PathLike[str]
    seconds: float = 60.0


@dataclass(frozen=True)
class Plan:
    """What a collection is of. A checkpoint of another plan is refused.

    Attributes:
        names: the projections.
        weights: a mark of the model's weights.
        provenance: what the caller says of model, tokenizer and corpus.
        rank: number of the process.
        size: number of processes.
        shard: whether each process takes its share of common batches.
    """

    names: tuple[str, ...]
    weights: str
    provenance: Provenance
    rank: int
    size: int
    shard: bool


@dataclass(frozen=True)
class State:
    """How far a collection is.

    Attributes:
        batches: number of batches done by this process.
        first: digest of the first batch.
        groups: the sums.
    """

    batches: int
    first: str
    groups: Sequence[Group]


def file_of(checkpoint: Checkpoint, plan: Plan) -> Path:
    """This process's file."""
    path = Path(checkpoint.path)
    return path if plan.size == 1 else path.with_name(f"{path.name}{_suffix(plan)}")


def _suffix(plan: Plan) -> str:
    return f".rank{plan.rank}-of-{plan.size}"


def write(file: Path, plan: Plan, state: State) -> None:
    """Replace the file in one step."""
    tensors = {
        f"{number}/{name}": tensor.cpu().contiguous()
        for number, group in enumerate(state.groups)
        for name, tensor in group.moment.state().items()
    }
    groups = [
        {
            "members": group.members,
            "kept": group.kept,
            "offered": group.offered,
            "dtype": str(group.moment.dtype).removeprefix("torch."),
        }
        for group in state.groups
    ]
    entry = {
        "plan": asdict(plan),
        "batches": state.batches,
        "first": state.first,
        "groups": groups,
    }
    with atomic_write(file) as temporary, temporary.open("wb") as stream:
        write_tensors(stream, tensors, {_ENTRY: json.dumps(entry)})


def read(file: Path, plan: Plan) -> State | None:
    """The state of an earlier run of the same plan; None if there is none.

    Raises:
        StatisticsError: the file belongs to another plan, or to another number of processes.
        EditFileError: the file is damaged.
    """
    if not file.exists():
        _check_no_other_layout(file, plan)
        return None
    try:
        with file.open("rb") as stream:
            header = read_header(stream, file.stat().st_size, _LIMITS)
            entry = parse_json(header.metadata[_ENTRY])
            tensors = as_tensors(read_data(stream, header), header)
        if not isinstance(entry, dict):
            raise EditFileError(f"{_ENTRY} must be an object")
        _check_plan(file, plan, entry["plan"])
        groups = [_group(g, number, tensors) for number, g in enumerate(entry["groups"])]
        return State(int(entry["batches"]), str(entry["first"]), groups)
    except (KeyError, TypeError, AttributeError, ShapeError, EditFileError) as error:
        raise EditFileError(
            f"collect: the checkpoint '{file}' is damaged or no checkpoint: {error}. Remove the "
            "file to start again."
        ) from error


def _group(entry: Mapping[str, object], number: int, tensors: Mapping[str, torch.Tensor]) -> Group:
    prefix = f"{number}/"
    state = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    moment = SecondMoment.from_state(state, Provenance(), _DTYPES[str(entry["dtype"])])
    members, kept, offered = entry["members"], entry["kept"], entry["offered"]
    if not (isinstance(members, list) and isinstance(kept, int) and isinstance(offered, int)):
        raise TypeError(f"group {number} is not described as it must be")
    return Group(moment, members, kept, offered)


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
    candidates = [*file.parent.glob(f"{_escaped(name)}.rank*-of-*"), file.with_name(name)]
    own = f"-of-{plan.size}"
    others = [c for c in candidates if c.exists() and (plan.size == 1 or not c.name.endswith(own))]
    if others:
        raise StatisticsError(
            f"collect: the checkpoint '{others[0]}' was written by another number of processes "
            f"than {plan.size}. Resume with as many, or remove it to start again."
        )


def _escaped(name: str) -> str:
    return "".join(f"[{character}]" if character in "*?[" else character for character in name)


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
        self._written = time.monotonic()

    def read(self) -> State:
        """Where an earlier run stopped; an empty state if there was none."""
        found = None if self.file is None else read(self.file, self._plan)
        return found or State(0, "", [])

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
        """The collection is complete."""
        if self.file is not None:
            self.file.unlink(missing_ok=True)
            remove_stale(self.file)
