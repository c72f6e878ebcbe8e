"""A pipeline whose weights stay what they are while something beside them is learned."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from rankedit_recipes.diffusion.parts import Parts


@contextlib.contextmanager
def frozen(parts: Parts, *, checkpointing: bool) -> Iterator[None]:
    """No weight asks for gradients and no layer drops out, for the length of the block."""
    modules = [m for m in parts.pipe.components.values() if isinstance(m, torch.nn.Module)]
    wanted = [(p, p.requires_grad) for m in modules for p in m.parameters()]
    # Of every module by itself: `eval` and `train` go down the whole tree.
    modes = [(m, m.training) for module in modules for m in module.modules()]
    denoiser: Any = parts.denoiser.plain
    checkpointing = checkpointing and not getattr(denoiser, "is_gradient_checkpointing", False)
    try:
        for module in modules:
            module.requires_grad_(False).eval()  # noqa: FBT003
        if checkpointing:
            denoiser.enable_gradient_checkpointing()
            # Checkpointing of diffusers works in training mode only; its denoisers are made with
            # dropout 0, so that nothing else changes.
            denoiser.train()
        yield
    finally:
        if checkpointing:
            denoiser.disable_gradient_checkpointing()
        for parameter, flag in wanted:
            parameter.requires_grad_(flag)
        for module, mode in modes:
            module.training = mode
