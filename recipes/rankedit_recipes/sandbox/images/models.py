"""The parts of the text-to-image model, and the pipeline that holds them."""

from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

from .autoencoder import PatchAutoencoder
from .tokenizer import LENGTH

TEXT_WIDTH = 128
"""Features of a text token, which is what every cross-attention reads."""


def build_text_encoder(
    vocabulary: int, *, width: int = TEXT_WIDTH, layers: int = 3, length: int = LENGTH
) -> CLIPTextModel:
    """A small CLIP text tower.

    Args:
        vocabulary: Number of tokens.
        width: Features of a token.
        layers: Transformer layers.
        length: Tokens of every padded text.

    Returns:
        The model, randomly initialised.
    """
    config = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=3 * width,
        projection_dim=width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=length,
        # Places in `SPECIAL`; why the end must not be 2: see `build_clip`.
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
        attention_dropout=0.0,
    )
    return CLIPTextModel(config)


def build_unet(
    side: int, channels: int, widths: tuple[int, ...], *, text_width: int = TEXT_WIDTH
) -> UNet2DConditionModel:
    """A small UNet with cross-attention on every level.

    Args:
        side: Latent cells a side.
        channels: Latent channels.
        widths: Features of each level; each level halves the side.
        text_width: Features of a text token.

    Returns:
        The model, randomly initialised.
    """
    return UNet2DConditionModel(
        sample_size=side,
        in_channels=channels,
        out_channels=channels,
        layers_per_block=1,
        block_out_channels=widths,
        down_block_types=("CrossAttnDownBlock2D",) * len(widths),
        up_block_types=("CrossAttnUpBlock2D",) * len(widths),
        cross_attention_dim=text_width,
        # diffusers 0.42 takes this for the number of heads, as its docstring of the UNet says.
        attention_head_dim=tuple(max(2, width // 32) for width in widths),
        # The 32 that diffusers takes by default do not divide 80.
        norm_num_groups=16,
    )


def attend_plainly(unet: UNet2DConditionModel, text_encoder: CLIPTextModel) -> None:
    """Attention as plain matrix products, which under bfloat16 is the faster form on processors.

    Args:
        unet: Changed in place; the results differ by rounding only.
        text_encoder: Changed in place.
    """
    unet.set_attn_processor(AttnProcessor())
    text_encoder.set_attn_implementation("eager")


def build_scheduler() -> DDIMScheduler:
    """Cosine noise that ends in pure noise; the UNet predicts the velocity."""
    # Pure noise at the end needs all three (arXiv 2305.08891): zero terminal signal, velocity
    # (noise alone would say nothing of the picture there), and sampling that begins at the last
    # step.
    return DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        # Latents are not bounded by 1.
        clip_sample=False,
        set_alpha_to_one=True,
        # Of no effect with trailing steps, but diffusers 0.42 warns of any other value.
        steps_offset=1,
    )


def assemble(
    autoencoder: PatchAutoencoder,
    text_encoder: CLIPTextModel,
    tokenizer: PreTrainedTokenizerFast,
    unet: UNet2DConditionModel,
    scheduler: DDIMScheduler | None = None,
) -> StableDiffusionPipeline:
    """A Stable Diffusion pipeline of the parts, quiet and without a safety checker.

    Args:
        autoencoder: Pictures to latents and back.
        text_encoder: Texts to features.
        tokenizer: Texts to tokens.
        unet: The denoiser.
        scheduler: The noise schedule; the world's own by default.

    Returns:
        The pipeline.
    """
    pipe = StableDiffusionPipeline(
        vae=autoencoder,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler or build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe
