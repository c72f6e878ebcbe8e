"""Concepts with random values, as if they had been learned."""

from __future__ import annotations

import torch
from rankedit_recipes.diffusion.parts import Parts
from rankedit_recipes.diffusion.statistics import metric_of, second_moment
from rankedit_recipes.diffusion.words import embedding_layers
from rankedit_recipes.perfusion.applying.base import base_of, sketch_of
from rankedit_recipes.perfusion.concept import Concept
from rankedit_recipes.perfusion.naming import Naming
from rankedit_recipes.perfusion.prompts import origin_encoding

import rankedit as rk
from tests.diffusion.pipelines import CAPTIONS

TEMPLATES = ("a photo of a {}", "a picture of my {}")


def random_concept(
    pipe: object,
    trigger: str = "<bean>",
    category: str = "cat",
    seed: int = 0,
    vectors: int = 1,
    **changes: object,
) -> Concept:
    several = () if vectors == 1 else (vectors,)
    generator = torch.Generator().manual_seed(seed)
    metric = metric_of(second_moment(pipe, CAPTIONS, progress=False))
    targets = Parts(pipe).targets
    modules = targets.modules(Parts(pipe).denoiser.module)
    near = origin_encoding(Parts(pipe), Naming(trigger, category), TEMPLATES)
    key = near + 0.3 * near.std() * torch.randn((*several, len(near)), generator=generator)
    rows = [
        0.5
        * torch.randn((*several, embedding_layers(encoder)[0].embedding_dim), generator=generator)
        for _, encoder, _ in Parts(pipe).text.encoders
    ]
    values = {
        name: torch.randn(
            (*several, rk.Projection(modules[name]).out_features), generator=generator
        )
        for name in targets.values
    }
    settings = {
        "lock": "local",
        "templates": TEMPLATES,
        "statistics": metric.fingerprint,
        "base": base_of(Parts(pipe)),
        "sketch": sketch_of(Parts(pipe)),
    }
    return Concept(
        trigger,
        category,
        key,
        metric.solve(torch.atleast_2d(key)).float().reshape(key.shape),
        values,
        rows,
        **(settings | changes),
    )
