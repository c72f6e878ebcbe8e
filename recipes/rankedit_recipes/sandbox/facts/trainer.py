"""The state of a training of the language model, and one step of it."""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from rankedit_recipes.sandbox.checkpoint import (
    Checkpoint,
    restore_tensors,
    state_tensors,
)
from rankedit_recipes.sandbox.rates import part_of_peak

from .batches import Batch
from .model import build_model
from .presets import Preset


def rate_at(preset: Preset, step: int) -> float:
    """Learning rate of a step, as a part of the peak."""
    return part_of_peak(step, preset.steps, rise=50, decay=preset.decay)


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
            self.named.values(), lr=preset.rate, betas=(0.9, 0.98), weight_decay=0.05, fused=True
        )

    def loss(self, batch: Batch) -> Tensor:
        """Weighted mean of the tokens' losses.

        Args:
            batch: Rows.

        Returns:
            The loss.
        """
        logits = self.model(input_ids=batch.tokens, use_cache=False).logits[:, :-1]
        each = functional.cross_entropy(
            logits.flatten(0, 1), batch.tokens[:, 1:].flatten(), reduction="none"
        )
        # Divided by a number that does not depend on the rows, so that workers can share them.
        return (each * batch.weights[:, 1:].flatten()).mean()

    def advance(self, batch: Batch) -> float:
        """Do one step with this worker's rows.

        Args:
            batch: The rows.

        Returns:
            Their loss.
        """
        loss = self.loss(batch)
        self.optimiser.zero_grad()
        loss.backward()
        self._share([p.grad for p in self.named.values() if p.grad is not None])
        # After sharing: every worker must clip by the same norm, or their weights part.
        nn.utils.clip_grad_norm_(self.named.values(), 1.0)
        for group in self.optimiser.param_groups:
            group["lr"] = self.preset.rate * rate_at(self.preset, self.step)
        self.optimiser.step()
        self.step += 1
        return float(loss.detach())

    def _share(self, gradients: list[Tensor]) -> None:
        """Average the gradients over the workers."""
        if self.preset.workers == 1:
            return
        # One message instead of one for each tensor.
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        dist.all_reduce(flat)
        flat /= self.preset.workers
        pieces = flat.split([gradient.numel() for gradient in gradients])
        for gradient, piece in zip(gradients, pieces, strict=True):
            gradient.copy_(piece.view(gradient.shape))

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
