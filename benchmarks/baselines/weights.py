"""Weights of a pipeline that are exchanged for a while and put back to the bit."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor


@contextlib.contextmanager
def restored(parameters: Mapping[str, torch.nn.Parameter]) -> Iterator[dict[str, Tensor]]:
    """Give copies of parameters, and put them back at the end of the block."""
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    flags = {name: parameter.requires_grad for name, parameter in parameters.items()}
    try:
        yield before
    finally:
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(before[name])
                parameter.requires_grad_(flags[name])
                parameter.grad = None


@contextlib.contextmanager
def moved(
    parameters: Mapping[str, torch.nn.Parameter], tuned: Mapping[str, Tensor], scale: float
) -> Iterator[None]:
    """Parameters on the way to tuned ones (0: as they were, 1: tuned), for the block."""
    with restored(parameters) as before:
        with torch.no_grad():
            for name, value in tuned.items():
                parameters[name].copy_(torch.lerp(before[name], value.to(before[name]), scale))
        yield
