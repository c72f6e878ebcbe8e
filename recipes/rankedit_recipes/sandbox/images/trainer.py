"""The training of the UNet and its text encoder."""

from copy import deepcopy
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from rankedit_recipes.sandbox.shipped import fill

from .autoencoder import PatchAutoencoder, fit_autoencoder
from .averages import load_average
from .batches import Batch, Ready
from .cache import Drawn
from .labels import warm_up
from .loading import FILES, REBUILD, load_weights_into
from .models import assemble, attend_plainly, build_scheduler, build_text_encoder, build_unet
from .presets import Preset
from .skin_questions import KEEP, SkinQuestions, skin_labels, teach_skins
from .speed import products_in
from .tokenizer import build_tokenizer
from .training import Training


def autoencoder_of(preset: Preset, drawn: Drawn) -> PatchAutoencoder:
    """The autoencoder of a training's own pictures."""
    # Over the whole stream, whose first third shows one object and the rest two.
    sample = torch.from_numpy(drawn.pixels[:: max(1, preset.pictures // 4000)].copy())
    return fit_autoencoder(sample, patch=preset.patch, channels=preset.channels)


class Trainer(Training):
    """Weights, their running average and the optimiser of a UNet and its text encoder.

    Args:
        preset: Settings.
        drawn: Pictures, from which the autoencoder is computed.
    """

    def __init__(self, preset: Preset, drawn: Drawn) -> None:
        tokenizer = build_tokenizer(length=preset.length)
        self.alphas = build_scheduler().alphas_cumprod.to(preset.device)
        self.autoencoder = autoencoder_of(preset, drawn)
        with torch.random.fork_rng():
            torch.manual_seed(preset.seed)
            text = build_text_encoder(len(tokenizer), length=preset.length)
            unet = build_unet(preset.size // preset.patch, preset.channels, preset.widths)
            self.questions = SkinQuestions(text.config.hidden_size) if preset.side else None
        if preset.plain:
            attend_plainly(unet, text)
        asked = {} if self.questions is None else {"questions": self.questions}
        super().__init__(
            preset,
            tokenizer,
            {"text_encoder": text, "unet": unet, **asked},
            {"autoencoder": self.autoencoder},
            {"text_encoder": preset.text_rate, "unet": 1.0, "questions": 1.0},
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

    def errors_of(self, latents: Tensor, given: Batch | Ready) -> tuple[Tensor, Tensor]:
        """Squared errors of the predicted velocity.

        Args:
            latents: Of the pictures, [n, channels, cells, cells].
            given: Captions, times and noise.

        Returns:
            As `errors`.
        """
        alpha = self.alphas[given.times].view(-1, 1, 1, 1)
        noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * given.noise
        velocity = alpha.sqrt() * given.noise - (1 - alpha).sqrt() * latents
        with products_in(self.precision, self.preset.device):
            features = self.modules["text_encoder"](given.tokens).last_hidden_state
            predicted = self.modules["unet"](noisy, given.times, features).sample
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

    def side_of(self, features: Tensor, labels: Tensor) -> Tensor:
        """The questions' cross-entropies; 0 where none are asked.

        Args:
            features: Of the texts, [n, length, width].
            labels: From `label_table`, [n, questions, length].

        Returns:
            Their sum.
        """
        if self.questions is None:
            return super().side_of(features, labels)
        return self.questions.loss_everywhere(features, labels)

    def pipeline(self) -> StableDiffusionPipeline:
        """A pipeline with copies of the averaged weights, on the processor."""
        preset = self.preset
        text = build_text_encoder(len(self.tokenizer), length=preset.length)
        unet = build_unet(preset.size // preset.patch, preset.channels, preset.widths)
        load_average(self.average, (("text_encoder", text), ("unet", unet)))
        # A copy, since an export converts the pipeline to 16 bit in place.
        return assemble(deepcopy(self.autoencoder).cpu(), text, self.tokenizer, unet)
