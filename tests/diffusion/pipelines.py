"""Tiny pipelines of random weights, built from configurations: no file is needed."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Gemma2Config,
    Gemma2Model,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

CAPTIONS = [
    f"{start} {a} {b} {end}"
    for start in ("a photo of", "a picture of")
    for a in ("a red", "a blue", "the", "my wooden")
    for b in ("cat", "cup", "teddy bear", "dog")
    for end in ("on the grass", "in the snow", "at night", "by the beach")
]
WIDTH = 32
_TEXT = (
    "a an the photo picture of on in at by and next to grass snow beach night cat cup teddy "
    "bear dog red blue wooden two my one plain background good bright dark"
)
WORDS = tuple(_TEXT.split())


@functools.cache
def clip_tokenizer(pad: str = "<|endoftext|>") -> CLIPTokenizer:
    """A byte-level tokenizer that knows some words whole and spells all others."""
    letters = [chr(c) for c in range(33, 127)]
    vocabulary: list[str] = letters + [f"{c}</w>" for c in letters]
    merges: list[str] = []
    for word in sorted(WORDS, key=len, reverse=True):  # else "at" would be merged in "cat"
        parts = [*word[:-1], f"{word[-1]}</w>"]
        while len(parts) > 1:
            pair = f"{parts[0]} {parts[1]}"
            parts = [parts[0] + parts[1], *parts[2:]]
            if pair not in merges:
                merges.append(pair)
                if parts[0] not in vocabulary:
                    vocabulary.append(parts[0])
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={token: i for i, token in enumerate(vocabulary)},
        merges=[tuple(m.split()) for m in merges],
        model_max_length=24,
        pad_token=pad,
    )


@functools.cache
def word_tokenizer(length: int = 20) -> PreTrainedTokenizerFast:
    """A word-level tokenizer, for text encoders of the T5 and Gemma kind."""
    vocabulary = {w: i for i, w in enumerate(["<pad>", "</s>", "<unk>", "<bos>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        bos_token="<bos>",
        model_max_length=length,
    )


def clip_config(tokenizer: CLIPTokenizer, width: int = WIDTH, **changes: object) -> CLIPTextConfig:
    settings = {
        "vocab_size": len(tokenizer),
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": tokenizer.model_max_length,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "projection_dim": width,
    }
    return CLIPTextConfig(**(settings | changes))


def autoencoder(channels: int = 4) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=channels,
        norm_num_groups=4,
        sample_size=16,
    ).eval()


def unet(width: int, **changes: object) -> UNet2DConditionModel:
    settings = {
        "sample_size": 8,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": width,
        "attention_head_dim": 4,
        "norm_num_groups": 4,
    }
    return UNet2DConditionModel(**(settings | changes)).eval()


def ddim() -> DDIMScheduler:
    return DDIMScheduler(
        beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False, steps_offset=1
    )


def stable_diffusion(seed: int = 0, **text: object) -> StableDiffusionPipeline:
    torch.manual_seed(seed)
    tokenizer = clip_tokenizer()
    pipe = StableDiffusionPipeline(
        vae=autoencoder(),
        text_encoder=CLIPTextModel(clip_config(tokenizer, **text)).eval(),
        tokenizer=tokenizer,
        unet=unet(WIDTH),
        scheduler=ddim(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def stable_diffusion_2_1(seed: int = 0) -> StableDiffusionPipeline:
    """The velocity, an OpenCLIP text encoder, linear projections and a head size for each level."""
    torch.manual_seed(seed)
    tokenizer = clip_tokenizer("!")
    text = clip_config(
        tokenizer, 2 * WIDTH, hidden_act="gelu", num_hidden_layers=3, projection_dim=16,
        eos_token_id=2,
    )  # fmt: skip
    pipe = StableDiffusionPipeline(
        vae=autoencoder(),
        text_encoder=CLIPTextModel(text).eval(),
        tokenizer=tokenizer,
        unet=unet(
            2 * WIDTH,
            attention_head_dim=(1, 2),
            use_linear_projection=True,
            dual_cross_attention=False,
            upcast_attention=True,
        ),
        scheduler=DDIMScheduler.from_config(ddim().config, prediction_type="v_prediction"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def stable_diffusion_xl(seed: int = 0) -> StableDiffusionXLPipeline:
    torch.manual_seed(seed)
    first, second = clip_tokenizer(), clip_tokenizer("!")
    pipe = StableDiffusionXLPipeline(
        vae=autoencoder(),
        text_encoder=CLIPTextModel(clip_config(first, eos_token_id=2)).eval(),
        text_encoder_2=CLIPTextModelWithProjection(
            clip_config(second, 2 * WIDTH, eos_token_id=2)
        ).eval(),
        tokenizer=first,
        tokenizer_2=second,
        unet=unet(
            3 * WIDTH,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=2 * WIDTH + 6 * 8,
            transformer_layers_per_block=2,
        ),
        scheduler=ddim(),
        add_watermarker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


class AsIs(PixArtAlphaPipeline):
    """Leaves captions as they are, as PixArt does where ftfy or bs4 is not installed."""

    def _text_preprocessing(self, text: object, clean_caption: bool = False) -> list[str]:
        return super()._text_preprocessing(text, clean_caption=False)


def pixart(seed: int = 0, *, sized: bool = False) -> AsIs:
    torch.manual_seed(seed)
    tokenizer = word_tokenizer()
    encoder = T5EncoderModel(
        T5Config(vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    ).eval()
    transformer = PixArtTransformer2DModel(
        # By this number the pipeline knows the models that are told sizes (diffusers 0.42).
        sample_size=128 if sized else 8,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=3,
        caption_channels=16,
        in_channels=4,
        cross_attention_dim=24,
        out_channels=8,
        norm_type="ada_norm_single",
        use_additional_conditions=sized,
    ).eval()
    pipe = AsIs(
        tokenizer=tokenizer,
        text_encoder=encoder,
        vae=autoencoder(),
        transformer=transformer,
        scheduler=ddim(),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sana(seed: int = 0) -> SanaPipeline:
    from diffusers import AutoencoderDC

    torch.manual_seed(seed)
    tokenizer = word_tokenizer()
    encoder = Gemma2Model(
        Gemma2Config(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=8,
        )
    ).eval()
    transformer = SanaTransformer2DModel(
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=4,
        num_cross_attention_heads=2,
        cross_attention_head_dim=4,
        cross_attention_dim=8,
        caption_channels=16,
        sample_size=32,
    ).eval()
    vae = AutoencoderDC(
        in_channels=3,
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=[1, 1],
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        scaling_factor=0.41407,
    ).eval()
    pipe = SanaPipeline(
        tokenizer=tokenizer,
        text_encoder=encoder,
        vae=vae,
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def stable_diffusion_3(seed: int = 0) -> StableDiffusion3Pipeline:
    torch.manual_seed(seed)
    tokenizer = clip_tokenizer()
    config = clip_config(tokenizer, projection_dim=16)
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_projection_dim=16,
        joint_attention_dim=2 * WIDTH,
        pooled_projection_dim=32,
        out_channels=4,
    ).eval()
    pipe = StableDiffusion3Pipeline(
        vae=AutoencoderKL(
            block_out_channels=(8, 16),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            norm_num_groups=4,
            sample_size=16,
            shift_factor=0.06,
        ).eval(),
        text_encoder=CLIPTextModelWithProjection(config).eval(),
        text_encoder_2=CLIPTextModelWithProjection(config).eval(),
        text_encoder_3=None,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        tokenizer_3=None,
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def folder() -> Path:
    return Path(tempfile.mkdtemp())
