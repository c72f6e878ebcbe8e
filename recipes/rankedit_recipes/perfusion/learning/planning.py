"""What is to be learned, and what that would take."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

import rankedit as rk
from rankedit_recipes.diffusion.denoising import (
    denoiser_of,
    latent_shape,
    picture_size,
    plain,
    run_denoiser,
)
from rankedit_recipes.diffusion.targets import find_targets
from rankedit_recipes.diffusion.text import Pipeline, device_of, encode, text_encoders
from rankedit_recipes.diffusion.words import embedding_width
from rankedit_recipes.perfusion.learning.config import Config
from rankedit_recipes.perfusion.learning.learner import learned_names
from rankedit_recipes.perfusion.learning.photos import Photo
from rankedit_recipes.perfusion.naming import Naming, check_naming


@dataclass(frozen=True)
class LearnTask:
    """What shall be learned.

    Attributes:
        photos: of the thing.
        placeholder: the new word for it.
        category: what kind of thing it is.
        config: how to learn.
    """

    photos: Sequence[Photo]
    placeholder: str
    category: str
    config: Config


def check_words(pipe: Pipeline, task: LearnTask) -> None:
    """Refuse words and a lock that cannot be learned with, before anything takes time.

    Raises:
        PerfusionError: the placeholder is no new word, the category or the adjective no known one,
            or the model has no levels for the coarse lock.
    """
    check_naming(pipe, Naming(task.placeholder, task.category, task.config.adjective))
    learned_names(pipe, task.config.lock)


def plan(pipe: Pipeline, task: LearnTask) -> Iterator[str]:
    """What a training would do: photos, projections, sizes, and estimates of memory and time."""
    check_words(pipe, task)
    config = task.config
    targets, denoiser = find_targets(pipe), plain(denoiser_of(pipe))
    modules = targets.modules(denoiser)
    learned = learned_names(pipe, config.lock)
    widths = {name: rk.Projection(modules[name]).out_features for name in learned}
    rows = sum(embedding_width(encoder) for _, encoder, _ in text_encoders(pipe))
    numbers = sum(widths.values()) + 2 * targets.width + rows
    masks = sum(photo.mask is not None for photo in task.photos)
    weights = sum(p.numel() * p.element_size() for p in denoiser.parameters())
    size, part = picture_size(pipe, config.size), config.batch // config.accumulate
    seconds = _forward_seconds(pipe, size, part)
    yield f"{len(task.photos)} photos, {masks} with masks; {task.placeholder} is a {task.category}"
    yield (
        f"{type(denoiser).__name__}: {len(targets.keys)} key and {len(targets.values)} value "
        f"projections of an encoding {targets.width} wide; pictures of {size} px"
    )
    for name in learned:
        yield f"  {name}: {targets.width} to {widths[name]}"
    yield f"concept file: about {(2 * numbers + 64 * len(learned) + 1500) / 1024:.0f} KiB"
    yield (
        f"memory: {weights / 2**20:.0f} MiB of denoiser weights, and the activations of {part} "
        "pictures with their gradients"
    )
    # A backward pass costs about twice a forward pass.
    whole = 3 * seconds * config.accumulate * config.steps
    yield f"time: about {whole / 60:.1f} minutes for {config.steps} steps; nothing was written"


def _forward_seconds(pipe: Pipeline, size: int, batch: int) -> float:
    """Seconds of one forward pass of the denoiser."""
    device = device_of(pipe)
    dtype = next(plain(denoiser_of(pipe)).parameters()).dtype
    latents = torch.zeros(batch, *latent_shape(pipe, size, size), device=device, dtype=dtype)
    times = torch.ones(batch, dtype=torch.long, device=device)
    with torch.no_grad():
        text = encode(pipe, ["a"]).rows([0] * batch)
        run_denoiser(pipe, latents, times, text)  # the first pass also sets things up
        start = time.perf_counter()
        float(run_denoiser(pipe, latents, times, text).sum())
    return time.perf_counter() - start
