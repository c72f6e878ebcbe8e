"""The parts of the joint-attention model: text and picture in one attention, as in SD3."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from diffusers import (
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from diffusers.image_processor import VaeImageProcessor
from torch import Tensor, nn
from transformers import CLIPTextModel, PreTrainedTokenizerFast

from .autoencoder import PatchAutoencoder

HEAD = 32
"""Features of one attention head."""


def build_transformer(
    side: int, channels: int, *, width: int, blocks: int, text_width: int
) -> SD3Transformer2DModel:
    """A small SD3 transformer whose blocks begin as the identity.

    Args:
        side: Latent cells a side.
        channels: Latent channels.
        width: Features of a token of either stream; a multiple of `HEAD`.
        blocks: Joint blocks.
        text_width: Features of a text token and of the pooled text.

    Returns:
        The model, randomly initialised.

    Raises:
        ValueError: If the width is no multiple of `HEAD`.
    """
    if width % HEAD:
        raise ValueError(f"build_transformer: expected a width in multiples of {HEAD}, got {width}")
    model = SD3Transformer2DModel(
        sample_size=side,
        patch_size=2,
        in_channels=channels,
        out_channels=channels,
        num_layers=blocks,
        attention_head_dim=HEAD,
        num_attention_heads=width // HEAD,
        joint_attention_dim=text_width,
        caption_projection_dim=width,
        pooled_projection_dim=text_width,
        # One place for each token, which is 2 × 2 cells.
        pos_embed_max_size=side // 2,
    )
    # diffusers 0.42 draws these at random. At zero every block adds nothing at first (DiT, arXiv
    # 2212.09748, section 3.2), without which so small a model takes much longer to draw shapes.
    modulations = [part.linear for part in model.modules() if hasattr(part, "linear")]
    for layer in (*modulations, model.proj_out):
        if isinstance(layer, nn.Linear):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
    return model


def build_flow_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Straight paths from pictures to noise; the transformer predicts their velocity."""
    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=1.0)


def encoded(text_encoder: CLIPTextModel, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """What the transformer reads of a text.

    Args:
        text_encoder: The text encoder.
        tokens: Token numbers, [n, length].

    Returns:
        Features of the tokens, [n, length, width], and of the whole text, [n, width].
    """
    found = text_encoder(tokens)
    return found.last_hidden_state, found.pooler_output


class JointPipeline(StableDiffusion3Pipeline):  # type: ignore[misc]
    """Stable Diffusion 3's pipeline with one text encoder instead of three.

    Args:
        transformer: The denoiser.
        scheduler: The paths from noise to pictures.
        vae: Pictures to latents and back.
        text_encoder: Texts to features.
        tokenizer: Texts to tokens.
    """

    model_cpu_offload_seq = "text_encoder->transformer->vae"
    _optional_components: ClassVar[list[str]] = []

    def __init__(
        self,
        transformer: SD3Transformer2DModel,
        scheduler: FlowMatchEulerDiscreteScheduler,
        vae: PatchAutoencoder,
        text_encoder: CLIPTextModel,
        tokenizer: PreTrainedTokenizerFast,
    ) -> None:
        # Not StableDiffusion3Pipeline's own: it registers the other encoders even as None, and
        # diffusers 0.42 cannot read back a folder that was written so.
        DiffusionPipeline.__init__(self)
        self.register_modules(
            transformer=transformer,
            scheduler=scheduler,
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
        )
        self.vae_scale_factor = 2 ** (len(vae.config.block_out_channels) - 1)
        self.image_processor = VaeImageProcessor(vae_scale_factor=self.vae_scale_factor)
        self.tokenizer_max_length = tokenizer.model_max_length
        self.default_sample_size = transformer.config.sample_size
        self.patch_size = transformer.config.patch_size

    def encode_prompt(
        self,
        prompt: str | Sequence[str] | None,
        prompt_2: str | Sequence[str] | None = None,
        prompt_3: str | Sequence[str] | None = None,
        device: torch.device | None = None,
        num_images_per_prompt: int = 1,
        do_classifier_free_guidance: bool = True,  # noqa: FBT001, FBT002 - as diffusers calls it
        negative_prompt: str | Sequence[str] | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        pooled_prompt_embeds: Tensor | None = None,
        negative_pooled_prompt_embeds: Tensor | None = None,
        **others: Any,  # noqa: ANN401 - as diffusers calls it
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
        """Encode prompts.

        Args:
            prompt: One or several texts, or None where `prompt_embeds` are given.
            prompt_2: Refused unless None: there is no second text encoder.
            prompt_3: Refused unless None.
            device: Where the encodings go.
            num_images_per_prompt: Pictures of each text.
            do_classifier_free_guidance: Encode the negative prompts too.
            negative_prompt: Texts to guide away from; empty ones by default.
            prompt_embeds: Encodings instead of texts, [n, length, width].
            negative_prompt_embeds: Encodings instead of negative texts.
            pooled_prompt_embeds: Encodings of whole texts, [n, width].
            negative_pooled_prompt_embeds: Encodings of whole negative texts.
            **others: What the pipeline passes for the other encoders; not used.

        Returns:
            Encodings of the prompts and of the negative ones, and the same of whole texts.

        Raises:
            ValueError: If a text for another encoder is given.
        """
        if prompt_2 is not None or prompt_3 is not None:
            raise ValueError(
                "encode_prompt: expected prompt_2 and prompt_3 to be None, since this pipeline has "
                "one text encoder; give the text as `prompt`"
            )
        if prompt_embeds is None or pooled_prompt_embeds is None:
            prompt_embeds, pooled_prompt_embeds = self._told(prompt, num_images_per_prompt, device)
        if do_classifier_free_guidance and negative_prompt_embeds is None:
            count = len(prompt_embeds) // num_images_per_prompt
            told = negative_prompt or ""
            told = [told] * count if isinstance(told, str) else told
            negative_prompt_embeds, negative_pooled_prompt_embeds = self._told(
                told, num_images_per_prompt, device
            )
        return (
            prompt_embeds,
            negative_prompt_embeds,
            pooled_prompt_embeds,
            negative_pooled_prompt_embeds,
        )

    def _told(
        self, texts: str | Sequence[str] | None, count: int, device: torch.device | None
    ) -> tuple[Tensor, Tensor]:
        every = [texts] if isinstance(texts, str) else list(texts or ())
        tokens = self.tokenizer(every, padding="max_length", truncation=True, return_tensors="pt")
        found = encoded(self.text_encoder, tokens["input_ids"].to(self.text_encoder.device))
        placed = [part.to(device or self.text_encoder.device) for part in found]
        tokens_, whole = (part.repeat_interleave(count, 0) for part in placed)
        return tokens_, whole


def assemble_joint(
    autoencoder: PatchAutoencoder,
    text_encoder: CLIPTextModel,
    tokenizer: PreTrainedTokenizerFast,
    transformer: SD3Transformer2DModel,
) -> JointPipeline:
    """A pipeline of the parts, quiet.

    Args:
        autoencoder: Pictures to latents and back.
        text_encoder: Texts to features.
        tokenizer: Texts to tokens.
        transformer: The denoiser.

    Returns:
        The pipeline.
    """
    pipe = JointPipeline(
        transformer=transformer,
        scheduler=build_flow_scheduler(),
        vae=autoencoder,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe
