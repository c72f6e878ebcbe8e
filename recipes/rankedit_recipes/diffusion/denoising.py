"""Running the denoiser of a pipeline by itself: for probing and for training."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from rankedit_recipes.diffusion import unet
from rankedit_recipes.diffusion.asked import asked_denoiser
from rankedit_recipes.diffusion.calling import Calling, calling, smallest
from rankedit_recipes.diffusion.calls import Call
from rankedit_recipes.diffusion.encoded import Encoded, Heard
from rankedit_recipes.diffusion.errors import PipelineError
from rankedit_recipes.diffusion.layout import Layout, layout
from rankedit_recipes.diffusion.recording import unanswered
from rankedit_recipes.diffusion.text import Pipeline

# Shapes of what denoisers give at their smallest size.
_given: WeakKeyDictionary[Calling, torch.Size] = WeakKeyDictionary()


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
            "use a text-to-image pipeline of diffusers."
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

    @property
    def recorded(self) -> bool:
        """Whether its pipeline is asked how it is called; not for Stable Diffusion's U-Net."""
        return asked_denoiser(self.pipe) is not None

    @property
    def _least(self) -> Calling:
        return smallest(self.pipe, self.module)

    def check_one(self) -> None:
        """Refuse pipelines with a second denoiser, which would not be edited.

        Raises:
            PipelineError: there is one.
        """
        second = getattr(self.pipe, "transformer_2", None)
        if isinstance(second, nn.Module):
            raise PipelineError(
                f"diffusion: {type(self.pipe).__name__} denoises with two networks in turn "
                "(transformer and transformer_2), and what is put into one does not act in the "
                "steps of the other; not supported."
            )

    def joint_attention(self, why: str) -> PipelineError:
        """The error for models in which text and picture attend to each other as one sequence."""
        return PipelineError(
            f"diffusion: {self.name} is not supported yet: text and picture attend jointly "
            f"({why}). The text's keys and values then change with the picture and the time step, "
            "so that there is no fixed encoding of the category to lock a key to, and statistics "
            "of captions alone do not describe what the projections read."
        )

    def latent_shape(self, height: int, width: int) -> tuple[int, ...]:
        """Channels, height and width of the latents for a picture of that size."""
        if self.recorded:
            return tuple(self._layout(height).shape)
        factor = int(self.pipe.vae_scale_factor)
        vae = self.pipe.vae.config
        # A denoiser for inpainting takes more channels than latents have.
        channels: int = getattr(vae, "latent_channels", None) or self.config.in_channels
        return channels, height // factor, width // factor

    def picture_size(self, asked: int = 0) -> int:
        """Edge of pictures in pixels: what was asked for, or what the model was made for.

        Raises:
            PipelineError: the pipeline does not tell.
        """
        if asked:
            return asked
        sample = getattr(self.config, "sample_size", None)
        if sample is not None:
            edge = sample if isinstance(sample, int) else min(sample)
            return int(edge) * int(self.pipe.vae_scale_factor)
        known = inspect.signature(type(self.pipe).__call__).parameters
        defaults = [getattr(known.get(name), "default", None) for name in ("height", "width")]
        edges = [edge for edge in defaults if isinstance(edge, int)]
        if not edges:
            raise PipelineError(
                f"diffusion: {type(self.pipe).__name__} does not tell how large its pictures are; "
                "give a size in pixels."
            )
        return min(edges)

    def _layout(self, size: int) -> Layout:
        self.check_one()
        called = calling(self.pipe, self.module, size)
        return layout(called, self._given_shape(called))

    def _given_shape(self, called: Calling) -> torch.Size:
        """Shape of what the denoiser gives for a picture, without the batch."""
        # A small picture is enough: outputs differ from inputs in their number of channels.
        least = self._least
        if least not in _given:
            with torch.no_grad():
                call = least.asking.first_calls(["a"])[0]
                given = self.forward(*self.probe_inputs(0, 0), least.encoded(call, Heard()))
            _given[least] = given.shape[1:]
        small, output, read = least.latents.shape[1:], _given[least], called.latents.shape[1:]
        return torch.Size(
            n * made // given for n, made, given in zip(read, output, small, strict=True)
        )

    @property
    def _device(self) -> torch.device:
        """Where the pipeline computes, offloading included."""
        device = getattr(self.pipe, "_execution_device", None)
        return torch.device(device if device is not None else self.pipe.device)

    def picture_of(self, pixels: Tensor, size: int) -> Tensor:
        """Pixels `[batch, 3, height, width]` as the autoencoder takes them: films have frames."""
        return pixels[:, :, None] if self.recorded and self._layout(size).framed else pixels

    def scaled(self, found: Tensor, size: int) -> Tensor:
        """The autoencoder's latents as they are learned on, float32."""
        if self.recorded:
            return self._layout(size).scaled(found)
        vae = self.pipe.vae.config
        # Not all autoencoders of diffusers 0.42 have this setting, and for some it is None.
        shift = getattr(vae, "shift_factor", None) or 0.0
        scaled: Tensor = (found.float() - shift) * vae.scaling_factor
        return scaled

    def run(
        self, latents: Tensor, time: Tensor, text: Encoded, *, size: int | None = None
    ) -> Tensor:
        """What the scheduler is given for noisy latents `[batch, ...]` at its times `[batch]`.

        Models that also give a variance give it in further channels, which are left out.

        Args:
            latents: noisy latents, as `scaled` gives them.
            time: one time for each.
            text: one prompt for each.
            size: edge of the picture in pixels, for models that are told; from the latents if
                None.
        """
        if not self.recorded:
            return self._unet(latents, time, text, size)
        size = size or latents.shape[-1] * int(getattr(self.pipe, "vae_scale_factor", 0))
        if not size:
            raise PipelineError(
                f"diffusion: {type(self.pipe).__name__} does not tell how large a picture its "
                "latents are of; give its size in pixels."
            )
        placed = self._layout(size)
        if latents.shape[1:] != placed.shape:
            raise PipelineError(
                f"diffusion: latents {list(placed.shape)} are expected for pictures of {size} px, "
                f"got {list(latents.shape[1:])}; give the size in pixels."
            )
        called = calling(self.pipe, self.module, size)
        args, kwargs = called.arguments(placed.read(latents), placed.timed(time), text)
        with unanswered():
            output: Tensor = self.module(*args, **kwargs)[0]
        return placed.given(output)

    def moments(self) -> Callable[[Call], Tensor]:
        """What gives the time `[batch]` or `[1]` of a call, as a part of the scheduler's: 0 to 1.

        Raises:
            PipelineError: the pipeline tells the time in ways that are not known.
        """
        placed = layout(self._least, self._given_shape(self._least))
        shift, scale = placed.times
        steps = float(self.pipe.scheduler.config.get("num_train_timesteps", 1000))

        def moment(call: Call) -> Tensor:
            told = torch.atleast_1d(call.at(placed.time).detach().float())
            return (told.reshape(len(told), -1)[:, 0] - shift) / (scale * steps)

        return moment

    def forward(self, latents: Tensor, time: Any, text: Encoded) -> Tensor:  # noqa: ANN401
        """What the denoiser gives for what `probe_inputs` gave, and one prompt for each."""
        if not self.recorded:
            return self._unet(latents, time, text, None)
        args, kwargs = self._least.arguments(latents, time, text)
        with unanswered():
            output: Tensor = self.module(*args, **kwargs)[0]
        return output

    def _unet(self, latents: Tensor, time: Tensor, text: Encoded, size: int | None) -> Tensor:
        edges = [size or edge * int(self.pipe.vae_scale_factor) for edge in latents.shape[-2:]]
        given = unet.arguments(self.plain, latents, time, text, edges)
        output: Tensor = self.module(**given)[0]
        channels = latents.shape[1]
        return output if self.config.in_channels != channels else output[:, :channels]

    @property
    def pictured(self) -> bool:
        """Whether an IP-Adapter is loaded, so that pictures are read beside the text."""
        return unet.pictured(self.plain)

    def forget_caches(self) -> None:
        """Empty what diffusers keeps of earlier calls, such as keys and values of the text.

        Its caches (`enable_cache`, `apply_text_kv_cache`, 0.42) know a prompt by where its encoding
        lies in memory, and cannot see that a projection gives something else by now.
        """
        reset = getattr(self.plain, "_reset_stateful_cache", None)
        if callable(reset) and hasattr(self.plain, "_diffusers_hook"):
            reset()

    def probe_inputs(self, seed: int, late: int, count: int = 1) -> tuple[Tensor, Any]:
        """Small random latents and a time, as the denoiser is given them; for `forward`.

        Args:
            seed: of the latents.
            late: 0 for one end of the times, 1 for one far from it.
            count: size of the batch.
        """
        generator = torch.Generator().manual_seed(seed)
        device, config = self._device, self.config
        if self.recorded:
            least = self._least
            shape, dtype = least.latents.shape[1:], least.latents.dtype
            time: Any = least.moment(late, count)
        else:
            # Eight is the least edge that three halvings of a U-Net leave whole.
            shape, dtype = torch.Size((int(config.in_channels), 8, 8)), _float(self.dtype)
            # So far apart that their embeddings differ by more than rounding in half precision.
            time = torch.full((count,), 499.0 * late + 1, device=device)
        # Drawn on the CPU: the same numbers on all devices.
        latents = torch.randn((1, *shape), generator=generator).to(device, dtype)
        return latents.expand(count, *shape), time


def _float(dtype: torch.dtype) -> torch.dtype:
    # Weights may be stored in what nothing is computed in, such as float8 or packed integers.
    return dtype if dtype in (torch.float16, torch.bfloat16, torch.float64) else torch.float32
