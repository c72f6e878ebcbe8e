"""A tiny random diffusers pipeline and edits of its text projections."""

from __future__ import annotations

import torch

from rankedit.models.projections import geometry, select

TEXT, NOISE = torch.randn(1, 5, 32), torch.randn(1, 4, 8, 8)


def tiny_unet():
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=8,
        norm_num_groups=8,
    ).eval()


def tiny_pipeline():
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    words = {"<|startoftext|>": 0, "<|endoftext|>": 1, "a": 2, "a</w>": 3}
    sizes = {"hidden_size": 32, "intermediate_size": 37, "num_attention_heads": 4}
    ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    text = CLIPTextConfig(**sizes, **ends, num_hidden_layers=1, vocab_size=10)
    return StableDiffusionPipeline(
        vae=AutoencoderKL(block_out_channels=(32,), norm_num_groups=8, sample_size=8),
        text_encoder=CLIPTextModel(text),
        tokenizer=CLIPTokenizer(vocab=words, merges=[]),
        unet=tiny_unet(),
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def output(unet):
    with torch.no_grad():
        return unet(NOISE, torch.tensor([3]), encoder_hidden_states=TEXT).sample


def names_of(unet):
    return list(select(unet, "*.attn2.to_[kv]"))


def edits_of(unet, kind):
    sizes = {name: geometry(unet.get_submodule(name)) for name in names_of(unet)}
    return {
        name: kind(size.in_features, size.out_features, seed)
        for seed, (name, size) in enumerate(sizes.items())
    }
