"""The denoising loss of a step: what the model shall predict, where, and how much it counts."""

from __future__ import annotations

from typing import TypeAlias

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from rankedit_recipes.diffusion.flow import FlowMatching, is_flow
from rankedit_recipes.diffusion.text import Pipeline
from rankedit_recipes.perfusion.errors import PerfusionError
from rankedit_recipes.perfusion.learning.config import Reduction

Process: TypeAlias = DDPMScheduler | FlowMatching


def noise_scheduler(pipe: Pipeline) -> Process:
    """The forward process that the pipeline's scheduler reverses.

    Raises:
        PerfusionError: a scheduler without a process that is known.
    """
    config = pipe.scheduler.config
    if is_flow(config):
        return FlowMatching(config)
    kind = config.get("prediction_type", "epsilon")
    if "beta_schedule" not in config or kind not in ("epsilon", "v_prediction", "sample"):
        raise PerfusionError(
            f"learn: {type(pipe.scheduler).__name__} with prediction {kind!r} is not supported: "
            "learning needs a scheduler of diffusion (epsilon, v_prediction or sample) or of flow "
            "matching, such as DDIMScheduler or FlowMatchEulerDiscreteScheduler."
        )
    # Samplers such as DPM++ cannot add noise to a drawn time; all of them share DDPM's process.
    return DDPMScheduler.from_config(config)


def train_steps(scheduler: Process) -> int:
    """How many times there are to draw from."""
    if isinstance(scheduler, FlowMatching):
        return len(scheduler.levels)
    return int(scheduler.config.num_train_timesteps)


def told_times(scheduler: Process, times: Tensor) -> Tensor:
    """Drawn times `[batch]` as the model is told them."""
    return scheduler.told(times) if isinstance(scheduler, FlowMatching) else times


def target_of(scheduler: Process, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
    """What the model shall predict."""
    if isinstance(scheduler, FlowMatching):
        return noise - latents
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return noise
    if kind == "sample":
        return latents
    velocity: Tensor = scheduler.get_velocity(latents, noise, times)
    return velocity


def snr_weights(scheduler: Process, times: Tensor, cut: float) -> Tensor:
    """Min-SNR weights `[batch]` (arXiv 2303.09556), ones if cut is 0.

    `min(SNR, cut)` of the loss on the clean picture; over SNR for a model that predicts noise, over
    SNR + 1 for one that predicts velocity, times s² for the slope of flow matching: so much smaller
    is an error of the clean picture than one of the prediction.
    """
    if not cut:
        return torch.ones(len(times), device=times.device)
    if isinstance(scheduler, FlowMatching):
        level = scheduler.levels.to(times.device)[times]
        return scheduler.snr(times).clamp_max(cut) * level.square()
    signal = scheduler.alphas_cumprod.to(times.device)[times]
    snr = signal / (1 - signal)
    kept = snr.clamp_max(cut)
    kind = scheduler.config.prediction_type
    if kind == "sample":
        return kept
    # At zero terminal SNR a noise prediction has no defined weight; its limit is 1.
    return kept / (snr + 1) if kind == "v_prediction" else (kept / snr).nan_to_num(1.0)


def masked_loss(
    predicted: Tensor, wanted: Tensor, masks: Tensor, weights: Tensor, reduction: Reduction
) -> Tensor:
    """Squared error `[batch, channels, h, w]` under soft masks `[batch, 1, h, w]`, as one number.

    Args:
        predicted: by the model.
        wanted: what it should have been.
        masks: in [0, 1].
        weights: `[batch]`.
        reduction: `"weighted"`: `Σ m·err/(channels·Σ m)`; `"mean"`: `mean(m·err)`; `"squared"`:
            `mean(m²·err)`.
    """
    # In float32: squares of small errors are rounded away in 16 bits.
    error = (predicted.float() - wanted.float()).square()
    if reduction == "weighted":
        # An empty mask gives a loss of zero, not a division by it.
        area = masks.sum((-3, -2, -1)).clamp_min(1e-6)
        # By each photo's own area: a small thing counts as much as a large one.
        each = (error * masks).sum((-3, -2, -1)) / (area * error.shape[1])
    else:
        mask = masks.square() if reduction == "squared" else masks
        each = (error * mask).mean((-3, -2, -1))
    return (each * weights).mean()
