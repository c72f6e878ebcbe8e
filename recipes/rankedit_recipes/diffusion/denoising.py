"""Running the denoiser of a pipeline by itself: for probing and for training.

Denoisers are told apart by the arguments of their `forward`, not by their names.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rankedit_recipes.diffusion.errors import PipelineError
from rankedit_recipes.diffusion.text import Encoded, Pipeline, device_of

_KNOWN = {
    "sample",
    "hidden_states",
    "timestep",
    "encoder_hidden_states",
    "encoder_attention_mask",
    "pooled_projections",
    "added_cond_kwargs",
}


def denoiser_of(pipe: Pipeline) -> nn.Module:
    """The network that the pipeline samples with.

    Raises:
        PipelineError: it has neither `unet` nor `transformer`.
    """
    for name in ("unet", "transformer"):
        module = getattr(pipe, name, None)
        if isinstance(module, nn.Module):
            return module
    raise PipelineError(
        f"diffusion: {type(pipe).__name__} has no unet and no transformer to personalise; pass a "
        "text-to-image pipeline of diffusers."
    )


def plain(denoiser: nn.Module) -> nn.Module:
    """The denoiser without the wrapper that `torch.compile` puts around it."""
    return getattr(denoiser, "_orig_mod", denoiser)


def config_of(denoiser: nn.Module) -> Any:  # noqa: ANN401 - a configuration of diffusers
    """The denoiser's configuration."""
    module: Any = plain(denoiser)
    return module.config


def _parameters(denoiser: nn.Module) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(type(plain(denoiser)).forward).parameters)


def check_callable(pipe: Pipeline) -> None:
    """Refuse denoisers that take more than latents, time and text.

    Raises:
        PipelineError: names the argument, and why it stands in the way.
    """
    denoiser = denoiser_of(pipe)
    for name, parameter in _parameters(denoiser).items():
        if name in ("txt_ids", "img_ids"):
            raise joint_attention(denoiser, f"its forward takes {name!r}: one sequence of both")
        needed = parameter.default is inspect.Parameter.empty
        usual = parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD and name != "self"
        if needed and usual and name not in _KNOWN:
            raise PipelineError(
                f"diffusion: {type(denoiser).__name__} takes {name!r}, which this recipe does not "
                "know how to give; pipelines with cross-attention on a text (Stable Diffusion 1.5, "
                "2.1, XL, PixArt, Sana) are supported."
            )


def joint_attention(denoiser: nn.Module, why: str) -> PipelineError:
    """The error for models in which text and picture attend to each other as one sequence."""
    return PipelineError(
        f"diffusion: {type(plain(denoiser)).__name__} is not supported yet: text and picture "
        f"attend jointly ({why}). The text's keys and values then change with the picture and "
        "the time step, so that there is no fixed encoding of the category to lock a key to, and "
        "statistics of captions alone do not describe what the projections read."
    )


def picture_size(pipe: Pipeline, asked: int) -> int:
    """Edge of training pictures: what was asked for, or what the model was made for."""
    if asked:
        return asked
    sample = config_of(denoiser_of(pipe)).sample_size
    edge = sample if isinstance(sample, int) else min(sample)
    return int(edge) * int(pipe.vae_scale_factor)


def latent_shape(pipe: Pipeline, height: int, width: int) -> tuple[int, int, int]:
    """Channels, height and width of the latents for a picture of that size."""
    factor = int(pipe.vae_scale_factor)
    vae = pipe.vae.config
    channels: int = (
        getattr(vae, "latent_channels", None) or config_of(denoiser_of(pipe)).in_channels
    )
    return channels, height // factor, width // factor


def run_denoiser(
    pipe: Pipeline, latents: Tensor, time: Tensor, text: Encoded, *, size: int | None = None
) -> Tensor:
    """What the denoiser gives for noisy latents `[batch, ...]` at times `[batch]`.

    Models that also give a variance give it in further channels, which are left out.

    Args:
        pipe: the pipeline.
        latents: noisy latents.
        time: one time for each.
        text: one prompt for each.
        size: edge of the picture in pixels, for models that are told; from the latents if None.
    """
    denoiser = denoiser_of(pipe)
    known = _parameters(denoiser)
    first = "sample" if "sample" in known else "hidden_states"
    # Sana may be told its times in other units, which its pipeline multiplies by before the call.
    scale = getattr(config_of(denoiser), "timestep_scale", None) or 1.0
    given: dict[str, Any] = {
        first: latents,
        "timestep": time if scale == 1.0 else time * scale,
        "encoder_hidden_states": text.embeds.to(latents.dtype),
    }
    if "encoder_attention_mask" in known and text.mask is not None:
        given["encoder_attention_mask"] = text.mask
    if "pooled_projections" in known:
        given["pooled_projections"] = text.pooled
    if "added_cond_kwargs" in known:
        given["added_cond_kwargs"] = _conditions(pipe, latents, text, size)
    output = denoiser(**given, return_dict=False)[0]
    channels = latents.shape[1]
    return output if config_of(denoiser).in_channels != channels else output[:, :channels]


def _conditions(
    pipe: Pipeline, latents: Tensor, text: Encoded, size: int | None
) -> dict[str, Tensor | None]:
    """Pooled text and sizes, as Stable Diffusion XL takes them; empty sizes for PixArt."""
    if text.pooled is None:
        return {"resolution": None, "aspect_ratio": None}
    edges = [size or edge * int(pipe.vae_scale_factor) for edge in latents.shape[-2:]]
    times = torch.tensor([[*edges, 0, 0, *edges]], device=latents.device, dtype=latents.dtype)
    return {
        "text_embeds": text.pooled.to(latents.dtype),
        "time_ids": times.expand(len(latents), -1),
    }


def probe_latents(pipe: Pipeline, seed: int) -> Tensor:
    """Small random latents with as many channels as the denoiser takes."""
    denoiser = plain(denoiser_of(pipe))
    generator = torch.Generator().manual_seed(seed)
    weight = next(denoiser.parameters())
    # Eight is the least edge that three halvings of a U-Net leave whole.
    edge = 8
    patches = int(getattr(config_of(denoiser), "patch_size", None) or 1)
    if patches > 1 or "hidden_states" in _parameters(denoiser):
        edge = int(getattr(config_of(denoiser), "sample_size", edge))
    shape = (1, int(config_of(denoiser).in_channels), edge, edge)
    return torch.randn(shape, generator=generator).to(device_of(pipe), _float(weight.dtype))


def _float(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype in (torch.float16, torch.bfloat16, torch.float64) else torch.float32


class _Reached(Exception):  # noqa: N818 - not an error: it ends a forward that has done its work
    """Raised to end a forward once what is wanted of it is known."""


def ended_when(run: Callable[[], object], module: nn.Module) -> Tensor:
    """What a module reads in a forward, which ends there.

    Raises:
        PipelineError: the forward never comes to the module.
    """
    seen: list[Tensor] = []

    def stop(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen.append(args[0])
        raise _Reached

    with hooked(module, stop):
        try:
            run()
        except _Reached:
            return seen[0]
    raise PipelineError(
        f"diffusion: the denoiser does not call {type(module).__name__} as it was expected to; it "
        "may have been fused or replaced after the targets were found."
    )


@contextmanager
def hooked(module: nn.Module, hook: Callable[..., Any]) -> Iterator[None]:
    """A forward pre-hook for the length of the block, before all others."""
    handle = module.register_forward_pre_hook(hook, prepend=True)
    try:
        yield
    finally:
        handle.remove()
