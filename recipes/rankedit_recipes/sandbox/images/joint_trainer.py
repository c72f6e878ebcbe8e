"""The training of the joint-attention model, on a text encoder and an autoencoder that stay."""

from copy import deepcopy
from pathlib import Path

import torch
from torch import Tensor

from rankedit_recipes.sandbox.shipped import WeightsError, fill, read_config

from .averages import load_average
from .batches import Batch, Ready
from .cache import Drawn
from .joint_models import JointPipeline, assemble_joint, build_transformer, encoded
from .loading import FILES, REBUILD, WEIGHTS
from .models import TEXT_WIDTH, build_text_encoder
from .presets import Preset
from .speed import products_in
from .tokenizer import build_tokenizer
from .trainer import autoencoder_of
from .training import Training


class JointTrainer(Training):
    """Weights, their running average and the optimiser of an SD3 transformer.

    It learns rectified flow (arXiv 2209.03003; times as in arXiv 2403.03206, section 3.1): with
    σ = time / 1000, latents x and noise ε, it sees (1 − σ) x + σ ε and predicts ε − x.

    Args:
        preset: Settings.
        drawn: Pictures.
    """

    def __init__(self, preset: Preset, drawn: Drawn) -> None:
        tokenizer = build_tokenizer(length=preset.length)
        width, blocks = preset.joint
        with torch.random.fork_rng():
            torch.manual_seed(preset.seed)
            self.text_encoder = build_text_encoder(len(tokenizer), length=preset.length)
            transformer = build_transformer(
                preset.size // preset.patch,
                preset.channels,
                width=width,
                blocks=blocks,
                text_width=TEXT_WIDTH,
            )
        self.text_encoder.eval().requires_grad_(requires_grad=False)
        self.autoencoder = autoencoder_of(preset, drawn)
        super().__init__(
            preset,
            tokenizer,
            {"transformer": transformer},
            {"autoencoder": self.autoencoder, "text_encoder": self.text_encoder},
            {"transformer": 1.0},
        )

    def begin(self, init_from: Path | None = None) -> list[float]:
        """Take the text encoder and the autoencoder of a trained pipeline.

        Args:
            init_from: Folder of the pipeline; the shipped one by default.

        Returns:
            Nothing: neither is taught any more.

        Raises:
            WeightsError: If a file is missing or broken, or its texts have another length.
        """
        folder = WEIGHTS if init_from is None else init_from
        config = read_config(folder / "text_encoder" / "config.json", REBUILD)
        length = config.get("max_position_embeddings")
        if length != self.preset.length:
            raise WeightsError(
                f"train: the text encoder in {folder} reads {length} tokens and the preset "
                f"{self.preset.length}; give --length {length}, or --init-from another pipeline"
            )
        fill(self.text_encoder, folder / FILES["text_encoder"], REBUILD)
        fill(self.autoencoder, folder / FILES["vae"], REBUILD)
        self.reset_average()
        return []

    def errors_of(self, latents: Tensor, given: Batch | Ready) -> tuple[Tensor, Tensor]:
        """Squared errors of the predicted velocity.

        Args:
            latents: Of the pictures, [n, channels, cells, cells].
            given: Captions, times and noise.

        Returns:
            As `errors`.
        """
        with torch.no_grad():
            features, whole = encoded(self.text_encoder, given.tokens)
        sigma = (given.times / 1000).view(-1, 1, 1, 1)
        noisy = (1 - sigma) * latents + sigma * given.noise
        with products_in(self.precision, self.preset.device):
            predicted = self.modules["transformer"](noisy, features, whole, given.times).sample
        return (predicted.float() - (given.noise - latents)).square(), features

    def pipeline(self) -> JointPipeline:
        """A pipeline with copies of the averaged weights, on the processor."""
        preset = self.preset
        width, blocks = preset.joint
        transformer = build_transformer(
            preset.size // preset.patch,
            preset.channels,
            width=width,
            blocks=blocks,
            text_width=TEXT_WIDTH,
        )
        load_average(self.average, (("transformer", transformer),))
        parts = (deepcopy(part).cpu() for part in (self.autoencoder, self.text_encoder))
        autoencoder, text_encoder = parts
        return assemble_joint(autoencoder, text_encoder, self.tokenizer, transformer)
