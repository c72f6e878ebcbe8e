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
import traceback
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils.weak import WeakTensorKeyDictionary

from rankedit.collecting.axes import (
    BATCH,
    Axes,
    aligned,
    counts,
    crosses,
    einsum,
    reorders,
    storage,
    tensors,
    viewed,
)

# By the operation's name without underscores; `radd` and `iadd` are `add`.
_MEETING = {"add", "sub", "mul", "div", "truediv", "where", "masked_fill", "and"}
_MEETING |= {f"{way}{name}" for name in _MEETING for way in "ri"} | {"bitwise_and", "logical_and"}
# What comes out of these is in an order that shapes do not tell, unless it is a view.
_REORDERING = {"getitem", "index_select", "gather", "take_along_dim", "flip", "fliplr", "flipud"}
_REORDERING |= {"roll", "rot90", "sort", "msort", "topk", "scatter", "index_copy", "index_put"}
# These are filled afterwards, in any order; of `new_zeros` models make the labels, shifted by one.
_REORDERING |= {f"{way}_like" for way in ("empty", "zeros", "ones", "full")}
# Arguments of torch's attention and its layers: masks of two axes there are of pairs of tokens.
_OF_PAIRS = {"attn_mask", "src_mask", "tgt_mask", "mask"}
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
        pairs, padding: names of masks whose first axis met tokens, and a batch.
        tables: parameters and buffers that were read at places that count on along every row of
            the batch, or added to such rows: absolute positions, which count padding too.
    """

    def __init__(self, model: nn.Module, named: Mapping[str, tuple[Tensor, Axes]]) -> None:
        super().__init__()
        self._model = model
        held = (*model.named_parameters(), *model.named_buffers())
        self._held = {storage(tensor): name for name, tensor in held}
        self._axes: Any = WeakTensorKeyDictionary()
        self._named = {name: tensor for name, (tensor, _) in named.items()}
        self._same: dict[str, str] = {}
        self._floats: set[str] = set()
        self.calls: list[list[Argument]] = []
        self.masks: list[tuple[str, str, Tensor]] = []
        self.pairs: set[str] = set()
        self.padding: set[str] = set()
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

    def __exit__(self, kind: object, value: object, trace: types.TracebackType | None) -> None:
        """Take this mode off torch's stack, if it is there."""
        # torch takes a mode off while the mode is asked, by a context manager in Python, and what a
        # signal handler raises in between leaves it off. If the manager was left open, it puts the
        # mode back when its frame goes, and the traceback holds that.
        if not self._entered():
            traceback.clear_frames(trace)
        if self._entered():
            super().__exit__(kind, value, trace)  # type: ignore[no-untyped-call]

    def _entered(self) -> bool:
        return any(mode is self for mode in _get_current_function_mode_stack())

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
            operands = list(tensors((*args, *kwargs.values())))
            if name == "embedding" and counts(operands[0]):
                self._read_table(operands[1])
            if name == "scaled_dot_product_attention":
                self._check_scores(*args[:4], **kwargs)
            for output in tensors((result,)) if operands else ():
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
        name = self._held.get(storage(table)) or ("a computed table" if one else "")
        self.tables += [name] if name and name not in self.tables else []

    def _carried(self, name: str, equation: object, given: list[Tensor], output: Tensor) -> Axes:
        """What an operation makes has the axes of its first operand; of `addmm`, of the second."""
        first = given[1 if name in {"addmm", "baddbmm"} else 0]
        axes = self.axes(first)
        if isinstance(equation, str) and "->" in equation:
            return einsum(equation.replace(" ", ""), axes)
        if storage(output) == storage(first):
            return viewed(axes, first.shape, first.stride(), output)
        if name in {"reshape", "flatten"}:  # a copy, in the order of the contiguous form
            strides = torch.empty(first.shape, device="meta").stride()
            return viewed(axes, first.shape, strides, output)
        if name in _REORDERING:
            return ()
        axes = aligned(axes, first.shape, output.shape)
        return () if name in _JOINING and reorders("".join(axes), given) else axes

    def _met(self, given: list[Tensor], output: Tensor, *, adds: bool) -> Axes:
        """Of one axis all that met there are the same tokens."""
        found = [""] * output.ndim
        for tensor in given:
            axes = aligned(self.axes(tensor), tensor.shape, output.shape)
            self._note_pairs([aligned(self.axes(t), t.shape, output.shape) for t in given], axes)
            for place, role in enumerate(axes):
                if role and found[place] and BATCH not in role + found[place]:
                    self.join(role, found[place])
                found[place] = found[place] or role
        for table in given if adds and output.ndim > 1 and found[-2] and not found[-1] else ():
            if table.shape[-2:] == output.shape[-2:] and not (
                BATCH in found[-2] or any(self.axes(table))
            ):
                self._read_table(table)
        return tuple(found)

    def _note_pairs(self, given: list[Axes], axes: Axes) -> None:
        full = [other for other in given if len(other) == len(axes)]
        own = {role for role in axes if role not in ("", BATCH)}
        if any(crosses(other, axes) for other in full):
            self.pairs |= own
        elif any((BATCH, BATCH) in zip(other, axes, strict=True) for other in full):
            self.padding |= own

    def _check_scores(
        self, query: Tensor, key: Tensor, _: Tensor, attn_mask: Tensor | None = None, **__: object
    ) -> None:
        """What torch's attention does with a mask of scores, out of sight."""
        if attn_mask is not None and self.axes(query):
            shape = torch.Size((*query.shape[:-1], key.shape[-2]))
            scores = (*self.axes(query)[:-1], *(self.axes(key) or ("", ""))[-2:-1])
            self._note_pairs([scores], aligned(self.axes(attn_mask), attn_mask.shape, shape))

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
            for tensor in tensors((value,)):
                sizes = zip(self.axes(tensor), tensor.shape, strict=False)
                tokens = [(axis.strip(BATCH), size) for axis, size in sizes if axis.strip(BATCH)]
                found += [Argument(parameter, *tokens[0])] if tokens else []
                if parameter in _OF_PAIRS and tensor.ndim == 2:
                    own = type(module).__module__.startswith("torch.nn.")
                    self.pairs |= {name for name, _ in tokens if own}
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
        first = next((t for t in tensors((*args, *kwargs.values())) if self.axes(t)), None)
        output = next(tensors((result,)), None)
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
