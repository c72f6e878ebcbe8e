"""Flow matching: pictures and noise are joined by straight lines, and the model gives the slope."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class FlowMatching:
    """The straight path `x_t = (1 − s) x + s ε` of a scheduler, in equal steps of its own times.

    The times are those that the scheduler of diffusers is made with: `s = shift·t/(1 + (shift −
    1)·t)` for t in `{1/n, …, 1}`, which visits noisy pictures more often where shift is above 1.
    Training examples of diffusers draw from the same times.

    Args:
        config: of a flow matching scheduler, or of one of diffusion with `use_flow_sigmas`.

    Attributes:
        levels: `s` of each time, `[n]`, rising.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        steps = int(config.get("num_train_timesteps", 1000))
        # From 1/n on: at a level of 0 there is no noise to tell, and the SNR is infinite.
        even = torch.arange(1, steps + 1, dtype=torch.float64) / steps
        # Where the shift depends on the picture's size when generating, none is known here.
        dynamic = bool(config.get("use_dynamic_shifting", False))
        shift = 1.0 if dynamic else float(config.get("shift", config.get("flow_shift", 1.0)))
        self.levels = (shift * even / (1 + (shift - 1) * even)).float()

    def level(self, times: Tensor, like: Tensor) -> Tensor:
        """`s [batch, 1, ...]` of the drawn times, shaped to be multiplied with `like`."""
        levels = self.levels.to(like.device)[times.to(like.device)]
        return levels.reshape(-1, *[1] * (like.ndim - 1))

    def add_noise(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """Pictures on their way to noise."""
        level = self.level(times, latents)
        return (1 - level) * latents + level * noise

    def told(self, times: Tensor) -> Tensor:
        """The times as the model is told them: its level of noise, in units of a training step."""
        return self.levels.to(times.device)[times] * len(self.levels)

    def snr(self, times: Tensor) -> Tensor:
        """`((1 − s)/s)²`."""
        levels = self.levels.to(times.device)[times]
        return ((1 - levels) / levels).square()


def is_flow(config: Mapping[str, Any]) -> bool:
    """Whether a scheduler's configuration is one of flow matching."""
    if config.get("use_flow_sigmas") or config.get("prediction_type") == "flow_prediction":
        return True
    # Without either mark: schedulers of diffusion have betas, those of flow matching a shift.
    return "beta_schedule" not in config and "shift" in config
