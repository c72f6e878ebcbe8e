"""Which axes of what a projection reads are the batch and the tokens, and of which sequence.

Followed through one forward pass, operation by operation: every axis that comes from the batch has
a role. `BATCH` is the axis of the examples, the name of a tensor of the batch is the axis of its
tokens, and the two written one after the other are an axis flattened from both, in that order.
Tokens that meet position by position (embeddings that are added, vectors and a mask that they are
multiplied by) are those of one sequence. Only shapes are looked at, and no operation changes.
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

Axes: TypeAlias = tuple[str, ...]  # one role for each axis, "" for none

BATCH = "*"
# By the operation's name without underscores; `radd` and `iadd` are `add`.
_MEETING = {"add", "sub", "mul", "div", "truediv", "where", "masked_fill", "and"}
_MEETING |= {f"{way}{name}" for name in _MEETING for way in "ri"} | {"bitwise_and", "logical_and"}
# What comes out of these is in an order that shapes do not tell, unless it is a view.
_REORDERING = {"getitem", "index_select", "gather", "take_along_dim", "flip", "fliplr", "flipud"}
_REORDERING |= {"roll", "rot90", "sort", "msort", "topk", "scatter", "index_copy", "index_put"}
# These are filled afterwards, in any order; of `new_zeros` models make the labels, shifted by one.
_REORDERING |= {f"{way}_like" for way in ("empty", "zeros", "ones", "full")}
# Pieces of one tensor, put together in any order.
_JOINING = {"cat", "concat", "concatenate", "stack", "hstack", "vstack"}


class Argument(NamedTuple):
    """A tensor that a module was called with.

    Attributes:
        parameter: name of the parameter.
        source: name of the batch's tensor that its tokens are of.
        size: number of tokens.
    """

    parameter: str
    source: str
    size: int


class Trace(TorchFunctionMode):
    """Follows the tensors of a batch.

    Args:
        model: the model that runs it.
        named: the tensors of the batch by name, with their axes.

    Attributes:
        calls: what modules were called with, of calls with several tensors from the batch.
        masks: parameter, name in the batch (empty if it is from elsewhere), and tensor, of what
            modules were called with as masks.
        tables: parameters and buffers that were read at places that count on along every row of
            the batch, or added to such rows: absolute positions, which count padding too.
    """

    def __init__(self, model: nn.Module, named: Mapping[str, tuple[Tensor, Axes]]) -> None:
        super().__init__()
        self._model = model
        held = (*model.named_parameters(), *model.named_buffers())
        self._held = {_storage(tensor): name for name, tensor in held}
        self._axes: Any = WeakTensorKeyDictionary()
        self._named = {name: tensor for name, (tensor, _) in named.items()}
        self._same: dict[str, str] = {}
        self._floats: set[str] = set()
        self.calls: list[list[Argument]] = []
        self.masks: list[tuple[str, str, Tensor]] = []
        self.tables: list[str] = []
        for tensor, axes in named.values():
            self._note(tensor, axes)

    @contextlib.contextmanager
    def followed(self) -> Iterator[None]:
        """Follow what runs inside this context."""
        with contextlib.ExitStack() as stack:
            for module in self._model.modules():
                before = module.register_forward_pre_hook(self._called, with_kwargs=True)
                stack.callback(before.remove)
                after = module.register_forward_hook(self._returned, with_kwargs=True)
                stack.callback(after.remove)
            stack.enter_context(self)
            yield

    # ---------------------------------------------------------------- what was found

    def axes(self, tensor: Tensor) -> Axes:
        """Roles of the axes of a tensor; empty if nothing is known of it."""
        return self._axes.get(tensor, ())

    def sequence(self, name: str) -> str:
        """One name for all tensors of the batch whose tokens are the same."""
        while name in self._same:
            name = self._same[name]
        return name

    def alive(self, name: str) -> bool:
        """Whether vectors have been made of these tokens; of labels that only a loss reads, not."""
        return self.sequence(name) in map(self.sequence, self._floats)

    def join(self, first: str, second: str) -> str:
        """Say that the tokens of two tensors are the same; gives the name of both."""
        first, second = self.sequence(first), self.sequence(second)
        if first != second:
            self._same[first] = second
        return second

    # ---------------------------------------------------------------- operations

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        # Without a role a tensor is refused where a mask would need one. So is what has no strides
        # or memory of its own: sparse tensors, and those inside of torch.func.
        with contextlib.suppress(RuntimeError, NotImplementedError):
            name = getattr(func, "__name__", "").strip("_")
            operands = list(_tensors((*args, *kwargs.values())))
            if name == "embedding" and _counts(operands[0]):
                self._read_table(operands[1])
            for output in _tensors((result,)) if operands else ():
                # What is written to in place keeps its roles, but may meet others.
                if name in _MEETING:
                    self._note(output, self._met(operands, output, adds=name.endswith("add")))
                elif not self.axes(output):
                    equation = args[0] if name == "einsum" else ""
                    self._note(output, self._carried(name, equation, operands, output))
        return result

    def _note(self, tensor: Tensor, axes: Axes) -> None:
        if any(axes):
            self._axes[tensor] = axes
            if tensor.is_floating_point():
                self._floats |= {axis.strip(BATCH) for axis in axes} - {""}

    def _read_table(self, table: Tensor) -> None:
        # Cast or computed tables have no name; what is square may be a mask of pairs of tokens.
        one = table.numel() == table.shape[-2:].numel() and table.shape[-1] != table.shape[-2]
        name = self._held.get(_storage(table)) or ("a computed table" if one else "")
        self.tables += [name] if name and name not in self.tables else []

    def _carried(self, name: str, equation: object, given: list[Tensor], output: Tensor) -> Axes:
        """What an operation makes has the axes of its first operand; of `addmm`, of the second."""
        first = given[1 if name in {"addmm", "baddbmm"} else 0]
        axes = self.axes(first)
        if isinstance(equation, str) and "->" in equation:
            return _einsum(equation.replace(" ", ""), axes)
        if _storage(output) == _storage(first):
            return _viewed(axes, first.shape, first.stride(), output)
        if name in {"reshape", "flatten"}:  # a copy, in the order of the contiguous form
            strides = torch.empty(first.shape, device="meta").stride()
            return _viewed(axes, first.shape, strides, output)
        if name in _REORDERING:
            return ()
        axes = _aligned(axes, first.shape, output.shape)
        return () if name in _JOINING and _reorders("".join(axes), given) else axes

    def _met(self, given: list[Tensor], output: Tensor, *, adds: bool) -> Axes:
        """Of one axis all that met there are the same tokens."""
        found = [""] * output.ndim
        for tensor in given:
            for place, role in enumerate(_aligned(self.axes(tensor), tensor.shape, output.shape)):
                if role and found[place] and BATCH not in role + found[place]:
                    self.join(role, found[place])
                found[place] = found[place] or role
        for table in given if adds and output.ndim > 1 and found[-2] and not found[-1] else ():
            if table.shape[-2:] == output.shape[-2:] and not (
                BATCH in found[-2] or any(self.axes(table))
            ):
                self._read_table(table)
        return tuple(found)

    # ---------------------------------------------------------------- calls of modules

    def _called(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Note what a module is called with."""
        names = parameters(module)[: len(args)] if args else []
        args = (*map(self._told_apart, names, args), *args[len(names) :])
        kwargs = {name: self._told_apart(name, value) for name, value in kwargs.items()}
        found = []
        for parameter, value in (*zip(names, args, strict=False), *kwargs.items()):
            for tensor in _tensors((value,)):
                sizes = zip(self.axes(tensor), tensor.shape, strict=False)
                tokens = [(axis.strip(BATCH), size) for axis, size in sizes if axis.strip(BATCH)]
                found += [Argument(parameter, *tokens[0])] if tokens else []
                if parameter.endswith("mask") and tensor.ndim == 2:
                    self.masks.append((parameter, tokens[0][0] if tokens else "", tensor))
        self.calls += [found] if len(found) > 1 else []
        return args, kwargs

    def _told_apart(self, parameter: str, value: object) -> object:
        """A tensor that the batch has under several names as that of this name."""
        if not isinstance(value, Tensor) or self._named.get(parameter) is not value:
            return value
        if value.layout != torch.strided:  # sparse and nested tensors may have no views
            return value
        view = self._named[parameter] = value.view_as(value)
        own = (parameter if role.strip(BATCH) else role for role in self.axes(value))
        self._note(view, tuple(own))
        return view

    def _returned(
        self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: object
    ) -> None:
        """What a module does out of sight (custom kernels) gives vectors in their order."""
        first = next((t for t in _tensors((*args, *kwargs.values())) if self.axes(t)), None)
        output = next(_tensors((result,)), None)
        if first is None or output is None or self.axes(output):
            return
        if first.shape[:-1] == output.shape[:-1]:
            self._note(output, (*self.axes(first)[:-1], ""))


