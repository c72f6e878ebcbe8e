"""The denoising loss of a step: what the model shall predict, where, and how much it counts."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from rankedit_recipes.perfusion.config import Reduction
from rankedit_recipes.perfusion.errors import PerfusionError
from rankedit_recipes.perfusion.text import Pipeline


def noise_scheduler(pipe: Pipeline) -> DDPMScheduler:
    """The forward process that the pipeline's scheduler reverses.

    Raises:
        PerfusionError: a scheduler without such a process (flow matching).
    """
    config = pipe.scheduler.config
    kind = config.get("prediction_type", "epsilon")
    if "beta_schedule" not in config or kind not in ("epsilon", "v_prediction", "sample"):
        raise PerfusionError(
            f"learn: {type(pipe.scheduler).__name__} with prediction {kind!r} is not supported "
            "yet: learning needs a diffusion scheduler (epsilon, v_prediction or sample); flow "
            "matching models can only be given concepts that exist."
        )
    return DDPMScheduler.from_config(config)


def target_of(scheduler: Any, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:  # noqa: ANN401
    """What the model shall predict."""
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return noise
    if kind == "sample":
        return latents
    velocity: Tensor = scheduler.get_velocity(latents, noise, times)
    return velocity


def snr_weights(scheduler: Any, times: Tensor, cut: float) -> Tensor:  # noqa: ANN401
    """Min-SNR weights `[batch]` (arXiv 2303.09556), ones if cut is 0.

    `min(SNR, cut)` of the loss on the clean picture; over SNR for a model that predicts noise, over
    SNR + 1 for one that predicts velocity.
    """
    if not cut:
        return torch.ones(len(times), device=times.device)
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
    error = (predicted.float() - wanted.float()).square()
    if reduction == "weighted":
        area = masks.sum((-3, -2, -1)).clamp_min(1e-6)
        each = (error * masks).sum((-3, -2, -1)) / (area * error.shape[1])
    else:
        mask = masks.square() if reduction == "squared" else masks
        each = (error * mask).mean((-3, -2, -1))
    return (each * weights).mean()
