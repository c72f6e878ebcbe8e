"""One step of learning: draw, encode, predict, compare, move."""

from __future__ import annotations

import math

import torch
from torch import Tensor

import rankedit as rk
from rankedit.models.moving import move_key
from rankedit_recipes.diffusion.encoded import Encoded
from rankedit_recipes.diffusion.noising import noise_scheduler, target_of, told_times, train_steps
from rankedit_recipes.diffusion.parts import Parts
from rankedit_recipes.perfusion.errors import PerfusionError
from rankedit_recipes.perfusion.learning.config import Config
from rankedit_recipes.perfusion.learning.data import Latents, draw
from rankedit_recipes.perfusion.learning.learner import Learner
from rankedit_recipes.perfusion.learning.loss import masked_loss, snr_weights
from rankedit_recipes.perfusion.naming import Naming
from rankedit_recipes.perfusion.prompts import at_vectors, filled

_DTYPES = {"bfloat16": torch.bfloat16}


class Stepper:
    """Runs steps on a pipeline that has the concept's word in it.

    Args:
        parts: of the pipeline, frozen.
        learner: what is learned; its edits are attached here.
        data: the photos.
        naming: the concept's words.
        config: how to learn.

    Attributes:
        attached: the edits in the denoiser.
    """

    def __init__(
        self,
        parts: Parts,
        learner: Learner,
        data: Latents,
        naming: Naming,
        config: Config,
    ) -> None:
        self._parts, self._learner, self._data = parts, learner, data
        self._word, self._config = naming.trigger, config
        self._prompts = filled(config.templates, naming.phrase)
        self._scheduler = noise_scheduler(parts.pipe)
        self.attached = rk.attach(parts.denoiser.module, learner.edits())

    def detach(self) -> None:
        """Take the edits out."""
        self.attached.detach()

    def renew(self) -> None:
        """Attach the edits as they are now."""
        self.attached.detach()
        self.attached = rk.attach(self._parts.denoiser.module, self._learner.edits())

    def step(self, step: int) -> float:
        """Work on one batch, move what is learned, and return the loss.

        Raises:
            PerfusionError: the loss is not finite; nothing has moved.
        """
        config, data = self._config, self._data
        times = train_steps(self._scheduler)
        drawn = draw(
            data, len(self._prompts), times, config.batch, flip=config.flip, seed=config.seed,
            step=step,
        )  # fmt: skip
        # All is drawn for the whole batch first: accumulating does not change what is drawn.
        parts = torch.arange(config.batch).chunk(config.accumulate)
        total, seen = 0.0, []
        for part in parts:
            with self._autocast():
                text, encodings = self._encoded(drawn.prompts[part])
                loss = self._loss(text, drawn.photos[part], drawn.times[part], drawn.noise[part])
            seen.append(encodings.detach())
            # At once for each part: its activations are freed before the next one needs them.
            (loss / len(parts)).backward()
            total += float(loss.detach()) / len(parts)
        # Before anything moves: one step of NaN would spoil all that was learned.
        if not math.isfinite(total):
            raise PerfusionError(
                f"learn: the loss of step {step} is {total}; lower value_rate and embedding_rate, "
                "or use precision float32. The last checkpoint is as it was."
            )
        self._learner.step(torch.cat(seen), step)
        # With gradients through the key the edits are attached anew for each part, see `_encoded`.
        if not config.key_gradient:
            self._follow()
        return total

    def _follow(self) -> None:
        """Let the edits follow the key; what else is learned they hold themselves."""
        key = self._learner.key
        if len(key) == 1:
            move_key(self.attached, key, self._learner.image(key))
        else:  # keys of one word are to stay independent, which is checked
            self.attached.refresh(self._learner.edits())

    def _encoded(self, prompts: Tensor) -> tuple[Encoded, Tensor]:
        """The texts of a part of the batch, and the encodings `[n, vectors, in]` of the word."""
        # Five templates for a batch of eight: each is encoded once.
        unique, back = prompts.unique(return_inverse=True)
        texts = [self._prompts[index] for index in unique.tolist()]
        encoded = self._parts.text.encode(texts)
        read = encoded.embeds
        if not self._parts.targets.direct:
            # Through the denoiser's own projection of the text: only the key could use that graph.
            with torch.set_grad_enabled(self._config.key_gradient):
                read = self._parts.reads(encoded)
        places = self._parts.text.required_positions(texts, encoded, self._word)
        at = [places[index] for index in back.tolist()]
        encodings = at_vectors(read[back], at, len(self._learner.key))
        if self._config.key_gradient:
            self.attached.detach()
            edits = self._learner.edits(self._learner.next_key(encodings))
            self.attached = rk.attach(self._parts.denoiser.module, edits)
        return encoded.rows(back), encodings

    def _loss(self, text: Encoded, photos: Tensor, times: Tensor, noise: Tensor) -> Tensor:
        latents = self._data.latents[photos]
        times, noise = times.to(latents.device), noise.to(latents)
        # In float32, whatever the denoiser computes in: only its input is rounded.
        noisy = self._scheduler.add_noise(latents, noise, times)
        denoiser = self._parts.denoiser
        told = told_times(self._scheduler, times)
        predicted = denoiser.run(noisy.to(denoiser.dtype), told, text, size=self._data.size)
        wanted = target_of(self._scheduler, latents, noise, times)
        weights = snr_weights(self._scheduler, times, self._config.min_snr)
        masks = self._data.masks[photos]
        return masked_loss(predicted, wanted, masks, weights, self._config.reduction)

    def _autocast(self) -> torch.autocast:
        dtype = _DTYPES.get(self._config.precision)
        device = self._parts.device.type
        return torch.autocast(device, dtype or torch.bfloat16, enabled=dtype is not None)
