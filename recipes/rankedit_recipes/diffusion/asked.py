"""Which denoisers their pipeline is asked about."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn


def asked_denoiser(pipe: Any) -> nn.Module | None:  # noqa: ANN401 - a pipeline
    """The denoiser whose call is recorded; None for the U-Net of Stable Diffusion.

    Its pipelines all call that one alike, and some of them need pictures to be run at all.
    """
    for name in ("unet", "transformer"):
        module = getattr(pipe, name, None)
        if isinstance(module, nn.Module):
            return None if _is_unet(module) else module
    return None


def _is_unet(module: nn.Module) -> bool:
    # Of the class: hooks of offloading put a forward of their own on the instance.
    plain: Any = getattr(module, "_orig_mod", module)
    taken = inspect.signature(type(plain).forward).parameters
    # No film's U-Net has all of these (diffusers 0.42).
    return {"sample", "encoder_attention_mask", "added_cond_kwargs"} <= set(taken)
