"""The forward process of a pipeline: how latents become noisy, and what is to be predicted."""

from __future__ import annotations

from typing import TypeAlias

from diffusers import DDPMScheduler
from torch import Tensor

from rankedit_recipes.diffusion.errors import PipelineError
from rankedit_recipes.diffusion.flow import FlowMatching, is_flow
from rankedit_recipes.diffusion.text import Pipeline

Process: TypeAlias = DDPMScheduler | FlowMatching


def noise_scheduler(pipe: Pipeline) -> Process:
    """The forward process that the pipeline's scheduler reverses.

    Raises:
        PipelineError: a scheduler without a process that is known.
    """
    config = pipe.scheduler.config
    if is_flow(config):
        return FlowMatching(config)
    kind = config.get("prediction_type", "epsilon")
    if "beta_schedule" not in config or kind not in ("epsilon", "v_prediction", "sample"):
        raise PipelineError(
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
