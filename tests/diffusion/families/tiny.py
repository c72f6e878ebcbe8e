"""Tiny pipelines of further families, with all weights random: what a gate closes is open here."""

from __future__ import annotations

import inspect
from typing import Any

import diffusers as df
import torch
from transformers import (
    BertConfig,
    BertModel,
    CLIPTextModel,
    Gemma2Config,
    Gemma2Model,
    GlmConfig,
    GlmModel,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)

from tests.diffusion.pipelines import autoencoder, clip_config, clip_tokenizer, word_tokenizer

FLOW = df.FlowMatchEulerDiscreteScheduler


def filled(seed: int, **parts: Any) -> dict[str, Any]:
    """Parts of a pipeline with random weights; nothing of them is zero or one any more."""
    generator = torch.Generator().manual_seed(seed)
    for part in parts.values():
        if isinstance(part, torch.nn.Module):
            for weight in filter(torch.numel, part.eval().parameters()):
                noise = torch.randn(weight.shape, generator=generator)
                vector = weight.ndim == 1
                base = weight.data * (weight.data == 1) if vector else 0
                fan = 1 if vector else weight[0].numel()
                weight.data = base + noise * (0.3 if vector else fan**-0.5)
    return parts


def made(kind: Any, seed: int, **parts: Any) -> Any:
    pipe = kind(**filled(seed, **parts))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def one_frame(pipe: Any) -> dict[str, Any]:
    """Arguments of a pipeline for a single picture of the size that is given."""
    known = inspect.signature(type(pipe).__call__).parameters
    wanted = {"num_frames": 1, "video_length": 1, "use_resolution_binning": False}
    return {name: value for name, value in wanted.items() if name in known}


def t5(words: int, width: int = 16, kind: str = "T5") -> Any:
    config, model = {
        "T5": (T5Config, T5EncoderModel),
        "UMT5": (UMT5Config, UMT5EncoderModel),
    }[kind]
    sizes = {"d_model": width, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    return model(config(vocab_size=words, **sizes))


def decoder(kind: str, words: int, width: int = 16, **changes: Any) -> Any:
    """A language model that encodes prompts by its hidden states."""
    config, model = {
        "Gemma2": (Gemma2Config, Gemma2Model),
        "Glm": (GlmConfig, GlmModel),
        "Qwen3": (Qwen3Config, Qwen3Model),
    }[kind]
    sizes = {
        "vocab_size": words, "hidden_size": width, "intermediate_size": 32,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8,
        "pad_token_id": 0,
    }  # fmt: skip
    return model(config(**(sizes | changes)))


def qwen_vl(words: int, width: int = 16) -> Any:
    text = {
        "vocab_size": words, "hidden_size": width, "intermediate_size": 32,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
        "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4},
    }  # fmt: skip
    vision = {
        "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2,
        "out_hidden_size": width, "fullatt_block_indexes": [0],
    }  # fmt: skip
    return Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(text_config=text, vision_config=vision)
    )


def wan(seed: int = 0, **changes: Any) -> Any:
    tokenizer = word_tokenizer()
    vae = df.AutoencoderKLWan(
        base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1,
        temperal_downsample=[False, True, True], latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[1.5, 0.8, 1.1, 2.0],
    )  # fmt: skip
    transformer = df.WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4,
        out_channels=4, text_dim=16, freq_dim=16, ffn_dim=32, num_layers=2, rope_max_seq_len=32,
    )  # fmt: skip
    scheduler = df.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    return made(
        df.WanPipeline, seed, tokenizer=tokenizer, text_encoder=t5(len(tokenizer), kind="UMT5"),
        vae=vae, transformer=transformer, scheduler=scheduler, **changes,
    )  # fmt: skip


def ltx(seed: int = 0) -> Any:
    tokenizer = word_tokenizer()
    vae = df.AutoencoderKLLTXVideo(
        latent_channels=8, block_out_channels=(8, 8, 8, 8), decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1), decoder_layers_per_block=(1, 1, 1, 1, 1),
        scaling_factor=0.7,
    )  # fmt: skip
    # Buffers, which every checkpoint brings along.
    vae.latents_mean.copy_(torch.linspace(-0.5, 0.5, 8))
    vae.latents_std.copy_(torch.linspace(0.7, 1.6, 8))
    transformer = df.LTXVideoTransformer3DModel(
        in_channels=8, out_channels=8, num_attention_heads=2, attention_head_dim=8,
        cross_attention_dim=16, num_layers=2, caption_channels=16,
    )  # fmt: skip
    return made(
        df.LTXPipeline, seed, tokenizer=tokenizer, text_encoder=t5(len(tokenizer)), vae=vae,
        transformer=transformer, scheduler=FLOW(),
    )  # fmt: skip


