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

from rankedit_recipes.diffusion.encoded import Encoded
from rankedit_recipes.diffusion.errors import PipelineError
from rankedit_recipes.diffusion.text import Pipeline

_KNOWN = {
    "sample",
    "hidden_states",
    "timestep",
    "encoder_hidden_states",
    "encoder_attention_mask",
    "pooled_projections",
    "added_cond_kwargs",
}


class Denoiser:
    """The network that a pipeline samples with.

    It is looked up each time, for users compile and exchange it while they work.

    Args:
        pipe: the pipeline.
    """

    def __init__(self, pipe: Pipeline) -> None:
        self.pipe = pipe

    @property
    def module(self) -> nn.Module:
        """As the pipeline calls it: compiled, if it was.

        Raises:
            PipelineError: the pipeline has neither `unet` nor `transformer`.
        """
        for name in ("unet", "transformer"):
            module = getattr(self.pipe, name, None)
            if isinstance(module, nn.Module):
                return module
        raise PipelineError(
            f"diffusion: {type(self.pipe).__name__} has no unet and no transformer to work with; "
            "pass a text-to-image pipeline of diffusers."
        )

    @property
    def plain(self) -> nn.Module:
        """Without the wrapper that `torch.compile` puts around it."""
        module = self.module
        # Its names of layers begin with `_orig_mod`, and its `forward` has no signature of use.
        return getattr(module, "_orig_mod", module)

    @property
    def name(self) -> str:
        """Its class, for messages."""
        return type(self.plain).__name__

    @property
    def config(self) -> Any:  # noqa: ANN401 - a configuration of diffusers
        """Its configuration."""
        plain: Any = self.plain
        return plain.config

    @property
    def dtype(self) -> torch.dtype:
        """Precision of its weights."""
        return next(self.plain.parameters()).dtype

    def _arguments(self) -> dict[str, inspect.Parameter]:
        # Of the class: hooks of offloading put a forward of their own on the instance.
        return dict(inspect.signature(type(self.plain).forward).parameters)

    def check_callable(self) -> None:
        """Refuse denoisers that take more than latents, time and text.

        Raises:
            PipelineError: names the argument, and why it stands in the way.
        """
        for name, parameter in self._arguments().items():
            if name in ("txt_ids", "img_ids"):
                raise self.joint_attention(f"its forward takes {name!r}: one sequence of both")
            needed = parameter.default is inspect.Parameter.empty
            usual = parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD and name != "self"
            if needed and usual and name not in _KNOWN:
                raise PipelineError(
                    f"diffusion: {self.name} takes {name!r}, which this recipe does not know how "
                    "to give; pipelines with cross-attention on a text (Stable Diffusion 1.5, "
                    "2.1, XL, PixArt, Sana) are supported."
                )

    def joint_attention(self, why: str) -> PipelineError:
        """The error for models in which text and picture attend to each other as one sequence."""
        return PipelineError(
            f"diffusion: {self.name} is not supported yet: text and picture attend jointly "
            f"({why}). The text's keys and values then change with the picture and the time step, "
            "so that there is no fixed encoding of the category to lock a key to, and statistics "
            "of captions alone do not describe what the projections read."
        )

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Channels, height and width of the latents for a picture of that size."""
        factor = int(self.pipe.vae_scale_factor)
        vae = self.pipe.vae.config
        # A denoiser for inpainting takes more channels than latents have.
        channels: int = getattr(vae, "latent_channels", None) or self.config.in_channels
        return channels, height // factor, width // factor

    def picture_size(self, asked: int = 0) -> int:
        """Edge of pictures in pixels: what was asked for, or what the model was made for."""
        if asked:
            return asked
        sample = self.config.sample_size
        edge = sample if isinstance(sample, int) else min(sample)
        return int(edge) * int(self.pipe.vae_scale_factor)

    def run(
        self, latents: Tensor, time: Tensor, text: Encoded, *, size: int | None = None
    ) -> Tensor:
        """What the denoiser gives for noisy latents `[batch, ...]` at times `[batch]`.

        Models that also give a variance give it in further channels, which are left out.

        Args:
            latents: noisy latents.
            time: one time for each.
            text: one prompt for each.
            size: edge of the picture in pixels, for models that are told; from the latents if
                None.
        """
        known, config = self._arguments(), self.config
        first = "sample" if "sample" in known else "hidden_states"
        # Sana may be told its times in other units, which its pipeline multiplies by before the
        # call.
        scale = getattr(config, "timestep_scale", None) or 1.0
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
            given["added_cond_kwargs"] = self._conditions(latents, text, size)
            if self.pictured:
                given["added_cond_kwargs"]["image_embeds"] = self._no_pictures(latents)
        output: Tensor = self.module(**given, return_dict=False)[0]
        channels = latents.shape[1]
        return output if config.in_channels != channels else output[:, :channels]

    @property
    def pictured(self) -> bool:
        """Whether an IP-Adapter is loaded, so that pictures are read beside the text."""
        return getattr(self.config, "encoder_hid_dim_type", None) == "ip_image_proj"

    def _no_pictures(self, latents: Tensor) -> list[Tensor]:
        """Zeros for each IP-Adapter's picture, in the shape that its projection takes."""
        from diffusers.models.embeddings import ImageProjection, IPAdapterFaceIDImageProjection

        plain: Any = self.plain
        pictures = []
        for layer in plain.encoder_hid_proj.image_projection_layers:
            width = next(m.in_features for m in layer.modules() if isinstance(m, nn.Linear))
            # These two read one vector of a picture, all others its sequence of patches.
            one = isinstance(layer, (ImageProjection, IPAdapterFaceIDImageProjection))
            shape = (len(latents), 1, width) if one else (len(latents), 1, 1, width)
            pictures.append(latents.new_zeros(shape))
        return pictures

    def forget_caches(self) -> None:
        """Empty what diffusers keeps of earlier calls, such as keys and values of the text.

        Its caches (`enable_cache`, `apply_text_kv_cache`, 0.42) know a prompt by where its encoding
        lies in memory, and cannot see that a projection gives something else by now.
        """
        reset = getattr(self.plain, "_reset_stateful_cache", None)
        if callable(reset) and hasattr(self.plain, "_diffusers_hook"):
            reset()

    def _conditions(self, latents: Tensor, text: Encoded, size: int | None) -> dict[str, Any]:
        """Pooled text and sizes, as Stable Diffusion XL takes them; sizes alone for PixArt."""
        edges = [size or edge * int(self.pipe.vae_scale_factor) for edge in latents.shape[-2:]]
        if text.pooled is None:
            # Only the PixArt models for 1,024 pixels were trained on sizes; others refuse them.
            if not getattr(self.plain, "use_additional_conditions", False):
                return {"resolution": None, "aspect_ratio": None}
            shapes = {"resolution": edges, "aspect_ratio": [edges[0] / edges[1]]}
            return {
                name: torch.tensor([row] * len(latents)).to(latents) for name, row in shapes.items()
            }
        # The size of the original, the corner it was cut at, the size wanted: nothing is cut off.
        times = torch.tensor([[*edges, 0, 0, *edges]], device=latents.device, dtype=latents.dtype)
        return {
            "text_embeds": text.pooled.to(latents.dtype),
            "time_ids": times.expand(len(latents), -1),
        }

    def probe_latents(self, seed: int, device: torch.device) -> Tensor:
        """Small random latents with as many channels as the denoiser takes."""
        generator = torch.Generator().manual_seed(seed)
        # Eight is the least edge that three halvings of a U-Net leave whole.
        edge = 8
        patches = int(getattr(self.config, "patch_size", None) or 1)
        # Positions of transformers are those of the size that they were made for.
        if patches > 1 or "hidden_states" in self._arguments():
            edge = int(getattr(self.config, "sample_size", edge))
        shape = (1, int(self.config.in_channels), edge, edge)
        # Drawn on the CPU: the same numbers on all devices.
        return torch.randn(shape, generator=generator).to(device, _float(self.dtype))


def _float(dtype: torch.dtype) -> torch.dtype:
    # Weights may be stored in what nothing is computed in, such as float8 or packed integers.
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

    # What comes behind the module would be computed for nothing.
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
    # Before a global lock's hook, which exchanges what key projections read.
    handle = module.register_forward_pre_hook(hook, prepend=True)
    try:
        yield
    finally:
        handle.remove()
