"""What is to be learned, and what that would take."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

import rankedit as rk
from rankedit_recipes.command_line.counting import counted
from rankedit_recipes.diffusion.parts import Parts
from rankedit_recipes.diffusion.text import Pipeline
from rankedit_recipes.diffusion.words import embedding_width
from rankedit_recipes.perfusion.errors import PerfusionError
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


def check_words(parts: Parts, task: LearnTask) -> None:
    """Refuse words and a lock that cannot be learned with, before anything takes time.

    Raises:
        PerfusionError: the placeholder is no new word, the category or the adjective no known one,
            or the model has no levels for the coarse lock.
    """
    # For its refusal, of models before words; see `learn`.
    learned_names(parts, task.config.lock)
    naming = Naming(task.placeholder, task.category, task.config.adjective)
    check_naming(parts.text, naming, task.config.vectors)


def check_denoiser(parts: Parts) -> None:
    """Refuse a denoiser in a state in which nothing useful can be learned.

    Raises:
        PerfusionError: an IP-Adapter is loaded, or the weights are float16.
    """
    if parts.denoiser.pictured:
        raise PerfusionError(
            "learn: an IP-Adapter is loaded, whose pictures would be learned along; take it out "
            "first: pipe.unload_ip_adapter(). It may be loaded again for pictures of the concept."
        )
    if parts.denoiser.dtype == torch.float16:
        raise PerfusionError(
            "learn: the denoiser's weights are float16, in which the small gradients of a picture "
            "vanish; load the pipeline in bfloat16, which takes no more memory, or in float32. "
            "Pictures may be made in float16 with the concept that is learned."
        )


def plan(pipe: Pipeline, task: LearnTask) -> Iterator[str]:
    """What a training would do: photos, projections, sizes, and estimates of memory and time."""
    parts, config = Parts(pipe), task.config
    check_denoiser(parts)
    check_words(parts, task)
    naming = Naming(task.placeholder, task.category, config.adjective)
    targets, denoiser, modules = parts.targets, parts.denoiser, parts.projections
    learned = learned_names(parts, config.lock)
    widths = {name: rk.Projection(modules[name]).out_features for name in learned}
    rows = sum(embedding_width(encoder.model) for encoder in parts.text.encoders)
    # Values, i* and its image under the metric, the word; two bytes each in 16 bit.
    numbers = (sum(widths.values()) + 2 * targets.width + rows) * config.vectors
    masks = sum(photo.mask is not None for photo in task.photos)
    weights = sum(p.numel() * p.element_size() for p in denoiser.plain.parameters())
    size, part = denoiser.picture_size(config.size), config.batch // config.accumulate
    seconds = _forward_seconds(parts, size, part)
    photos = counted(len(task.photos), "photo")
    yield f"{photos}, {masks} with masks; {task.placeholder} is a {task.category}"
    yield (
        f"{denoiser.name}: {len(targets.keys)} key and {len(targets.values)} value "
        f"projections of an encoding {targets.width} wide; pictures of {size} px"
    )
    held = len(targets.keys) + len(targets.values) - len(learned)
    others = f"; the other {held} follow the word {naming.origin!r}" if held else ""
    yield f"lock {config.lock!r}: learned are the outputs of these {len(learned)}{others}"
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


def _forward_seconds(parts: Parts, size: int, batch: int) -> float:
    """Seconds of one forward pass of the denoiser."""
    device, denoiser = parts.device, parts.denoiser
    shape = denoiser.latent_shape(size, size)
    latents = torch.zeros(batch, *shape, device=device, dtype=denoiser.dtype)
    times = torch.ones(batch, dtype=torch.long, device=device)
    with torch.no_grad():
        text = parts.text.encode(["a"]).rows([0] * batch)
        denoiser.run(latents, times, text, size=size)  # the first pass also sets things up
        start = time.perf_counter()
        # A number waits for the accelerator; without it only the launch would be timed.
        float(denoiser.run(latents, times, text, size=size).sum())
    return time.perf_counter() - start
