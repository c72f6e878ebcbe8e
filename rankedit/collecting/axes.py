"""Roles of the axes of tensors that come from a batch; what they are is in `tracing`."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeAlias

import torch
from torch import Tensor

Axes: TypeAlias = tuple[str, ...]  # one role for each axis, "" for none

BATCH = "*"


def crosses(first: Axes, second: Axes) -> bool:
    """Whether the batch of the second lies along tokens of the first, or behind its batch."""
    pairs = list(zip(first, second, strict=True))
    own = [place for place, (_, role) in enumerate(pairs) if role == BATCH]
    behind = BATCH in first and any(place > first.index(BATCH) for place in own)
    return behind or any(a not in ("", BATCH) and BATCH not in a for a, b in pairs if b == BATCH)


def reorders(roles: str, pieces: list[Tensor]) -> bool:
    """Whether joining these may have changed an order: along an axis that is now without a role."""
    one = len({storage(piece) for piece in pieces}) == 1 < len(pieces)
    return BATCH not in roles or (roles == BATCH and one)


def counts(places: Tensor) -> bool:
    """Whether every row of these counts on by one, as places do."""
    rows = places.reshape(-1, places.shape[-1]) if places.ndim else places[None, None]
    return rows.shape[1] > 1 and bool((rows.diff() == 1).all() and (rows == rows[:1]).all())


def tensors(values: Iterable[object]) -> Iterator[Tensor]:
    """All tensors in nested sequences and mappings."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list, Mapping)):
            yield from tensors(value.values() if isinstance(value, Mapping) else value)


def storage(tensor: Tensor) -> object:
    """Something that is equal for tensors in one memory."""
    try:
        return tensor.untyped_storage()._cdata
    except (RuntimeError, NotImplementedError):  # it has no memory of its own
        return tensor


def aligned(axes: Axes, shape: torch.Size, out: torch.Size) -> Axes:
    """Roles of what an operation gives that keeps its axes, adds some, or broadcasts."""
    extra = len(out) - len(shape)
    if extra >= 0 and out[: len(shape)] == shape:  # an embedding adds one at the end
        return axes + ("",) * extra
    if extra < 0:  # a sum over the last ones
        return axes[:extra] if out == shape[:extra] else ()
    kept = (role if a == b else "" for role, a, b in zip(axes, shape, out[extra:], strict=False))
    return ("",) * extra + tuple(kept)


def einsum(equation: str, axes: Axes) -> Axes:
    """Roles of what an equation gives, by those of its first operand."""
    given, made = equation.split("->")
    first = given.split(",")[0]
    if "." in equation or len(first) != len(axes):
        return ()
    return tuple(axes[first.index(letter)] if letter in first else "" for letter in made)


def viewed(axes: Axes, shape: torch.Size, stride: tuple[int, ...], out: Tensor) -> Axes:
    """Roles of a view, by the steps in memory, which differ for all axes longer than one."""
    if out.shape == shape and out.stride() == stride:
        return axes
    known = [a for a in zip(axes, shape, stride, strict=False) if a[0] and a[1] > 1]
    by_step = {(step, size): role for role, size, step in known}
    for (a, m, far), (b, n, near) in itertools.pairwise(known):  # two axes that become one
        if far == n * near:
            by_step[near, m * n] = a + b
    found: list[str] = []
    for place, (size, step) in enumerate(zip(out.shape, out.stride(), strict=True)):
        found.append(by_step.get((step, size), ""))
        before = out.shape[place - 1] if place and out.stride(place - 1) == step * size else 0
        whole = by_step.get((step, size * before), "")
        if BATCH in whole and whole != BATCH and not found[-1]:  # one that becomes two
            found[-2:] = [BATCH, whole[1:]] if whole.startswith(BATCH) else [whole[:-1], BATCH]
    return tuple(found)