def parameters(module: nn.Module) -> list[str]:
    """Names of the parameters of a module's forward, in their order."""
    try:
        return [*inspect.signature(module.forward).parameters]
    except (TypeError, ValueError):  # what was not written in Python may have no signature
        return []


def _reorders(roles: str, pieces: list[Tensor]) -> bool:
    """Whether joining these may have changed an order: along an axis that is now without a role."""
    one = len({_storage(piece) for piece in pieces}) == 1 < len(pieces)
    return BATCH not in roles or (roles == BATCH and one)


def _counts(places: Tensor) -> bool:
    """Whether every row of these counts on by one, as places do."""
    rows = places.reshape(-1, places.shape[-1]) if places.ndim else places[None, None]
    return rows.shape[1] > 1 and bool((rows.diff() == 1).all() and (rows == rows[:1]).all())


def _tensors(values: Iterable[object]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list, Mapping)):
            yield from _tensors(value.values() if isinstance(value, Mapping) else value)


def _storage(tensor: Tensor) -> object:
    try:
        return tensor.untyped_storage()._cdata
    except (RuntimeError, NotImplementedError):  # it has no memory of its own
        return tensor


def _aligned(axes: Axes, shape: torch.Size, out: torch.Size) -> Axes:
    """Roles of what an operation gives that keeps its axes, adds some, or broadcasts."""
    extra = len(out) - len(shape)
    if extra >= 0 and out[: len(shape)] == shape:  # an embedding adds one at the end
        return axes + ("",) * extra
    if extra < 0:  # a sum over the last ones
        return axes[:extra] if out == shape[:extra] else ()
    kept = (role if a == b else "" for role, a, b in zip(axes, shape, out[extra:], strict=False))
    return ("",) * extra + tuple(kept)


def _einsum(equation: str, axes: Axes) -> Axes:
    given, made = equation.split("->")
    first = given.split(",")[0]
    if "." in equation or len(first) != len(axes):
        return ()
    return tuple(axes[first.index(letter)] if letter in first else "" for letter in made)


def _viewed(axes: Axes, shape: torch.Size, stride: tuple[int, ...], out: Tensor) -> Axes:
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
