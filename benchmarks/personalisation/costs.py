"""What a step of learning and a picture cost, each in turns with what it is compared with."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from rankedit_recipes import perfusion, sandbox
from rankedit_recipes.diffusion.freezing import frozen
from rankedit_recipes.diffusion.noising import noise_scheduler, target_of
from rankedit_recipes.diffusion.parts import Parts
from rankedit_recipes.diffusion.words import NewWords
from rankedit_recipes.perfusion.commands.opening import SANDBOX_CONFIG
from rankedit_recipes.perfusion.learning.config import Config
from rankedit_recipes.perfusion.learning.data import Latents, cached_latents, draw
from rankedit_recipes.perfusion.learning.learner import Learner
from rankedit_recipes.perfusion.learning.loss import masked_loss
from rankedit_recipes.perfusion.learning.stepping import Stepper
from rankedit_recipes.perfusion.naming import Naming

import rankedit as rk

WORD = "<it>"


def seconds(run: Callable[[], object]) -> float:
    """Time of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def step_times(
    pipe: Any,
    moment: rk.SecondMoment,
    concept: sandbox.Concept,
    *,
    count: int = 24,
    batch: int = 8,
) -> tuple[float, float]:
    """Median seconds of a step of Perfusion and of textual inversion on the same batches.

    Textual inversion learns the word's embedding alone, with the same prompts, masks, noise,
    optimiser and cached latents, and no edit in the denoiser.
    """
    config = replace(SANDBOX_CONFIG, batch=batch)
    given = [perfusion.Photo(str(i), p.image, p.mask) for i, p in enumerate(concept.photos(5))]
    data = cached_latents(Parts(pipe), given, Parts(pipe).denoiser.picture_size(0))
    naming = Naming(WORD, concept.category, config.adjective)
    learner = Learner(Parts(pipe), naming, perfusion.metric_of(moment), config)
    prompts = [template.format(naming.phrase) for template in config.templates]
    ours, theirs = [], []
    with frozen(Parts(pipe), checkpointing=False):
        words = NewWords(Parts(pipe).text, {WORD: learner.rows})
        optimiser = torch.optim.AdamW(learner.rows, lr=1e-3)
        for step in range(count):
            stepper = Stepper(Parts(pipe), learner, data, naming, config)
            ours.append(seconds(lambda s=stepper, n=step: s.step(n)))
            stepper.detach()
            theirs.append(
                seconds(lambda n=step: _inversion(pipe, data, prompts, optimiser, config, n))
            )
        words.remove()
    return statistics.median(ours[4:]), statistics.median(theirs[4:])


def _inversion(
    pipe: Any,
    data: Latents,
    prompts: list[str],
    optimiser: torch.optim.Optimizer,
    config: Config,
    step: int,
) -> None:
    scheduler = noise_scheduler(pipe)
    times = int(scheduler.config.num_train_timesteps)
    drawn = draw(
        data, len(prompts), times, config.batch, flip=config.flip, seed=config.seed, step=step
    )
    unique, back = drawn.prompts.unique(return_inverse=True)
    text = Parts(pipe).text.encode([prompts[index] for index in unique]).rows(back)
    latents = data.latents[drawn.photos]
    noisy = scheduler.add_noise(latents, drawn.noise, drawn.times)
    predicted = Parts(pipe).denoiser.run(noisy, drawn.times, text)
    wanted = target_of(scheduler, latents, drawn.noise, drawn.times)
    ones = torch.ones(config.batch)
    loss = masked_loss(predicted, wanted, data.masks[drawn.photos], ones, config.reduction)
    loss.backward()
    optimiser.step()
    optimiser.zero_grad()


def picture_times(
    pipe: Any,
    made: Sequence[perfusion.Concept],
    draw_one: Callable[[], object],
    *,
    count: int = 30,
) -> tuple[float, list[float]]:
    """Median seconds of a picture without concepts, and median ratios with the first and with all.

    Pictures are made in turns, and each is compared with the one without concepts of its turn: what
    else the machine does slows both.

    Args:
        pipe: the pipeline.
        made: concepts.
        draw_one: makes the picture.
        count: pictures of each kind.
    """
    loads = [[], list(made[:1]), list(made)]
    found: list[list[float]] = [[] for _ in loads]
    draw_one()
    for _ in range(count):
        for concepts, times in zip(loads, found, strict=True):
            if not concepts:
                times.append(seconds(draw_one))
                continue
            with perfusion.apply(pipe, concepts):
                times.append(seconds(draw_one))
    base, *others = found
    ratios = [[t / b for t, b in zip(times, base, strict=True)] for times in others]
    return statistics.median(base), [statistics.median(ratio) for ratio in ratios]
