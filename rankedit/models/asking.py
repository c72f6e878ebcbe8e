"""Ask a layer something without touching it: others may be running it, or training it."""

from __future__ import annotations

import functools
import gc
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from types import MethodType
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from rankedit.interrupt import completely

P = ParamSpec("P")
R = TypeVar("R")

# Integer buffers up to this size count something; larger ones are codes of a packed weight.
_COUNTERS = 1 << 16


def stand_in(module: nn.Module, inner: nn.Module) -> nn.Module:
    """A copy to ask in a layer's place: whatever a forward does to its modules is done to the copy.

    Parameters are shared, since only optimisers write them. Buffers are copied, since layers that
    normalise or count write theirs. Wrappers are in evaluation mode; the innermost layer keeps its
    mode: it has no dropout, but may repack its weight when it first runs in evaluation mode
    (bitsandbytes 0.50 on a CPU), after which it rounds otherwise.

    Returns:
        The copy; the module itself where something that wraps its `forward` holds on to it.
    """
    copy = object.__new__(type(module))
    vars(copy).update(vars(module))
    if isinstance(module, torch.jit.ScriptModule) or not _rebound(copy, module):
        return module
    children = {
        name: child if child is None else stand_in(child, inner)
        for name, child in module._modules.items()
    }
    vars(copy).update(
        training=module.training and module is inner,
        _parameters=dict(module._parameters),
        _buffers={name: _own(tensor) for name, tensor in module._buffers.items()},
        _modules=children,
    )
    prepare: Callable[[], None] | None = getattr(copy, "_rankedit_asked", None)
    if prepare is not None:
        prepare()
    return copy


def _rebound(copy: nn.Module, module: nn.Module) -> bool:
    """Let what stands for the module's `forward` act on the copy; False if it cannot."""
    for name in ("_old_forward", "forward"):
        held: Any = vars(module).get(name)
        if isinstance(held, MethodType) and held.__self__ is module:
            vars(copy)[name] = MethodType(held.__func__, copy)
        # accelerate's (1.15), whose hook is told the module that it loads weights into.
        elif isinstance(held, partial) and hasattr(module, "_hf_hook") and held.args == (module,):
            vars(copy)[name] = partial(held.func, copy)
        elif held is not None:
            return False
    return True


def _own(buffer: Tensor | None) -> Tensor | None:
    if buffer is None or buffer.is_meta or type(buffer) is not Tensor:
        return buffer
    writable = buffer.is_floating_point() or buffer.numel() <= _COUNTERS
    return buffer.detach().clone() if writable else buffer


def gradients_kept(function: Callable[P, R]) -> Callable[P, R]:
    """The function, after which gradients are on or off as before, whatever interrupts it.

    A signal's handler may raise within `torch.no_grad` itself, before it puts the mode back: then
    all that the process trains later would silently have no graph.
    """

    @functools.wraps(function)
    def kept(*args: P.args, **kwargs: P.kwargs) -> R:
        enabled = torch.is_grad_enabled()
        try:
            return function(*args, **kwargs)
        except BaseException:
            completely([functools.partial(torch.set_grad_enabled, enabled)])
            raise

    return kept


class _Rows(torch.autograd.Function):
    """A function's values, with the gradient of its rows and of nothing else that it reads.

    To switch `requires_grad` of a layer's parameters off would cost other threads their graph.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:  # noqa: ANN401
        with torch.enable_grad():
            ctx.rows = rows.detach().requires_grad_()
            ctx.outputs = function(ctx.rows)
        return ctx.outputs.detach()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        found = torch.autograd.grad(ctx.outputs, ctx.rows, gradients, retain_graph=True)
        return found[0], None


def no_parameters(function: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    """`function(rows)`, differentiable with respect to the rows if they require it."""
    if rows.requires_grad and torch.is_grad_enabled():
        found: Tensor = _Rows.apply(rows, function)  # type: ignore[no-untyped-call]
        return found
    with torch.no_grad():
        return function(rows)


# -------------------------------------------------------------- weights that only look present


@contextmanager
def loaded(module: nn.Module) -> Iterator[None]:
    """The weights of a layer in memory, also where diffusers keeps them on disk meanwhile.

    Between forwards of their block such weights have a shape and a device like any others, and hold
    whatever was in that memory.
    """
    with ExitStack() as stack:
        for group in on_disk(module):
            stack.callback(group.offload_)
            group.onload_()
        yield


# By the class of groups: how often it was referred to when they were looked for, and those found.
_seen: dict[type, tuple[int, list[weakref.ref[Any]]]] = {}
_LOCK = threading.RLock()


def on_disk(module: nn.Module) -> list[Any]:
    """Diffusers' groups (0.42) that keep tensors of the module on disk.

    A layer of a block does not know of its group, so that the live ones are looked for. That takes
    0.1 s and more in a large process, and is done again only when references to their class came or
    went, as each group has one.
    """
    cls = getattr(sys.modules.get("diffusers.hooks.group_offloading"), "ModuleGroup", None)
    if cls is None:
        return []
    with _LOCK:
        count, found = _seen.get(cls, (0, []))
        groups = [group for group in (ref() for ref in found) if group is not None]
        known = len(groups) == len(found)
        if not known or sys.getrefcount(cls) != count:
            groups = [held for held in gc.get_referrers(cls) if type(held) is cls]
            _seen[cls] = (sys.getrefcount(cls), [weakref.ref(group) for group in groups])
    if not groups:
        return []
    own = {id(tensor) for kind in (module.parameters, module.buffers) for tensor in kind()}
    kept = [group for group in groups if group.offload_to_disk_path is not None]
    return [group for group in kept if any(id(tensor) in own for tensor in group.tensor_to_key)]
