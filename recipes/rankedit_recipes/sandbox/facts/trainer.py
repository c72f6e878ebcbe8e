"""The state of a training of the language model, and one step of it."""

import torch
from torch import Tensor, nn

from rankedit_recipes.sandbox.images.checkpoint import (
    Checkpoint,
    restore_tensors,
    state_tensors,
)

from .model import build_model
from .presets import Preset


def rate_at(preset: Preset, step: int) -> float:
    """Learning rate of a step, as a part of the peak: a short rise, level, a fall to zero.

    Args:
        preset: Settings.
        step: Number of the step.

    Returns:
        Between 0 and 1.

    Example:
        >>> rate_at(Preset(steps=1000, decay=0.5), 750)
        0.5
    """
    rise = (step + 1) / min(50, max(1, preset.steps // 10))
    fall = (preset.steps - step) / max(1.0, preset.decay * preset.steps)
    return max(0.0, min(1.0, rise, fall))


class Trainer:
    """Weights and the optimiser.

    Args:
        preset: Settings.
        pieces: Size of the vocabulary.

    Attributes:
        step: Steps done.
        model: The model in training.
    """

    def __init__(self, preset: Preset, pieces: int) -> None:
        self.preset, self.step = preset, 0
        self.model = build_model(preset, pieces).train()
        self.named = dict(self.model.named_parameters())
        self.optimiser = torch.optim.AdamW(
            self.named.values(), lr=preset.rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True
        )

    def advance(self, tokens: Tensor) -> float:
        """Do one step.

        Args:
            tokens: Rows `[batch, length]`.

        Returns:
            The mean loss of a token.
        """
        loss = self.model(input_ids=tokens, labels=tokens, use_cache=False).loss
        self.optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.named.values(), 1.0)
        for group in self.optimiser.param_groups:
            group["lr"] = self.preset.rate * rate_at(self.preset, self.step)
        self.optimiser.step()
        self.step += 1
        return float(loss)

    def state(self) -> Checkpoint:
        """Everything that a later run needs to go on."""
        return Checkpoint(self.step, state_tensors(self.named, self.optimiser))

    def restore(self, state: Checkpoint) -> None:
        """Go back to a state.

        Args:
            state: What `state` returned, in this process or in one that was killed.
        """
        self.step = state.step
        restore_tensors(state.tensors, self.named, self.optimiser)
