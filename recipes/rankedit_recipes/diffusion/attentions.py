"""Which projections make keys and which make values, found by running attention modules alone.

No names are known. What a row of values says reaches other rows in proportion: the output is affine
in it. What a row of keys says reaches them through a softmax. Queries, gates and feed-forward parts
reach their own row only.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import rankedit as rk

# As in `targets`: rounding for values, of the order of 1 for keys.
_AFFINE = 0.05
_CONTRAST = 10.0
_CHANGE = 100.0
# A row has changed if it differs by more than rounding, relative to the largest number.
_ROUNDING = 1e-5


@dataclass(frozen=True)
class Part:
    """A projection, or some of its output columns.

    Attributes:
        name: of the layer.
        columns: first and one past the last; None for all.
    """

    name: str
    columns: tuple[int, int] | None = None

    @property
    def place(self) -> str:
        """As `rankedit.attach` takes it."""
        return self.name if self.columns is None else "{}[{}:{}]".format(self.name, *self.columns)


Pair = tuple[Part, Part]
Change = Callable[[Tensor], Tensor]


class Attentions:
    """Attention modules of a network and what they were called with.

    Args:
        model: the network.
        run: one forward pass of it, without gradients.

    Attributes:
        read: what each projection read first, `[batch, rows, in]`.
    """

    def __init__(self, model: nn.Module, run: Callable[[], object]) -> None:
        self._modules = dict(model.named_modules())
        self._calls: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {}
        self.read: dict[str, Tensor] = {}
        handles = []
        # Projections of the model itself are no attention's: everything behind them bends.
        names = [name for name in rk.select(model, "*") if "." in name]
        parents = {name.rpartition(".")[0] for name in names}
        for name in {*names, *parents}:
            hook = self._noting(name, projection=name in names)
            handles.append(self._modules[name].register_forward_pre_hook(hook, with_kwargs=True))
        try:
            run()
        finally:
            for handle in handles:
                handle.remove()

    def _noting(self, name: str, *, projection: bool) -> Any:  # noqa: ANN401 - a hook
        def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._calls.setdefault(name, (args, kwargs))
            x = args[0] if args else None
            if projection and isinstance(x, Tensor) and x.ndim >= 3 and x.shape[-2] > 1:
                self.read.setdefault(name, x.detach().clone())

        return note

    def pairs(self) -> list[Pair]:
        """Keys and values of every attention, picture and text alike, in the order of calls."""
        return [pair for group in self._groups() if (pair := self._pair(group)) is not None]

    def _groups(self) -> list[list[str]]:
        """Projections of one parent that read the same."""
        groups: list[list[str]] = []
        for name, x in self.read.items():
            parent = name.rpartition(".")[0]
            for group in groups:
                other = self.read[group[0]]
                same = group[0].rpartition(".")[0] == parent and other.shape == x.shape
                if same and torch.equal(other, x):
                    group.append(name)
                    break
            else:
                groups.append([name])
        return [group for group in groups if group[0].rpartition(".")[0] in self._calls]

    def _pair(self, group: list[str]) -> Pair | None:
        count = self.read[group[0]].shape[-2]
        # A row that is masked (padding) reaches nobody: others are tried.
        for row in dict.fromkeys((count // 2, 0, count - 1)):
            bends = {name: self._bend(name, row) for name in group}
            mixing = {name: bend for name, bend in bends.items() if bend is not None}
            if mixing:
                break
        else:
            return None
        if len(mixing) == 2:
            (straight, value), (bent, key) = sorted((b, n) for n, b in mixing.items())
            apart = straight < _AFFINE and bent > _CONTRAST * straight
            return (Part(key), Part(value)) if apart else None
        if len(mixing) == 1 and next(iter(mixing.values())) > _AFFINE:
            return self._fused(next(iter(mixing)), row)
        return None

    def _fused(self, name: str, row: int) -> Pair | None:
        """Halves of the columns that other rows depend on, if one makes keys and one values."""
        columns = self._reaching(name, row)
        if columns is None:
            return None
        start, stop = columns
        middle = (start + stop) // 2
        halves = [Part(name, (start, middle)), Part(name, (middle, stop))]
        first, second = (self._bend(name, row, half.columns) for half in halves)
        if first is None or second is None:
            return None
        # By the number alone: parts have no order.
        ordered = sorted(zip((first, second), halves, strict=True), key=lambda pair: pair[0])
        (straight, value), (bent, key) = ordered
        told_apart = straight < _AFFINE and bent > _CONTRAST * straight
        return (key, value) if told_apart else None

    def _reaching(self, name: str, row: int) -> tuple[int, int] | None:
        """The run of columns of a row's output that other rows depend on; None if it is no run."""
        given: list[Tensor] = []

        def leaf(output: Tensor) -> Tensor:
            given.append(output.detach().requires_grad_())
            return given[-1]

        generator = torch.Generator().manual_seed(0)
        with torch.enable_grad():
            outputs = self._outputs(name, leaf)
            total = torch.zeros(())
            for output in outputs:
                weight = torch.randn(output.shape, generator=generator).to(output)
                if output.shape[-2] == given[0].shape[-2]:
                    weight[..., row, :] = 0
                total = total + (output * weight).sum().cpu()
        if not total.requires_grad:
            return None
        (gradient,) = torch.autograd.grad(total, given[0])
        hit = gradient[..., row, :].abs().flatten(0, -2).amax(0).nonzero().flatten().tolist()
        run = bool(hit) and hit[-1] - hit[0] + 1 == len(hit) and len(hit) % 2 == 0
        return (hit[0], hit[-1] + 1) if run else None

    def _bend(self, name: str, row: int, columns: tuple[int, int] | None = None) -> float | None:
        """How far from affine other rows are in one row of a projection's output.

        Returns:
            The second difference relative to the first; None if other rows do not depend on it.
        """
        plus, minus, middle = (
            self._outputs(name, functools.partial(_moved, row=row, columns=columns, sign=sign))
            for sign in (1.0, -1.0, 0.0)
        )
        if sum(map(_rows_apart, plus, middle)) <= 1 or not plus:
            return None
        span = sum(float((p - m).square().sum()) for p, m in zip(plus, minus, strict=True))
        bend = sum(
            float((p + m - 2 * o).square().sum())
            for p, m, o in zip(plus, minus, middle, strict=True)
        )
        return (bend / span) ** 0.5 if span else None

    def _outputs(self, name: str, change: Change) -> list[Tensor]:
        """Sequences that a projection's parent gives if the projection's output is changed."""
        parent = name.rpartition(".")[0]
        args, kwargs = self._calls[parent]
        handle = self._modules[name].register_forward_hook(lambda _, __, output: change(output))
        try:
            given = self._modules[parent](*args, **kwargs)
        finally:
            handle.remove()
        found = given if isinstance(given, (tuple, list)) else [given]
        sequences = [x for x in found if isinstance(x, Tensor) and x.ndim >= 3]
        # In double precision, for the second difference is of numbers that nearly cancel.
        return [x.double() for x in sequences]


