"""What every training of the sandbox's generators has: weights, averages, steps, checkpoints."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from diffusers import DiffusionPipeline
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from rankedit_recipes.sandbox.checkpoint import Checkpoint, restore_tensors, state_tensors
from rankedit_recipes.sandbox.rates import part_of_peak

from .autoencoder import PatchAutoencoder
from .batches import Batch, Ready
from .presets import Preset
from .speed import chosen_precision, norms_in_float32


def rate_at(preset: Preset, step: int) -> float:
    """Learning rate of a step, as a part of the peak."""
    return part_of_peak(step, preset.steps, rise=preset.rise, decay=preset.decay)


class Done(NamedTuple):
    """What one step found.

    Attributes:
        loss: Weighted squared error of this worker's part.
        norm: Norm of the gradient of the whole, before it is clipped.
        side: Cross-entropies of the questions about skins, summed; 0 where none are asked.
    """

    loss: float
    norm: float
    side: float


class Found(NamedTuple):
    """As `Done`, where it was computed: to read a value is to wait for the step."""

    loss: Tensor
    norm: Tensor
    side: Tensor


class Training(ABC):
    """Weights, their running average and the optimiser.

    Args:
        preset: Settings.
        tokenizer: Captions to tokens.
        trained: What is trained, by name.
        frozen: What is only used, by name; it is part of the checkpoints.
        scales: Learning rate of each trained part, as a part of the preset's.

    Attributes:
        step: Steps done.
        precision: Of products in the forward pass; `choose_precision` sets it.
        channels: Latent channels.
    """

    autoencoder: PatchAutoencoder

    def __init__(
        self,
        preset: Preset,
        tokenizer: PreTrainedTokenizerFast,
        trained: Mapping[str, nn.Module],
        frozen: Mapping[str, nn.Module],
        scales: Mapping[str, float],
    ) -> None:
        self.preset, self.tokenizer = preset, tokenizer
        self.step, self.precision, self.channels = 0, "float32", preset.channels
        self.modules, self.frozen = nn.ModuleDict(trained), nn.ModuleDict(frozen)
        # channels_last: convolutions on processors are 1.1 to 1.6 times as fast.
        self.modules.to(preset.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.frozen.to(preset.device)
        self.named = dict(self.modules.named_parameters())
        self.average = {name: p.detach().clone() for name, p in self.named.items()}
        groups = [
            {"params": list(module.parameters()), "scale": scales[name]}
            for name, module in trained.items()
        ]
        self.optimiser = torch.optim.AdamW(
            groups, lr=preset.rate, betas=(0.9, 0.99), weight_decay=0.0, fused=True
        )

    @abstractmethod
    def begin(self, init_from: Path | None = None) -> list[float]:
        """Prepare the first step.

        Args:
            init_from: Folder of a pipeline to start from, or None.

        Returns:
            The losses of what was taught before it.
        """

    def errors(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Squared errors of the predicted velocity.

        Args:
            batch: Pictures, captions, times and noise.

        Returns:
            The errors, [n, channels, cells, cells], and the text features, [n, length, width].
        """
        with torch.no_grad():  # the autoencoder stays as it is
            latents = self.autoencoder.latents(batch.pixels)
        return self.errors_of(latents, batch)

    @abstractmethod
    def errors_of(self, latents: Tensor, given: Batch | Ready) -> tuple[Tensor, Tensor]:
        """Squared errors where the latents are known.

        Args:
            latents: Of the pictures, [n, channels, cells, cells].
            given: Captions, times and noise.

        Returns:
            As `errors`.
        """

    @abstractmethod
    def pipeline(self) -> DiffusionPipeline:
        """A pipeline with copies of the averaged weights, on the processor."""

    def losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """What a step makes smaller.

        Args:
            batch: Pictures, captions, times and noise.

        Returns:
            The weighted squared error, and the questions' cross-entropies (0 where none are asked).
        """
        loss = (batch.weight * self.errors(batch)[0]).mean()
        return loss, loss.new_zeros(())

    def losses_of(self, ready: Ready) -> tuple[Tensor, Tensor]:
        """What a step makes smaller, as `losses`, without once waiting for the device.

        Args:
            ready: A batch whose latents and labels are known.

        Returns:
            As `losses`.
        """
        errors, features = self.errors_of(ready.latents, ready)
        return (ready.weight * errors).mean(), self.side_of(features, ready.labels)

    def side_of(self, features: Tensor, labels: Tensor) -> Tensor:
        """The questions' cross-entropies; 0 where none are asked.

        Args:
            features: Of the texts, [n, length, width].
            labels: Answers, [n, questions, length].

        Returns:
            Their sum.
        """
        return features.new_zeros(())

    def reset_average(self) -> None:
        """Let the running average start from the weights as they are."""
        for name, parameter in self.named.items():
            self.average[name].copy_(parameter.detach())

    def advance(self, batch: Batch) -> Done:
        """Do one step with this worker's part of the batch.

        Args:
            batch: The part.

        Returns:
            What was found before the weights changed.
        """
        found = self.descend(*self.losses(self.on_device(batch)))
        return Done(*(value.item() for value in found))

    def descend(self, loss: Tensor, side: Tensor) -> Found:
        """Do one step down a loss.

        Args:
            loss: From `losses` or `losses_of`.
            side: Likewise.

        Returns:
            What was found before the weights changed.
        """
        self.optimiser.zero_grad()
        total = loss + self.preset.side * side if self.preset.side else loss
        total.backward()
        parameters: list[Tensor] = list(self.named.values())
        self._share([p.grad for p in parameters if p.grad is not None])
        # After sharing: every worker must clip by the same norm, or their weights part.
        norm = nn.utils.clip_grad_norm_(parameters, 1.0)
        rate = self.preset.rate * rate_at(self.preset, self.step)
        for group in self.optimiser.param_groups:
            group["lr"] = rate * group["scale"]
        self.optimiser.step()
        # Early on, a long average would mostly remember the random start.
        keep = min(self.preset.average, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.values()), parameters, 1 - keep)
        self.step += 1
        return Found(loss.detach(), norm, side.detach())

    def on_device(self, batch: Batch) -> Batch:
        """A batch where the training runs."""
        return Batch(*(tensor.to(self.preset.device) for tensor in batch))

    def choose_precision(self, folder: Path, batch: Batch) -> None:
        """Take the preset's precision, measured on this machine if it says so.

        Args:
            folder: The training's folder, where a measured choice is kept.
            batch: What is measured on; weights and moments stay as they are.
        """
        few = self.on_device(Batch(*(tensor[:4] for tensor in batch)))
        # Before anything is measured: what is timed must be what is trained. In float32 norms
        # compute with it what they computed without, to the bit.
        if self.preset.precision != "float32":
            norms_in_float32(self.modules)

        def step(precision: str) -> None:
            self.precision = precision
            loss, side = self.losses(few)
            (loss + side).backward()

        self.precision = chosen_precision(self.preset.precision, folder, step)
        self.optimiser.zero_grad()

    def compile(self) -> None:
        """Compile the models for the batches of `losses_of`; the first of them takes longer."""
        parts = {**self.modules, **self.frozen}
        for name in ("text_encoder", "unet", "transformer"):
            if name in parts:
                parts[name].compile()

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Let the modules hold the averaged weights for a while."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for name, parameter in self.named.items():
            # Optimiser and graph hold the parameters, so that only their contents change places.
            parameter.data, self.average[name] = self.average[name], parameter.data

    def _share(self, gradients: list[Tensor]) -> None:
        """Average the gradients over the workers."""
        if self.preset.workers == 1:
            return
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        dist.all_reduce(flat)
        flat /= self.preset.workers
        pieces = flat.split([gradient.numel() for gradient in gradients])
        for gradient, piece in zip(gradients, pieces, strict=True):
            gradient.copy_(piece.view(gradient.shape))

    def state(self) -> Checkpoint:
        """Everything that a later run needs to go on."""
        tensors = state_tensors(self.named, self.optimiser)
        tensors |= {f"average.{name}": value for name, value in self.average.items()}
        tensors |= self._frozen_tensors()
        return Checkpoint(self.step, tensors)

    @torch.no_grad()
    def restore(self, state: Checkpoint) -> None:
        """Go back to a state.

        Args:
            state: What `state` returned, in this process or in one that was killed.
        """
        self.step = state.step
        restore_tensors(state.tensors, self.named, self.optimiser)
        for name, average in self.average.items():
            average.copy_(state.tensors[f"average.{name}"])
        # Earlier checkpoints have no autoencoder: theirs is the one computed from the pictures.
        for name, value in self._frozen_tensors().items():
            value.copy_(state.tensors.get(name, value))

    def _frozen_tensors(self) -> dict[str, Tensor]:
        return {
            f"{part}.{name}": value
            for part, module in self.frozen.items()
            for name, value in module.state_dict().items()
        }
