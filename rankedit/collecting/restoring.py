"""Leave everything as it was, whenever a signal comes.

A context manager alone does not do so: a signal handler that raises may do it after a hook is in
its place and before anybody remembers it, or within the very code that takes it out.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

_HOOKS = ("_forward_pre_hooks", "_forward_hooks")
_OURS = ("rankedit.collecting.", "rankedit.models.")


def as_it_was(model: nn.Module) -> Callable[[], None]:
    """Notes what `collect` will change, and gives the function that puts it back.

    It may be called any number of times: if it is interrupted, call it again.
    """
    modes = [(module, module.training) for module in model.modules()]
    hooks = {
        (id(module), kind): set(getattr(module, kind)) for module, _ in modes for kind in _HOOKS
    }
    gradients, followers = torch.is_grad_enabled(), torch._C._len_torch_function_stack()
    handler = signal.getsignal(signal.SIGINT)
    compiler: Any = sys.modules.get("torch._dynamo.eval_frame")
    stance = getattr(compiler, "_stance", None)

    def put_back() -> None:
        for module, mode in modes:
            module.training = mode
            for kind in _HOOKS:
                _take_out(module, kind, hooks[id(module), kind])
        while torch._C._len_torch_function_stack() > followers:
            torch._C._pop_torch_function_stack()
        torch.set_grad_enabled(gradients)
        if compiler is not None and compiler._stance is not stance:
            compiler._set_stance(stance)
        # Only the main thread may, and only there was the handler changed. None stands for one
        # that was not installed by Python.
        if handler is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)

    return put_back


def _take_out(module: nn.Module, kind: str, before: set[int]) -> None:
    present = getattr(module, kind)
    for key in present.keys() - before:
        if str(getattr(present[key], "__module__", "")).startswith(_OURS):
            present.pop(key, None)
    # torch takes a hook out first, and what it notes of it afterwards.
    for notes in (f"{kind}_with_kwargs", f"{kind}_always_called"):
        noted = getattr(module, notes, {})
        for key in noted.keys() - present.keys():
            noted.pop(key, None)
