"""Where a language model's outputs begin that statistics never need."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from torch import nn


@contextlib.contextmanager
def before_head(model: nn.Module, reached: Callable[[], None]) -> Iterator[None]:
    """Call `reached()` whenever the model is about to compute its logits.

    They are the largest tensors of a language model: 3 GB for 16 texts of 1,024 tokens and 50,000
    words, where what the last projection reads is a hundredth of that.
    """
    head = _head_of(model)
    if head is None:
        yield
        return

    def hook(_module: nn.Module, _args: tuple[object, ...]) -> None:
        reached()

    handle = head.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _head_of(model: nn.Module) -> nn.Module | None:
    """The layer that gives the logits, where a model says which that is."""
    # The convention of transformers, which other libraries follow; no model family is known here.
    ask = getattr(model, "get_output_embeddings", None)
    if not callable(ask):
        return None
    try:
        head = ask()
    except (NotImplementedError, AttributeError):  # models without a head
        return None
    return head if isinstance(head, nn.Module) else None