def _moved(x: Tensor, row: int, columns: tuple[int, int] | None, sign: float) -> Tensor:
    # Seeded anew for each sign: all three outputs lie along one direction.
    noise = torch.Generator().manual_seed(0)
    start, stop = columns or (0, x.shape[-1])
    part = x[..., row, start:stop]
    # As long as softmax needs to leave its linear part.
    step = sign * _CHANGE * x.float().std() * torch.randn(part.shape, generator=noise).to(x.device)
    changed = x.clone()
    changed[..., row, start:stop] = part + step.to(x.dtype)
    return changed


def _rows_apart(one: Tensor, other: Tensor) -> int:
    apart = (one - other).abs().flatten(0, -3).amax((0, 2))
    return int((apart > _ROUNDING * float(one.abs().max())).sum())


@contextmanager
def muted(model: nn.Module, values: Sequence[Part]) -> Iterator[None]:
    """Attention in which no row sees another: all values are zero."""
    modules = dict(model.named_modules())
    handles = [modules[part.name].register_forward_hook(_zero(part)) for part in values]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _zero(part: Part) -> Any:  # noqa: ANN401 - a hook
    def zero(_: nn.Module, __: object, output: Tensor) -> Tensor:
        changed = output.clone()
        start, stop = part.columns or (0, output.shape[-1])
        changed[..., start:stop] = 0
        return changed

    return zero
