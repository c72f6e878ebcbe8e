"""Pictures as the denoiser sees them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rankedit_recipes.diffusion.parts import Parts


def pixels_of(image: Image.Image) -> Tensor:
    """`[3, height, width]` in [−1, 1]."""
    array = np.asarray(image, dtype=np.float32) / 127.5 - 1
    return torch.from_numpy(array).permute(2, 0, 1).contiguous()


def encoded(parts: Parts, pixels: Tensor, size: int) -> Tensor:
    """Scaled latents of pictures `[n, 3, size, size]` in [−1, 1], by the pipeline's autoencoder."""
    vae: Any = parts.pipe.vae
    dtype = next(vae.parameters()).dtype
    # The autoencoder of Stable Diffusion XL overflows in half precision and says so.
    upcast = dtype == torch.float16 and bool(getattr(vae.config, "force_upcast", False))
    pixels = parts.denoiser.picture_of(pixels, size)
    try:
        if upcast:
            vae.to(torch.float32)
        with torch.no_grad():
            given = vae.encode(pixels.to(parts.device, torch.float32 if upcast else dtype))
    finally:
        if upcast:
            vae.to(dtype)
    # The mode and not a draw: the same picture gives the same latents, and there is less noise.
    found = given.latent_dist.mode() if hasattr(given, "latent_dist") else given.latent
    return parts.denoiser.scaled(found, size)
