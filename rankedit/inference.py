"""Tensors that outlive the inference mode that a model may run in."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


def ordinary() -> contextlib.AbstractContextManager[object]:
    """A block whose tensors are ordinary ones; entered only where inference mode is on.

    The guard behind `torch.inference_mode` (2.13) puts back what was around it when it is
    destroyed. After an interrupt that is when the last reference to the traceback goes: gradients
    would be switched off long after everything was put back.
    """
    on = torch.is_inference_mode_enabled()
    return torch.inference_mode(mode=False) if on else contextlib.nullcontext()


def makes_ordinary(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function work on ordinary tensors; see `ordinary`."""

    @functools.wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        with ordinary():
            return function(*args, **kwargs)

    return called