def hunyuan_dit(seed: int = 0) -> Any:
    tokenizer, second = word_tokenizer(77), word_tokenizer(256)
    bert = BertModel(
        BertConfig(
            vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2,
            num_attention_heads=2, max_position_embeddings=80,
        )
    )  # fmt: skip
    transformer = df.HunyuanDiT2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, patch_size=2, sample_size=8,
        hidden_size=16, num_layers=2, mlp_ratio=2.0, cross_attention_dim=16,
        cross_attention_dim_t5=24, pooled_projection_dim=16, text_len=77, text_len_t5=256,
    )  # fmt: skip
    vae = df.AutoencoderKL(
        block_out_channels=(8, 8, 8, 8), down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, latent_channels=4, norm_num_groups=4,
        sample_size=64,
    )  # fmt: skip
    return made(
        df.HunyuanDiTPipeline, seed, vae=vae, text_encoder=bert, tokenizer=tokenizer,
        transformer=transformer, scheduler=df.DDPMScheduler(prediction_type="v_prediction"),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
        text_encoder_2=t5(len(second), 24), tokenizer_2=second,
    )  # fmt: skip


def cogvideox(seed: int = 0) -> Any:
    tokenizer = word_tokenizer(226)
    vae = df.AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4, up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=2,
    )  # fmt: skip
    transformer = df.CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4,
        time_embed_dim=4, text_embed_dim=16, num_layers=2, sample_width=8, sample_height=8,
        sample_frames=1, patch_size=2,
    )  # fmt: skip
    return made(
        df.CogVideoXPipeline, seed, tokenizer=tokenizer, text_encoder=t5(len(tokenizer)), vae=vae,
        transformer=transformer, scheduler=df.CogVideoXDDIMScheduler(),
    )  # fmt: skip


def lumina_next(seed: int = 0) -> Any:
    tokenizer = word_tokenizer()
    transformer = df.LuminaNextDiT2DModel(
        sample_size=4, patch_size=2, in_channels=4, hidden_size=24, num_layers=2,
        num_attention_heads=3, num_kv_heads=1, multiple_of=16, cross_attention_dim=16,
    )  # fmt: skip
    return made(
        df.LuminaPipeline, seed, transformer=transformer, scheduler=FLOW(), vae=autoencoder(),
        text_encoder=decoder("Gemma2", len(tokenizer)), tokenizer=tokenizer,
    )  # fmt: skip


def prx(seed: int = 0) -> Any:
    from diffusers.pipelines.prx import PRXPipeline
    from transformers.models.t5gemma.configuration_t5gemma import T5GemmaConfig, T5GemmaModuleConfig
    from transformers.models.t5gemma.modeling_t5gemma import T5GemmaEncoder

    tokenizer = word_tokenizer()
    module = T5GemmaModuleConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, head_dim=8,
        layer_types=["full_attention"] * 2,
    )  # fmt: skip
    config = T5GemmaConfig(
        encoder=module, is_encoder_decoder=False, vocab_size=len(tokenizer), hidden_size=16
    )
    transformer = df.PRXTransformer2DModel(
        in_channels=4, patch_size=2, context_in_dim=16, hidden_size=16, mlp_ratio=2.0, num_heads=2,
        depth=2, axes_dim=[4, 4],
    )  # fmt: skip
    return made(
        PRXPipeline, seed, transformer=transformer, scheduler=FLOW(),
        text_encoder=T5GemmaEncoder(config.encoder), tokenizer=tokenizer, vae=autoencoder(),
        default_sample_size=256,
    )  # fmt: skip


class Processor(PreTrainedTokenizerFast):
    """Takes texts as processors of pictures and texts do."""

    def __call__(
        self, text: Any = None, images: Any = None, videos: Any = None, **more: Any
    ) -> Any:
        return super().__call__(text, **more)

    def apply_chat_template(self, messages: Any, **_: Any) -> str:
        content = messages[-1]["content"]
        return content if isinstance(content, str) else content[0]["text"]


def processor(length: int = 64) -> Processor:
    own = word_tokenizer(length)
    return Processor(
        tokenizer_object=own.backend_tokenizer, pad_token="<pad>", eos_token="</s>",
        unk_token="<unk>", bos_token="<bos>", model_max_length=length,
    )  # fmt: skip


def qwen_vae() -> Any:
    return df.AutoencoderKLQwenImage(
        base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1,
        latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[1.5, 0.8, 1.1, 2.0],
    )  # fmt: skip


def nucleus(seed: int = 0) -> Any:
    from diffusers.pipelines.nucleusmoe_image import NucleusMoEImagePipeline

    words = processor()
    transformer = df.NucleusMoEImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16,
        num_attention_heads=2, num_key_value_heads=2, joint_attention_dim=16,
        axes_dims_rope=(4, 6, 6), mlp_ratio=2.0, moe_enabled=False,
    )  # fmt: skip
    pipe = made(
        NucleusMoEImagePipeline, seed, transformer=transformer, scheduler=FLOW(), vae=qwen_vae(),
        text_encoder=decoder("Qwen3", len(words)), processor=words,
    )  # fmt: skip
    pipe.default_return_index = -2
    return pipe


