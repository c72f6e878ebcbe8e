"""Tiny pipelines of families with joint attention; all weights random."""

from __future__ import annotations

import types
from typing import Any

import diffusers as df
from transformers import (
    CLIPTextModelWithProjection,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from tests.diffusion.families.tiny import FLOW, made, processor, qwen_vl, t5
from tests.diffusion.families.tiny import prx as bare_prx
from tests.diffusion.pipelines import autoencoder, clip_config, clip_tokenizer, word_tokenizer


def prx(seed: int = 0) -> Any:
    from diffusers.pipelines.prx import pipeline_prx

    # Plain words stay what they are; the pipeline cleans texts with a library that is not needed.
    if not hasattr(pipeline_prx, "ftfy"):
        pipeline_prx.ftfy = types.SimpleNamespace(fix_text=lambda text: text)
    return bare_prx(seed)


def flux_2(seed: int = 0) -> Any:
    words = processor(32)
    sizes = {
        "vocab_size": len(words), "hidden_size": 8, "intermediate_size": 32,
        "num_hidden_layers": 28, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 4,
    }  # fmt: skip
    vae = df.AutoencoderKLFlux2(
        block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, norm_num_groups=4,
    )  # fmt: skip
    transformer = df.Flux2Transformer2DModel(
        in_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=24, timestep_guidance_channels=16,
        axes_dims_rope=(2, 2, 2, 2), guidance_embeds=False,
    )  # fmt: skip
    pipe = made(
        df.Flux2KleinPipeline, seed, scheduler=FLOW(), vae=vae, tokenizer=words,
        text_encoder=Qwen3ForCausalLM(Qwen3Config(**sizes)), transformer=transformer,
    )  # fmt: skip
    pipe.tokenizer_max_length = 32
    return pipe


def qwen_image_2_1(seed: int = 0) -> Any:
    words = processor(128)
    text = {
        "vocab_size": len(words), "hidden_size": 16, "intermediate_size": 32,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8,
        "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4},
    }  # fmt: skip
    vision = {
        "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2,
        "out_hidden_size": 16, "deepstack_visual_indexes": [0],
    }  # fmt: skip
    encoder = Qwen3VLForConditionalGeneration(Qwen3VLConfig(text_config=text, vision_config=vision))
    transformer = df.QwenImage21Transformer2DModel(
        in_channels=4, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2,
        context_in_dim=16, mlp_ratio=2, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    vae = df.AutoencoderKLQwenImage21(
        base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1,
        temperal_downsample=[False] * 3,
        latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[1.5, 0.8, 1.1, 2.0],
    )  # fmt: skip

    class Processor(type(words)):
        """Gives the system's message in tokens too."""

        def apply_chat_template(self, messages: Any, **_: Any) -> Any:
            return self([messages[-1]["content"][0]["text"]]).input_ids

        tokenizer = words

    words.__class__ = Processor
    pipe = made(
        df.QwenImage21Pipeline, seed, scheduler=FLOW(), vae=vae, text_encoder=encoder,
        processor=words, transformer=transformer,
    )  # fmt: skip
    pipe._img_token_id = -1  # of a small vocabulary it would be that of all unknown words
    return pipe


def chroma(seed: int = 0) -> Any:
    words = word_tokenizer(32)
    transformer = df.ChromaTransformer2DModel(
        in_channels=16, num_layers=2, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=16, axes_dims_rope=(4, 6, 6),
        approximator_num_channels=8, approximator_hidden_dim=16, approximator_layers=1,
    )  # fmt: skip
    return made(
        df.ChromaPipeline, seed, scheduler=FLOW(), vae=autoencoder(), text_encoder=t5(len(words)),
        tokenizer=words, transformer=transformer,
    )  # fmt: skip


def aura_flow(seed: int = 0) -> Any:
    words = word_tokenizer(32)
    transformer = df.AuraFlowTransformer2DModel(
        sample_size=8, in_channels=4, num_mmdit_layers=2, num_single_dit_layers=1,
        attention_head_dim=16, num_attention_heads=2, joint_attention_dim=16,
        caption_projection_dim=32, pos_embed_max_size=256,
    )  # fmt: skip
    return made(
        df.AuraFlowPipeline, seed, tokenizer=words, text_encoder=t5(len(words), kind="UMT5"),
        vae=autoencoder(), transformer=transformer, scheduler=FLOW(),
    )  # fmt: skip


def hidream(seed: int = 0) -> Any:
    clip, words = clip_tokenizer(), word_tokenizer(20)
    llama = LlamaConfig(
        vocab_size=len(words), hidden_size=16, intermediate_size=32, num_hidden_layers=3,
        num_attention_heads=2, num_key_value_heads=2, head_dim=8, attn_implementation="eager",
    )  # fmt: skip
    config = clip_config(clip, projection_dim=16, max_position_embeddings=218)
    transformer = df.HiDreamImageTransformer2DModel(
        patch_size=2, in_channels=4, out_channels=4, num_layers=2, num_single_layers=1,
        attention_head_dim=16, num_attention_heads=2, caption_channels=[16, 16], text_emb_dim=32,
        num_routed_experts=2, num_activated_experts=1, axes_dims_rope=(8, 4, 4),
        max_resolution=(16, 16), llama_layers=[0, 1, 2],
    )  # fmt: skip
    return made(
        df.HiDreamImagePipeline, seed, scheduler=FLOW(), vae=autoencoder(),
        text_encoder=CLIPTextModelWithProjection(config), tokenizer=clip,
        text_encoder_2=CLIPTextModelWithProjection(config), tokenizer_2=clip,
        text_encoder_3=t5(len(words)), tokenizer_3=words, text_encoder_4=LlamaForCausalLM(llama),
        tokenizer_4=word_tokenizer(24), transformer=transformer,
    )  # fmt: skip


def hunyuan_image(seed: int = 0) -> Any:
    words, glyphs = processor(64), word_tokenizer(16)
    vae = df.AutoencoderKLHunyuanImage(
        in_channels=3, out_channels=3, latent_channels=4, block_out_channels=(32, 32),
        layers_per_block=1, spatial_compression_ratio=2, sample_size=16, scaling_factor=0.7,
    )  # fmt: skip
    transformer = df.HunyuanImageTransformer2DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=2,
        num_single_layers=1, num_refiner_layers=1, text_embed_dim=16, text_embed_2_dim=24,
        rope_axes_dim=(8, 8),
    )  # fmt: skip
    pipe = made(
        df.HunyuanImagePipeline, seed, scheduler=FLOW(), vae=vae, text_encoder=qwen_vl(len(words)),
        tokenizer=words, text_encoder_2=t5(len(glyphs), 24), tokenizer_2=glyphs,
        transformer=transformer,
    )  # fmt: skip
    pipe.tokenizer_max_length, pipe.tokenizer_2_max_length = 40, 16
    pipe.prompt_template_encode_start_idx = 4
    return pipe
