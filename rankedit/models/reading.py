"""Watch what projections of a model read, without changing the model."""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from rankedit.errors import ProjectionError
from rankedit.models.experts import watched
from rankedit.models.geometry import Geometry, geometry, innermost
from rankedit.shapes import describe

Read = Callable[[str, Tensor], None]


def as_written() -> contextlib.AbstractContextManager[object]:
    """Compiled modules run as they were written, and call hooks that came after compilation."""
    # Without dynamo nothing can have been compiled, and importing it takes seconds.
    if "torch._dynamo" not in sys.modules:
        return contextlib.nullcontext()
    return torch.compiler.set_stance("force_eager")


@contextlib.contextmanager
def quiet(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode, without gradients, compiled parts run as they were written.

    Afterwards every module is in the mode it was in.
    """
    training = [module for module in model.modules() if module.training]
    with torch.no_grad(), as_written():
        model.eval()
        try:
            yield
        finally:
            for module in training:
                module.training = True


class _Enough(BaseException):
    """Unwinds a forward pass of which nothing more is needed; never leaves this module.

    Not an `Exception`: a model that catches those must not swallow it.
    """


class Observed:
    """Forward passes in which it is seen which projections are called, and what they read.

    A context manager: hooks are on the projections, and on nothing else, while it is open.

    Where that is allowed, a pass ends early. The first one runs to its end. If it called every
    projection exactly once, later ones stop as soon as every projection has been called. If any
    pass calls one of them twice (a loop, a shared module), or does not call all of them (routing),
    nothing is left out.

    Args:
        call: the public call, for messages.
        targets: the projections by name.
        read: is given the name and the vectors `x [..., in]` of every call of one.
        stops: whether passes may end early.
    """

    def __init__(
        self, call: str, targets: Mapping[str, nn.Module], read: Read, *, stops: bool = False
    ) -> None:
        self._call, self._targets, self._read = call, targets, read
        self._stops, self._learned = stops, False
        self._calls: Counter[str] = Counter()
        self._hooks = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self._hooks.enter_context(watched(self._targets.values()))
        for name, module in self._targets.items():
            # Keyword arguments too; after hooks of others, which may change the input.
            hook = self._hook(name, module)
            handle = module.register_forward_pre_hook(hook, with_kwargs=True)
            self._hooks.callback(handle.remove)
        return self

    def __exit__(self, *_: object) -> None:
        self._hooks.close()

    def run(self, forward: Callable[[], object]) -> None:
        """One forward pass."""
        self._calls.clear()
        with contextlib.suppress(_Enough):
            forward()
        # The first pass was whole, so that it tells all; a later one may have been cut short.
        once = self._all_once() if not self._learned else max(self._calls.values(), default=0) <= 1
        self._stops = self._stops and once
        self._learned = True

    def complete(self) -> None:
        """Nothing that is left can call a projection; ends the pass if each was called once."""
        if self._stops and self._all_once():
            raise _Enough

    def _all_once(self) -> bool:
        return len(self._calls) == self._calls.total() == len(self._targets)

    def _hook(self, name: str, module: nn.Module) -> Callable[..., None]:
        inner = innermost(module)
        # Other layers need not be asked: their vectors lie along the last axis.
        layout = geometry(inner) if isinstance(inner, nn.modules.conv._ConvNd) else Geometry(0, 0)

        def hook(_module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
            given = (*args, *kwargs.values())
            x = next((value for value in given if isinstance(value, Tensor)), None)
            if x is None or not x.is_floating_point() or x.ndim < 1 + len(layout.stride):
                got = "nothing" if x is None else describe(x)
                raise ProjectionError(
                    f"{self._call}: projection {name!r} must read floating-point vectors, got "
                    f"{got}; select linear projections only."
                )
            self._read(name, layout.to_rows(x.detach()))
            self._calls[name] += 1
            if self._stops and self._learned and self._all_once():
                raise _Enough

        return hook


def may_stop(model: nn.Module) -> bool:
    """Whether a forward pass may be unwound: with sharded parameters, all processes must finish."""
    module = sys.modules.get("torch.distributed.tensor")
    if module is None:
        return True
    return not any(isinstance(p, module.DTensor) for p in model.parameters())


def tensor_parallel(model: nn.Module) -> str | None:
    """Name of a parameter that stays split over processes while it is used; None if none does.

    FSDP puts its parameters together for that. What it has split once, tensor parallelism may have
    split before, along another axis of the mesh.
    """
    tensors: Any = sys.modules.get("torch.distributed.tensor")
    if tensors is None:
        return None
    sharding: Any = sys.modules.get("torch.distributed.fsdp")
    managed: set[int] = set()
    for part in model.modules():
        if sharding is not None and isinstance(part, sharding.FSDPModule):
            managed.update(map(id, part.parameters()))
    for name, tensor in model.named_parameters():
        if isinstance(tensor, tensors.DTensor):
            splits = sum(not placement.is_replicate() for placement in tensor.placements)
            if splits > (id(tensor) in managed):
                return name
    return None
