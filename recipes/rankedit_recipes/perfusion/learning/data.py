"""Photos as cached latents with masks, and what is drawn of them in each step."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from rankedit_recipes.diffusion.latents import encoded, pixels_of
from rankedit_recipes.diffusion.parts import Parts
from rankedit_recipes.perfusion.learning.photos import Photo


@dataclass(frozen=True)
class Latents:
    """All photos as the denoiser sees them, and mirrored ones behind them.

    Attributes:
        latents: `[2n, channels, height, width]`, scaled; the second half is mirrored.
        masks: `[2n, 1, height, width]`, largest entry 1; ones where no mask is known.
        size: edge of the pictures in pixels.
        digest: hash of the pictures.
    """

    latents: Tensor
    masks: Tensor
    size: int
    digest: str


@dataclass(frozen=True)
class Draw:
    """What one step works on; a function of seed and step alone."""

    photos: Tensor
    prompts: Tensor
    times: Tensor
    noise: Tensor


def cached_latents(parts: Parts, photos: Sequence[Photo], size: int) -> Latents:
    """Encode photos and their mirror images once; the autoencoder is not needed after that."""
    squares = [photo.square(size) for photo in photos]
    pictures = torch.stack([pixels_of(square.image) for square in squares])
    masks = torch.stack([_mask(square) for square in squares])
    # Pixels are mirrored and not latents, for an autoencoder does not commute with mirroring.
    pictures, masks = (torch.cat([x, x.flip(-1)]) for x in (pictures, masks))
    digest = hashlib.sha256(pictures.numpy().tobytes() + masks.numpy().tobytes())
    # One by one: the autoencoder needs far more memory than a step of learning.
    latents = torch.cat([encoded(parts, picture[None], size) for picture in pictures])
    # A soft mask of the paper's kind: divided by its own largest entry, no threshold.
    small = interpolate(masks, latents.shape[-2:], mode="area")
    small = small / small.amax((-3, -2, -1), keepdim=True).clamp_min(1e-6)
    return Latents(latents, small.to(latents.device), size, digest.hexdigest()[:16])


def draw(
    latents: Latents, prompts: int, times: int, batch: int, *, flip: bool, seed: int, step: int
) -> Draw:
    """Photos, prompts, times and noise of one step.

    Times are stratified: each of the batch is drawn from a slice of its own of all times, which
    leaves the expected loss as it is and takes most of the noise out of its gradient.
    """
    generator = torch.Generator().manual_seed(_stream(seed, step))
    count = len(latents.latents) // 2

    def integers(high: int) -> Tensor:
        return torch.randint(high, (batch,), generator=generator)

    chosen = integers(count)
    # Drawn without `flip` too, so that this setting alone changes nothing else that is drawn.
    mirrored = integers(2) * count
    noise = torch.randn((batch, *latents.latents.shape[1:]), generator=generator)
    within = torch.rand(batch, generator=generator, dtype=torch.float64)
    # The slices are shuffled, so that no photo always gets the noisy times.
    spread = (torch.randperm(batch, generator=generator) + within) / batch
    # In the last slice rounding may give 1.
    drawn = (spread * times).long().clamp_max(times - 1)
    return Draw(chosen + mirrored * flip, integers(prompts), drawn, noise)


def _stream(seed: int, step: int) -> int:
    # A stream for each step: resuming needs no state of a generator.
    text = f"perfusion {seed} {step}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:7], "little")


def _mask(photo: Photo) -> Tensor:
    if photo.mask is None:
        return torch.ones(1, photo.image.height, photo.image.width)
    return torch.from_numpy(np.asarray(photo.mask, dtype=np.float32) / 255)[None]
