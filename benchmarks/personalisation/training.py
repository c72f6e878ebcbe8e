"""The plain denoising loss of a batch, for methods that learn with nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rankedit_recipes import perfusion
from rankedit_recipes.diffusion.noising import noise_scheduler, target_of
from rankedit_recipes.diffusion.parts import Parts
from rankedit_recipes.perfusion.learning.data import Latents, cached_latents, draw
from rankedit_recipes.perfusion.learning.loss import masked_loss
from torch import Tensor

from personalisation.methods import Settings

TEMPLATES = perfusion.TEMPLATES
"""Prompts to learn in, the same for all methods."""


@dataclass(frozen=True)
class Task:
    """Pictures with the prompts that they are learned under.

    Attributes:
        data: the pictures, encoded.
        prompts: one is drawn for each picture of a batch.
        weight: of this task's loss.
    """

    data: Latents
    prompts: Sequence[str]
    weight: float = 1.0


def task_of(
    pipe: Any, photos: Sequence[perfusion.Photo], phrase: str, *, masked: bool, weight: float = 1.0
) -> Task:
    """Photos under the templates with a phrase in them."""
    given = [perfusion.Photo(p.name, p.image, p.mask if masked else None) for p in photos]
    data = cached_latents(Parts(pipe), given, Parts(pipe).denoiser.picture_size(0))
    return Task(data, [template.format(phrase) for template in TEMPLATES], weight)


def prior_task(pipe: Any, category: str, settings: Settings, weight: float = 1.0) -> Task:
    """Pictures that the base model itself makes of the category, under the category's word."""
    texts = [TEMPLATES[index % len(TEMPLATES)].format(category) for index in range(settings.priors)]
    sampling = perfusion.Sampling(steps=10, guidance=4.0, batch=8)
    seeds = range(70_000, 70_000 + settings.priors)
    made = perfusion.generate(pipe, texts, seeds, sampling)
    photos = [perfusion.Photo(f"prior {index}", image) for index, image in enumerate(made)]
    return task_of(pipe, photos, category, masked=False, weight=weight)


def fit(
    pipe: Any,
    groups: list[dict[str, Any]],
    tasks: Sequence[Task],
    settings: Settings,
    keep: Callable[[int], None],
    *,
    clip: float = 1.0,
) -> list[float]:
    """Move parameters by AdamW, as the example scripts of diffusers do.

    Args:
        pipe: the pipeline; what is learned is in it already.
        groups: of parameters.
        tasks: each gives a batch to every step.
        settings: how.
        keep: called with the step at each of `settings.steps`.
        clip: largest norm of the gradients; 0 for none.

    Returns:
        The loss of every step.
    """
    scheduler = noise_scheduler(pipe)
    parameters = [p for group in groups for p in group["params"]]
    optimiser = torch.optim.AdamW(groups, lr=settings.rate, weight_decay=1e-2)
    losses = []
    for step in range(settings.steps[-1]):
        for group in optimiser.param_groups:
            group["lr"] = settings.rate * _fall(settings, step)
        loss = _loss(pipe, scheduler, tasks, settings, step)
        loss.backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(parameters, clip)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        losses.append(float(loss.detach()))
        if step + 1 in settings.steps:
            keep(step + 1)
    return losses


def _fall(settings: Settings, step: int) -> float:
    """1, and a straight fall to zero at the end, the same for all methods."""
    length = settings.decay * settings.steps[-1]
    return min(1.0, (settings.steps[-1] - step) / length) if length else 1.0


def _loss(
    pipe: Any, scheduler: Any, tasks: Sequence[Task], settings: Settings, step: int
) -> Tensor:
    """The weighted losses of all tasks, from one forward pass."""
    times = int(scheduler.config.num_train_timesteps)
    drawn = [
        draw(task.data, len(task.prompts), times, settings.batch, flip=settings.flip,
             seed=settings.seed + 10_007 * index, step=step)
        for index, task in enumerate(tasks)
    ]  # fmt: skip
    texts = [
        task.prompts[i]
        for task, one in zip(tasks, drawn, strict=True)
        for i in one.prompts.tolist()
    ]
    unique = list(dict.fromkeys(texts))
    text = Parts(pipe).text.encode(unique).rows([unique.index(prompt) for prompt in texts])
    pairs = list(zip(tasks, drawn, strict=True))
    latents = torch.cat([task.data.latents[one.photos] for task, one in pairs])
    masks = torch.cat([task.data.masks[one.photos] for task, one in pairs])
    noise = torch.cat([one.noise for one in drawn]).to(latents)
    moments = torch.cat([one.times for one in drawn]).to(latents.device)
    noisy = scheduler.add_noise(latents, noise, moments)
    predicted = Parts(pipe).denoiser.run(noisy, moments, text)
    wanted = target_of(scheduler, latents, noise, moments)
    weights = torch.tensor([task.weight for task in tasks]).repeat_interleave(settings.batch)
    ones = weights.to(latents) * len(tasks)
    return masked_loss(predicted, wanted, masks, ones, "weighted")
