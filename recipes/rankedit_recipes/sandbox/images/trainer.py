"""The state of a training and one step of it."""

import time

import torch
import torch.distributed as dist
from diffusers import DDIMScheduler
from torch import Tensor, nn

from rankedit_recipes.sandbox.checkpoint import Checkpoint, restore_tensors, state_tensors
from rankedit_recipes.sandbox.rates import part_of_peak

from .autoencoder import PatchAutoencoder, fit_autoencoder
from .batches import Batch
from .cache import Drawn
from .labels import warm_up
from .models import build_scheduler, build_text_encoder, build_unet
from .presets import Preset
from .tokenizer import build_tokenizer


def rate_at(preset: Preset, step: int) -> float:
    """Learning rate of a step, as a part of the peak."""
    return part_of_peak(step, preset.steps, rise=200, decay=preset.decay)


class Trainer:
    """Weights, their running average and the optimiser.

    Args:
        preset: Settings.
        drawn: Pictures, from which the autoencoder is computed.
    """

    def __init__(self, preset: Preset, drawn: Drawn) -> None:
        self.preset = preset
        self.step = 0
        self.tokenizer = build_tokenizer()
        self.scheduler: DDIMScheduler = build_scheduler()
        self.alphas = self.scheduler.alphas_cumprod.to(preset.device)
        sample = torch.from_numpy(drawn.pixels[:: max(1, preset.pictures // 4000)].copy())
        self.autoencoder: PatchAutoencoder = fit_autoencoder(
            sample, patch=preset.patch, channels=preset.channels
        ).to(preset.device)
        with torch.random.fork_rng():
            torch.manual_seed(preset.seed)
            text = build_text_encoder(len(self.tokenizer))
            unet = build_unet(preset.size // preset.patch, preset.channels, preset.widths)
        self.modules = nn.ModuleDict({"text_encoder": text, "unet": unet})
        self.modules.to(preset.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.named = dict(self.modules.named_parameters())
        self.average = {name: p.detach().clone() for name, p in self.named.items()}
        groups = [
            {"params": list(text.parameters()), "scale": preset.text_rate},
            {"params": list(unet.parameters()), "scale": 1.0},
        ]
        self.optimiser = torch.optim.AdamW(
            groups, lr=preset.rate, betas=(0.9, 0.99), weight_decay=0.0, fused=True
        )

    def begin(self) -> list[float]:
        """Warm the text encoder up (on the processor, so that every machine begins alike).

        Returns:
            The losses of the warm-up.
        """
        text = self.modules["text_encoder"].cpu()
        losses = warm_up(text, self.tokenizer, seed=self.preset.seed, steps=self.preset.warm_steps)
        text.to(self.preset.device)
        self.optimiser.zero_grad()
        self.reset_average()
        return losses

    def reset_average(self) -> None:
        """Let the running average start from the weights as they are."""
        for name, parameter in self.named.items():
            self.average[name].copy_(parameter.detach())

    def loss(self, batch: Batch) -> Tensor:
        """Weighted squared error of the predicted velocity.

        Args:
            batch: Pictures, captions, times and noise.

        Returns:
            The loss.
        """
        latents = self.autoencoder.latents(batch.pixels)
        alpha = self.alphas[batch.times].view(-1, 1, 1, 1)
        noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * batch.noise
        velocity = alpha.sqrt() * batch.noise - (1 - alpha).sqrt() * latents
        features = self.modules["text_encoder"](batch.tokens).last_hidden_state
        predicted = self.modules["unet"](noisy, batch.times, features).sample
        return (batch.weight * (predicted - velocity).square()).mean()

    def advance(self, batch: Batch) -> tuple[float, float]:
        """Do one step with this worker's part of the batch.

        Args:
            batch: The part.

        Returns:
            The loss of the part and the norm of the gradient of the whole.
        """
        batch = Batch(*(tensor.to(self.preset.device) for tensor in batch))
        loss = self.loss(batch)
        self.optimiser.zero_grad()
        loss.backward()
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
        return loss.item(), float(norm)

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