def kandinsky_5(seed: int = 0) -> Any:
    words, clip = processor(128), clip_tokenizer()
    transformer = df.Kandinsky5Transformer3DModel(
        in_visual_dim=4, in_text_dim=16, in_text_dim2=32, time_dim=16, out_visual_dim=4,
        model_dim=32, ff_dim=32, num_text_blocks=1, num_visual_blocks=2, axes_dims=(4, 6, 6),
    )  # fmt: skip
    pipe = made(
        df.Kandinsky5T2IPipeline, seed, transformer=transformer, vae=autoencoder(),
        text_encoder=qwen_vl(len(words)), tokenizer=words,
        text_encoder_2=CLIPTextModel(clip_config(clip, max_position_embeddings=77)),
        tokenizer_2=clip, scheduler=FLOW(),
    )  # fmt: skip
    pipe.resolutions, pipe.prompt_template_encode_start_idx = [(64, 64)], 4
    return pipe


def cogview4(seed: int = 0) -> Any:
    tokenizer = word_tokenizer(64)
    tokenizer.padding_side = "left"
    transformer = df.CogView4Transformer2DModel(
        patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8,
        num_attention_heads=2, text_embed_dim=16, time_embed_dim=8, condition_dim=4,
        sample_size=8, rope_axes_dim=(8, 8),
    )  # fmt: skip
    return made(
        df.CogView4Pipeline, seed, tokenizer=tokenizer,
        text_encoder=decoder("Glm", len(tokenizer)), vae=autoencoder(), transformer=transformer,
        scheduler=FLOW(base_shift=0.25, max_shift=0.75, use_dynamic_shifting=True),
    )  # fmt: skip


def qwen_image(seed: int = 0) -> Any:
    words = processor(128)
    transformer = df.QwenImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=16, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    pipe = made(
        df.QwenImagePipeline, seed, scheduler=FLOW(), vae=qwen_vae(),
        text_encoder=qwen_vl(len(words)), tokenizer=words, transformer=transformer,
    )  # fmt: skip
    pipe.prompt_template_encode_start_idx = 4
    return pipe


def z_image(seed: int = 0) -> Any:
    words = processor(64)
    transformer = df.ZImageTransformer2DModel(
        in_channels=4, dim=32, n_layers=1, n_refiner_layers=1, n_heads=2, n_kv_heads=2,
        cap_feat_dim=16, axes_dims=[4, 6, 6], axes_lens=[256, 32, 32],
    )  # fmt: skip
    return made(
        df.ZImagePipeline, seed, scheduler=FLOW(), vae=autoencoder(),
        text_encoder=decoder("Qwen3", len(words)), tokenizer=words, transformer=transformer,
    )  # fmt: skip


def flux(seed: int = 0) -> Any:
    clip, words = clip_tokenizer(), word_tokenizer(32)
    transformer = df.FluxTransformer2DModel(
        in_channels=16, num_layers=2, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=16, pooled_projection_dim=32,
        axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    return made(
        df.FluxPipeline, seed, scheduler=FLOW(), vae=autoencoder(),
        text_encoder=CLIPTextModel(clip_config(clip)), tokenizer=clip,
        text_encoder_2=t5(len(words)), tokenizer_2=words, transformer=transformer,
    )  # fmt: skip


def lumina_2(seed: int = 0) -> Any:
    tokenizer = word_tokenizer()
    transformer = df.Lumina2Transformer2DModel(
        sample_size=4, patch_size=2, in_channels=4, hidden_size=24, num_layers=1,
        num_refiner_layers=1, num_attention_heads=3, num_kv_heads=1, multiple_of=2,
        axes_dim_rope=(4, 2, 2), axes_lens=(300, 32, 32), cap_feat_dim=16,
    )  # fmt: skip
    return made(
        df.Lumina2Pipeline, seed, transformer=transformer, scheduler=FLOW(), vae=autoencoder(),
        text_encoder=decoder("Gemma2", len(tokenizer)), tokenizer=tokenizer,
    )  # fmt: skip


def latte(seed: int = 0) -> Any:
    tokenizer = word_tokenizer(120)
    transformer = df.LatteTransformer3DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=1,
        cross_attention_dim=16, attention_bias=True, sample_size=8, patch_size=2,
        activation_fn="gelu-approximate", num_embeds_ada_norm=1000, norm_type="ada_norm_single",
        norm_elementwise_affine=False, norm_eps=1e-6, caption_channels=16, video_length=1,
    )  # fmt: skip
    return made(
        df.LattePipeline, seed, tokenizer=tokenizer, text_encoder=t5(len(tokenizer)),
        vae=autoencoder(), transformer=transformer, scheduler=df.DDIMScheduler(),
    )  # fmt: skip
