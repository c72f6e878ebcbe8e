"""Pictures from prompts and seeds, whatever they are batched with the same up to rounding."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image

from rankedit_recipes.diffusion.recording import ONE_FRAME
from rankedit_recipes.diffusion.text import Pipeline


@dataclass(frozen=True)
class Sampling:
    """How pictures are made.

    Attributes:
        steps: of the pipeline's scheduler (50 in the paper's evaluation).
        guidance: scale of classifier-free guidance (6 there).
        size: edge in pixels; 0 for the model's own.
        batch: pictures made at a time.
        extra: further arguments of the pipeline, the same for every batch: what goes by prompt
            needs an argument of its own, for the last batch may be shorter.
    """

    steps: int = 25
    guidance: float = 6.0
    size: int = 0
    batch: int = 4
    extra: dict[str, Any] = field(default_factory=dict)


def generate(
    pipe: Pipeline, prompts: Sequence[str], seeds: Sequence[int], sampling: Sampling | None = None
) -> list[Image.Image]:
    """One picture for each pair of a prompt and its seed; of a film its first frame.

    Args:
        pipe: the pipeline, with concepts in it or without.
        prompts: the prompts.
        seeds: as many as prompts.
        sampling: how.
    """
    sampling = sampling or Sampling()
    edges = {"height": sampling.size, "width": sampling.size} if sampling.size else {}
    known = inspect.signature(type(pipe).__call__).parameters
    frames = {name: count for name, count in ONE_FRAME.items() if name in known}
    pictures: list[Image.Image] = []
    for start in range(0, len(prompts), sampling.batch):
        part = slice(start, start + sampling.batch)
        result = pipe(
            prompt=list(prompts[part]),
            # A generator for each picture, on the CPU: neither the batch nor the device changes
            # what is drawn.
            generator=[torch.Generator().manual_seed(seed) for seed in seeds[part]],
            num_inference_steps=sampling.steps,
            guidance_scale=sampling.guidance,
            output_type="pil",
            **{**frames, **edges, **sampling.extra},
        )
        # Films come as lists of frames, of which one is asked for.
        films = getattr(result, "frames", None)
        pictures += result.images if films is None else [film[0] for film in films]
    return pictures
