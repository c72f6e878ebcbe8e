"""Running the U-Net of Stable Diffusion, whose call is the same in all of its pipelines.

ControlNet, inpainting and other pipelines need pictures to be run; what they sample with is called
with latents, times and text alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rankedit_recipes.diffusion.encoded import Encoded


def arguments(
    unet: Any,  # noqa: ANN401 - a model of diffusers
    latents: Tensor,
    time: Tensor,
    text: Encoded,
    edges: list[int],
) -> dict[str, Any]:
    """Keyword arguments of its call.

    Args:
        unet: a `UNet2DConditionModel`.
        latents: `[batch, channels, height, width]`.
        time: `[batch]`.
        text: one prompt for each.
        edges: height and width of the picture in pixels.
    """
    conditions: dict[str, Any] = {}
    if text.pooled is not None:
        # The size of the original, the corner it was cut at, the size wanted: nothing is cut off.
        sizes = torch.tensor([[*edges, 0, 0, *edges]], device=latents.device, dtype=latents.dtype)
        conditions["text_embeds"] = text.pooled.to(latents.dtype)
        conditions["time_ids"] = sizes.expand(len(latents), -1)
    if pictured(unet):
        conditions["image_embeds"] = _no_pictures(unet, latents)
    masked = {} if text.mask is None else {"encoder_attention_mask": text.mask}
    return {
        **masked,
        "sample": latents,
        "timestep": time,
        "encoder_hidden_states": text.embeds.to(latents.dtype),
        "added_cond_kwargs": conditions,
        "return_dict": False,
    }


def pictured(unet: Any) -> bool:  # noqa: ANN401 - any denoiser of diffusers
    """Whether an IP-Adapter is loaded, so that pictures are read beside the text."""
    return getattr(unet.config, "encoder_hid_dim_type", None) == "ip_image_proj"


def _no_pictures(unet: Any, latents: Tensor) -> list[Tensor]:  # noqa: ANN401
    """Zeros for each IP-Adapter's picture, in the shape that its projection takes."""
    from diffusers.models.embeddings import ImageProjection, IPAdapterFaceIDImageProjection

    pictures = []
    for layer in unet.encoder_hid_proj.image_projection_layers:
        width = next(m.in_features for m in layer.modules() if isinstance(m, nn.Linear))
        # These two read one vector of a picture, all others its sequence of patches.
        one = isinstance(layer, (ImageProjection, IPAdapterFaceIDImageProjection))
        shape = (len(latents), 1, width) if one else (len(latents), 1, 1, width)
        pictures.append(latents.new_zeros(shape))
    return pictures
