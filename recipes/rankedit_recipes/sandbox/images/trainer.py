"""The state of a training and one step of it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from diffusers import DDIMScheduler
from torch import Tensor, nn

from rankedit_recipes.sandbox.checkpoint import Checkpoint, restore_tensors, state_tensors
from rankedit_recipes.sandbox.rates import part_of_peak
from rankedit_recipes.sandbox.shipped import fill

from .autoencoder import PatchAutoencoder, fit_autoencoder
from .batches import Batch
from .cache import Drawn
from .labels import warm_up
from .loading import FILES, REBUILD, load_weights_into
from .models import attend_plainly, build_scheduler, build_text_encoder, build_unet
from .presets import Preset
from .skin_questions import KEEP, SkinQuestions, skin_labels, teach_skins
from .speed import chosen_precision, norms_in_float32, products_in
from .tokenizer import build_tokenizer


def rate_at(preset: Preset, step: int) -> float:
    """Learning rate of a step, as a part of the peak."""
    return part_of_peak(step, preset.steps, rise=200, decay=preset.decay)


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


class Trainer:
    """Weights, their running average and the optimiser.

    Args:
        preset: Settings.
        drawn: Pictures, from which the autoencoder is computed.

    Attributes:
        precision: Of products in the forward pass; `choose_precision` sets it.
    """

    def __init__(self, preset: Preset, drawn: Drawn) -> None:
        self.preset = preset
        self.step = 0
        self.channels = preset.channels
        self.precision = "float32"
        self.tokenizer = build_tokenizer(length=preset.length)
        self.scheduler: DDIMScheduler = build_scheduler()
        self.alphas = self.scheduler.alphas_cumprod.to(preset.device)
        sample = torch.from_numpy(drawn.pixels[:: max(1, preset.pictures // 4000)].copy())
        self.autoencoder: PatchAutoencoder = fit_autoencoder(
            sample, patch=preset.patch, channels=preset.channels
        ).to(preset.device)
        with torch.random.fork_rng():
            torch.manual_seed(preset.seed)
            text = build_text_encoder(len(self.tokenizer), length=preset.length)
            unet = build_unet(preset.size // preset.patch, preset.channels, preset.widths)
            self.questions = SkinQuestions(text.config.hidden_size) if preset.side else None
        asked = {} if self.questions is None else {"questions": self.questions}
        if preset.plain:
            attend_plainly(unet, text)
        self.modules = nn.ModuleDict({"text_encoder": text, "unet": unet, **asked})
        self.modules.to(preset.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.named = dict(self.modules.named_parameters())
        self.average = {name: p.detach().clone() for name, p in self.named.items()}
        groups = [
            {"params": list(text.parameters()), "scale": preset.text_rate},
            {"params": list(unet.parameters()), "scale": 1.0},
        ]
        groups += [{"params": list(m.parameters()), "scale": 1.0} for m in asked.values()]
        self.optimiser = torch.optim.AdamW(
            groups, lr=preset.rate, betas=(0.9, 0.99), weight_decay=0.0, fused=True
        )

    def begin(self, init_from: Path | None = None) -> list[float]:
        """Warm the text encoder up (on the processor, so that every machine begins alike).

        Args:
            init_from: Folder of a pipeline to start from, its autoencoder included, or None.

        Returns:
            The losses of the warm-up: of words and scenes unless weights were given, then of skins.
        """
        text, preset, losses = self.modules["text_encoder"].cpu(), self.preset, []
        if init_from is None:
            losses += warm_up(text, self.tokenizer, seed=preset.seed, steps=preset.warm_steps)
        else:
            load_weights_into(self.modules, init_from)
            # A UNet knows one set of latents; those of other pictures come in another order.
            fill(self.autoencoder, init_from / FILES["vae"], REBUILD)
        if self.questions is not None:
            losses += teach_skins(
                text,
                self.questions.cpu(),
                self.tokenizer,
                seed=preset.seed,
                steps=preset.side_steps,
                keep=KEEP if init_from else 0.0,
            )
        self.modules.to(preset.device)
        self.optimiser.zero_grad()
        self.reset_average()
        return losses

    def reset_average(self) -> None:
        """Let the running average start from the weights as they are."""
        for name, parameter in self.named.items():
            self.average[name].copy_(parameter.detach())

    def errors(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Squared errors of the predicted velocity.

        Args:
            batch: Pictures, captions, times and noise.

        Returns:
            The errors, [n, channels, cells, cells], and the text features, [n, length, width].
        """
        latents = self.autoencoder.latents(batch.pixels)
        alpha = self.alphas[batch.times].view(-1, 1, 1, 1)
        noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * batch.noise
        velocity = alpha.sqrt() * batch.noise - (1 - alpha).sqrt() * latents
        with products_in(self.precision, self.preset.device):
            features = self.modules["text_encoder"](batch.tokens).last_hidden_state
            predicted = self.modules["unet"](noisy, batch.times, features).sample
        return (predicted.float() - velocity).square(), features

    def losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """What a step makes smaller.

        Args:
            batch: Pictures, captions, times and noise.

        Returns:
            The weighted squared error, and the questions' cross-entropies (0 where none are asked).
        """
        errors, features = self.errors(batch)
        loss = (batch.weight * errors).mean()
        if self.questions is None:
            return loss, loss.new_zeros(())
        labels = skin_labels(batch.tokens.cpu(), self.tokenizer)
        labels = {name: label.to(features.device) for name, label in labels.items()}
        return loss, self.questions.loss(features, labels)

    def advance(self, batch: Batch) -> Done:
        """Do one step with this worker's part of the batch.

        Args:
            batch: The part.

        Returns:
            What was found before the weights changed.
        """
        batch = self.on_device(batch)
        loss, side = self.losses(batch)
        self.optimiser.zero_grad()
        (loss if self.questions is None else loss + self.preset.side * side).backward()
        parameters: list[Tensor] = list(self.named.values())
        self._share([p.grad for p in parameters if p.grad is not None])
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
        return Done(loss.item(), float(norm), side.item())

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

        def step(precision: str) -> None:
            self.precision = precision
            loss, side = self.losses(few)
            (loss + side).backward()

        self.precision = chosen_precision(self.preset.precision, folder, step)
        self.optimiser.zero_grad()
        if self.precision != "float32":
            norms_in_float32(self.modules["unet"])

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
        parts = self.autoencoder.state_dict().items()
        tensors |= {f"autoencoder.{name}": value for name, value in parts}
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
        # Earlier checkpoints do not have it: theirs is the one computed from the pictures.
        for name, value in self.autoencoder.state_dict().items():
            value.copy_(state.tensors.get(f"autoencoder.{name}", value))


class Clock:
    """Pictures a second since the last reading."""

    def __init__(self) -> None:
        self.at = time.monotonic()

    def speed(self, pictures: int) -> float:
        """Pictures a second since the last call."""
        now = time.monotonic()
        speed = pictures / max(1e-9, now - self.at)
        self.at = now
        return speed
