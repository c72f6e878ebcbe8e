"""What each training step sees, as a function of the seed, the step and nothing else."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from .cache import Drawn, scene_of
from .captions import caption
from .presets import Preset
from .scenes import rng_of

UNCAPTIONED = 0.08
"""How often the caption is empty, which is what guidance compares with."""


class Batch(NamedTuple):
    """One process's part of a step.

    Attributes:
        pixels: Pictures from -1 to 1, [n, 3, size, size].
        weight: Weight of each latent cell in the loss, mean about 1, [n, 1, cells, cells].
        tokens: Captions, [n, length].
        times: Time steps of the diffusion, 0 to 1,000, [n].
        noise: Standard normal, [n, channels, cells, cells].
    """

    pixels: Tensor
    weight: Tensor
    tokens: Tensor
    times: Tensor
    noise: Tensor


class Ready(NamedTuple):
    """A step's batch where it is used, with everything that can be known before it.

    Attributes:
        latents: Of the pictures, [n, channels, cells, cells].
        weight: As in `Batch`.
        tokens: As in `Batch`.
        labels: Answers to the questions about skins, [n, questions, length]; none, if none are
            asked.
        times: As in `Batch`.
        noise: As in `Batch`.
    """

    latents: Tensor
    weight: Tensor
    tokens: Tensor
    labels: Tensor
    times: Tensor
    noise: Tensor


def singles_of(preset: Preset) -> int:
    """How many pictures of the cache show one object."""
    return preset.pictures // 3


def make_batch(
    preset: Preset, drawn: Drawn, tokenizer: PreTrainedTokenizerFast, step: int, rank: int = 0
) -> Batch:
    """The part of a step's batch that one worker computes.

    Args:
        preset: Settings.
        drawn: The cache.
        tokenizer: Captions to tokens.
        step: Number of the step.
        rank: Number of the worker.

    Returns:
        The batch. All workers' parts together do not depend on how many there are.
    """
    part = preset.batch // preset.workers
    rows = range(rank * part, (rank + 1) * part)
    indices, tokens = captions_of(preset, tokenizer, step, rows)
    pixels = torch.from_numpy(np.stack([drawn.pixels[i] for i in indices]))
    objects = torch.from_numpy(np.stack([drawn.objects[i] for i in indices]))
    # Drawn for the whole step: a worker takes its rows, whatever the number of workers.
    times, noise = diffusion(preset, step)
    return Batch(
        (pixels.permute(0, 3, 1, 2) / 127.5 - 1).contiguous(memory_format=torch.channels_last),
        weights_of(preset, objects),
        tokens,
        times[rows.start : rows.stop],
        noise[rows.start : rows.stop].contiguous(memory_format=torch.channels_last),
    )


def captions_of(
    preset: Preset, tokenizer: PreTrainedTokenizerFast, step: int, rows: Iterable[int]
) -> tuple[list[int], Tensor]:
    """Which pictures a step shows, and what is said about them.

    Args:
        preset: Settings.
        tokenizer: Captions to tokens.
        step: Number of the step.
        rows: Places in the step's batch.

    Returns:
        Numbers of the pictures, and tokens, [n, length].
    """
    indices, texts = zip(*(_row(preset, step, row) for row in rows), strict=True)
    told = tokenizer(list(texts), padding="max_length", truncation=True, return_tensors="pt")
    return list(indices), told["input_ids"]


def weights_of(preset: Preset, objects: Tensor) -> Tensor:
    """Weights of latent cells in the loss.

    Args:
        preset: Settings.
        objects: How far objects fill the cells, 0 to 255, [n, cells, cells].

    Returns:
        Weights, [n, 1, cells, cells].
    """
    weight = 1 + preset.object_weight * (objects[:, None] / 255)
    # A mean of 1 for each picture, or those of large objects would count more.
    return weight / weight.mean((1, 2, 3), keepdim=True)


def _row(preset: Preset, step: int, row: int) -> tuple[int, str]:
    """Which picture, and what is said about it."""
    rng = rng_of("row", preset.seed, step, row)
    singles = singles_of(preset)
    pair = step >= preset.single_steps and rng.random() < preset.pairs
    index = rng.randrange(singles, preset.pictures) if pair else rng.randrange(singles)
    scene = scene_of(preset.seed, index, singles, preset.skinned)
    text = caption(scene, rng, described=preset.described, whole=preset.whole)
    return index, "" if rng.random() < UNCAPTIONED else text


def diffusion(
    preset: Preset, step: int, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Times (half of them where shapes are decided) and noise of a whole step.

    Args:
        preset: Settings.
        step: Number of the step.
        device: Where they are drawn. Every kind of device has a generator of its own: the same
            seed gives other numbers on an accelerator than on a processor, and the same ones
            whenever the step is done again there.

    Returns:
        Times, [batch], and noise, [batch, channels, cells, cells].
    """
    first, last = preset.level_times if step < preset.level_steps else (450, 900)
    generator = torch.Generator(device)
    generator.manual_seed(rng_of("noise", preset.seed, step).getrandbits(62))
    drawn: Any = {"generator": generator, "device": device}
    everywhere = torch.randint(0, 1000, (preset.batch,), **drawn)
    middle = torch.randint(first, last, (preset.batch,), **drawn)
    chosen = torch.rand(preset.batch, **drawn) < 0.5
    cells = preset.size // preset.patch
    shape = (preset.batch, preset.channels, cells, cells)
    times, noise = torch.where(chosen, middle, everywhere), torch.randn(shape, **drawn)
    if preset.base == "joint":
        # Logit-normal: most where noise and picture are about equal (arXiv 2403.03206, eq. 19).
        times = 1000 * torch.randn(preset.batch, **drawn).sigmoid()
    return times, noise
