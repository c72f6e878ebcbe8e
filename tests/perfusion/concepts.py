"""Concepts with random values, as if they had been learned."""

from __future__ import annotations

import torch
from rankedit_recipes.diffusion.denoising import denoiser_of
from rankedit_recipes.diffusion.statistics import metric_of, second_moment
from rankedit_recipes.diffusion.targets import find_targets
from rankedit_recipes.diffusion.text import text_encoders
from rankedit_recipes.diffusion.words import embedding_layers
from rankedit_recipes.perfusion.applying.base import base_of, sketch_of
from rankedit_recipes.perfusion.concept import Concept
from rankedit_recipes.perfusion.naming import Naming
from rankedit_recipes.perfusion.prompts import origin_encoding

import rankedit as rk

CAPTIONS = [
    f"{start} {a} {b} {end}"
    for start in ("a photo of", "a picture of")
    for a in ("a red", "a blue", "the", "my wooden")
    for b in ("cat", "cup", "teddy bear", "dog")
    for end in ("on the grass", "in the snow", "at night", "by the beach")
]
TEMPLATES = ("a photo of a {}", "a picture of my {}")


def random_concept(
    pipe: object, trigger: str = "<bean>", category: str = "cat", seed: int = 0, **changes: object
) -> Concept:
    generator = torch.Generator().manual_seed(seed)
    metric = metric_of(second_moment(pipe, CAPTIONS, progress=False))
    targets = find_targets(pipe)
    modules = targets.modules(denoiser_of(pipe))
    near = origin_encoding(pipe, Naming(trigger, category), TEMPLATES)
    key = near + 0.3 * near.std() * torch.randn(near.shape, generator=generator)
    rows = [
        0.5 * torch.randn(embedding_layers(encoder)[0].embedding_dim, generator=generator)
        for _, encoder, _ in text_encoders(pipe)
    ]
    values = {
        name: torch.randn(rk.Projection(modules[name]).out_features, generator=generator)
        for name in targets.values
    }
    settings = {
        "lock": "local",
        "templates": TEMPLATES,
        "statistics": metric.fingerprint,
        "base": base_of(pipe),
        "sketch": sketch_of(pipe),
    }
    return Concept(
        trigger,
        category,
        key,
        metric.solve(key[None])[0].float(),
        values,
        rows,
        **(settings | changes),
    )
