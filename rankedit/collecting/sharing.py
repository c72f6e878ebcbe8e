"""Moments of many projections, one for all that read the same tensors.

The queries, keys and values of an attention block read one tensor; the keys and values of all
cross-attention layers of a network read one text. Their statistics are the same sums, so they are
kept and computed once.

Which projections share is found out while data flows, and never assumed: at any moment a group's
sums are exactly those of what each of its members has read. A projection joins a group if the first
tensor it ever reads is all that the group has seen. From then on the group waits with each tensor
until all members have read it, and is split if that does not happen.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from rankedit.accumulating import Policy
from rankedit.collecting.repeats import repeated
from rankedit.errors import ShapeError, StatisticsError
from rankedit.moments import SecondMoment
from rankedit.shapes import Inputs, describe
from rankedit.sums import Products


class Identity(NamedTuple):
    """Two tensors with the same identity during one batch hold the same numbers."""

    storage: int
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    version: int


@dataclass(eq=False)
class Group:
    """Projections that have read the same so far, and the moment of it.

    Attributes:
        moment: the sums.
        members: names of the projections.
        kept: number of vectors in the sums, counted apart from the moment's own count.
        offered: the same before the mask.
        placed: whether the moment is where the data is; one from a file is not yet.
    """

    moment: SecondMoment
    members: list[str]
    kept: int = 0
    offered: int = 0
    placed: bool = False


@dataclass(eq=False)
class _Event:
    """A tensor that some members of a group have read and others have not yet."""

    group: Group
    identity: Identity
    x: Inputs
    mask: Tensor | None
    readers: list[str]


class SharedMoments:
    """Adds what projections read to moments, of which those that read the same have one together.

    Args:
        groups: from an earlier, interrupted collection.
        extremes: see `SecondMoment`.
        products: see `SecondMoment`.

    Attributes:
        clean: whether the sums are those of whole batches.
        repeats: projection, number of vectors, and how many of them are one and the same, where
            these are suspiciously many.
    """

    def __init__(
        self,
        groups: Iterable[Group] = (),
        extremes: Policy = "apart",
        products: Products = "float32",
    ) -> None:
        self._make = partial(SecondMoment, extremes=extremes, products=products)
        self.groups = list(groups)
        self.clean = True
        self.repeats: list[tuple[str, int, int]] = []
        self._begun = 0
        self._group_of = {name: group for group in self.groups for name in group.members}
        self._pending: list[_Event] = []
        self._joinable: dict[Identity, Group] = {}
        self._storages: list[StorageWeakRef] = []

    def missing(self, names: Iterable[str]) -> list[str]:
        """Those of the names that have read nothing yet."""
        return [name for name in names if name not in self._group_of]

    def begin(self) -> None:
        """Start a batch; the sums are not those of whole batches until the caller says `clean`."""
        self.clean = False
        self._begun += 1

    def end(self) -> None:
        """End a batch: every group has seen what its members have seen."""
        while self._pending:
            event = self._pending[0]
            self._split(event.group, event.readers)
        self._joinable.clear()
        self._storages.clear()

    def read(self, name: str, x: Inputs, mask: Tensor | None = None) -> None:
        """Say that projection `name` read the vectors `x [..., in]`.

        Args:
            name: the projection.
            x: the vectors.
            mask: `[...]`, which of them are no padding; whoever reads a tensor has the same.
        """
        if x.layout != torch.strided:
            raise ShapeError(f"it must read dense vectors, got {describe(x)}, sparse")
        identity = self._identify(x)
        group = self._group_of.get(name)
        if group is None:
            self._first(name, x, mask, identity)
        elif len(group.members) == 1:
            self._leave_joinable(group)
            self._add(group, x, mask)
        else:
            self._offer(group, name, _Event(group, identity, x, mask, []))

    def _identify(self, x: Inputs) -> Identity:
        storage = StorageWeakRef(x.untyped_storage())
        # A weak reference keeps the number from being given to another storage, but frees the data.
        self._storages.append(storage)
        # Tensors of inference mode do not tell when they are written to: none equals another.
        version = -len(self._storages) if x.is_inference() else x._version
        shape, stride = tuple(x.shape), tuple(x.stride())
        return Identity(storage.cdata, int(x.storage_offset()), shape, stride, x.dtype, version)

    def _first(self, name: str, x: Inputs, mask: Tensor | None, identity: Identity) -> None:
        group = self._joinable.get(identity)
        if group is None:
            group = Group(self._make(x.shape[-1]), [name])
            self._add(group, x, mask)
            self.groups.append(group)
            self._joinable[identity] = group
        else:
            group.members.append(name)
        self._group_of[name] = group

    def _leave_joinable(self, group: Group) -> None:
        for identity in [i for i, g in self._joinable.items() if g is group]:
            del self._joinable[identity]

    def _offer(self, group: Group, name: str, new: _Event) -> None:
        event = self._find(group, new.identity)
        if event is not None and name in event.readers:  # again, before the others did once
            self._split(group, event.readers)
            self.read(name, new.x, new.mask)
            return
        if event is None:
            event = new
            self._pending.append(event)
        event.readers.append(name)
        self._settle()

    def _find(self, group: Group, identity: Identity) -> _Event | None:
        same = (e for e in self._pending if e.group is group and e.identity == identity)
        return next(same, None)

    def _settle(self) -> None:
        """Add the tensors that all members have read, and forget those that none has."""
        for event in list(self._pending):
            if event.readers and len(event.readers) < len(event.group.members):
                continue
            self._pending.remove(event)
            if event.readers:
                self._leave_joinable(event.group)
                _check_unchanged(event)
                self._add(event.group, event.x, event.mask)

    def _split(self, group: Group, leaving: list[str]) -> None:
        """Give those who leave a group of their own, with copies of the sums so far."""
        leaving = list(leaving)
        new = Group(group.moment.clone(), leaving, group.kept, group.offered, group.placed)
        group.members = [name for name in group.members if name not in leaving]
        self.groups.append(new)
        self._group_of |= dict.fromkeys(leaving, new)
        for event in [e for e in self._pending if e.group is group]:
            moved = [name for name in event.readers if name in leaving]
            event.readers = [name for name in event.readers if name not in leaving]
            if moved:
                self._pending.append(_Event(new, event.identity, event.x, event.mask, moved))
        self._settle()

    def _add(self, group: Group, x: Inputs, mask: Tensor | None) -> None:
        if not group.placed:
            # Double precision does not exist on Apple's GPUs.
            group.moment = group.moment.to("cpu" if x.device.type == "mps" else x.device)
            group.placed = True
        group.moment.update(x, mask)
        count = x.shape[:-1].numel()
        kept = count if mask is None else int(mask.sum())
        group.offered += count
        group.kept += kept
        # Ever more rarely (batches 1, 2, 4, 8, ...): it costs as much as a small update.
        if self._begun & (self._begun - 1) == 0 and (same := repeated(x, mask)):
            self.repeats.append((group.members[0], kept, same))


def _check_unchanged(event: _Event) -> None:
    if not event.x.is_inference() and event.x._version != event.identity.version:
        raise StatisticsError(
            f"what {event.readers[0]!r} read was overwritten in place before the projections that "
            "have read the same so far were called; collect it in a call of its own"
        )
