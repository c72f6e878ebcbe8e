"""The denoising loss of a step: where errors of the prediction count, and how much."""

from __future__ import annotations

import torch
from torch import Tensor

from rankedit_recipes.diffusion.flow import FlowMatching
from rankedit_recipes.diffusion.noising import Process
from rankedit_recipes.perfusion.learning.config import Reduction


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
