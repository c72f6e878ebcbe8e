"""Watch what projections of a model read, without changing the model."""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from rankedit.errors import ProjectionError
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


@contextlib.contextmanager
def watching(targets: Mapping[str, nn.Module], read: Read) -> Iterator[None]:
    """Call `read(name, x)` with the vectors `x [..., in]` of every call of the projections."""
    with contextlib.ExitStack() as stack:
        for name, module in targets.items():
            # Keyword arguments too; after hooks of others, which may change the input.
            handle = module.register_forward_pre_hook(_hook(name, module, read), with_kwargs=True)
            stack.callback(handle.remove)
        yield


def _hook(name: str, module: nn.Module, read: Read) -> Callable[..., None]:
    inner = innermost(module)
    # Other layers need not be asked: their vectors lie along the last axis.
    layout = geometry(inner) if isinstance(inner, nn.modules.conv._ConvNd) else Geometry(0, 0)

    def hook(_module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        given = (*args, *kwargs.values())
        x = next((value for value in given if isinstance(value, Tensor)), None)
        if x is None or not x.is_floating_point() or x.ndim < 1 + len(layout.stride):
            got = "nothing" if x is None else describe(x)
            raise ProjectionError(
                f"projection {name!r} must read floating-point vectors, got {got}; select linear "
                "projections only"
            )
        read(name, layout.to_rows(x.detach()))

    return hook


class Enough(BaseException):
    """Unwinds a forward pass of which nothing more is needed; never leaves this library.

    Not an `Exception`: a model that catches those must not swallow it.
    """


class Stopper:
    """Says when every projection has been called, so that the rest of a forward can be left out.

    The first batch runs to its end. If it called every projection exactly once, later batches stop
    as soon as every projection has been called. If any batch calls one of them twice (a loop, a
    shared module), or does not call all of them (routing), nothing is left out.
    """

    def __init__(self, names: list[str], *, allowed: bool) -> None:
        self._names = names
        self._allowed = allowed
        self._learned = False
        self.calls: Counter[str] = Counter()

    def called(self, name: str) -> None:
        """Count a call; raises `Enough` after the last one that is needed."""
        self.calls[name] += 1
        if self._learned and self._allowed and self._all_once():
            raise Enough

    def _all_once(self) -> bool:
        return len(self.calls) == self.calls.total() == len(self._names)

    def run(self, call: Callable[[], object]) -> None:
        """Run one batch."""
        self.calls.clear()
        with contextlib.suppress(Enough):
            call()
        once = self._all_once() if not self._learned else max(self.calls.values(), default=0) <= 1
        self._allowed = self._allowed and once
        self._learned = True


def may_stop(model: nn.Module) -> bool:
    """Whether a forward pass may be unwound: with sharded parameters, all processes must finish."""
    module = sys.modules.get("torch.distributed.tensor")
    if module is None:
        return True
    return not any(isinstance(p, module.DTensor) for p in model.parameters())
