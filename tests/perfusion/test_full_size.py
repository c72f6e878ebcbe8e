"""Models of the real configurations with random weights: found, learned, saved, at their size."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from rankedit_recipes.diffusion.parts import Parts
from rankedit_recipes.perfusion.applying.apply import apply
from rankedit_recipes.perfusion.concept import Concept
from rankedit_recipes.perfusion.learning.config import Config
from rankedit_recipes.perfusion.learning.training import learn
from torch.nn import Module
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from tests.diffusion import pipelines
from tests.perfusion.concepts import random_concept

pytestmark = pytest.mark.slow

SIZE = 64
TEXT = {"vocab_size": 49_408, "max_position_embeddings": 77, "eos_token_id": 2}
CLIP_L = {
    **TEXT,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_act": "quick_gelu",
}
OPEN_CLIP_BIG_G = {
    **TEXT,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "hidden_act": "gelu",
    "projection_dim": 1280,
}
UNET_XL = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}


def randomised(make: Callable[[], Module], dtype: torch.dtype) -> Module:
    """A model of random weights, without the minutes that drawing billions of numbers takes."""
    with torch.device("meta"):
        model = make().to(dtype)
    model = model.to_empty(device="cpu").eval()
    noise = torch.rand(1_000_003, generator=torch.Generator().manual_seed(0)).sub(0.5).to(dtype)
    for name, parameter in model.named_parameters():
        weights = parameter.detach()
        if weights.ndim < 2:
            weights.fill_(float(name.endswith("weight")))  # of norms; the others are biases
            continue
        scale = 2 / math.sqrt(weights[0].numel())
        for part in weights.view(-1).split(len(noise)):
            torch.mul(noise[: len(part)], scale, out=part)
    for name, buffer in model.named_buffers():
        assert name.endswith("position_ids")
        buffer.copy_(torch.arange(buffer.shape[-1]))
    return model


def eightfold_autoencoder(dtype: torch.dtype) -> AutoencoderKL:
    """Small, but a latent is eight pixels wide as in the real one."""
    return AutoencoderKL(
        block_out_channels=(8,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=4,
        layers_per_block=1,
        sample_size=SIZE,
    ).to(dtype).eval()  # fmt: skip


def xl() -> StableDiffusionXLPipeline:
    torch.manual_seed(0)
    dtype = torch.bfloat16
    first, second = pipelines.clip_tokenizer(), pipelines.clip_tokenizer("!")
    one = pipelines.clip_config(first, 768, **CLIP_L)
    two = pipelines.clip_config(second, 1280, **OPEN_CLIP_BIG_G)
    pipe = StableDiffusionXLPipeline(
        vae=eightfold_autoencoder(dtype),
        text_encoder=randomised(lambda: CLIPTextModel(one), dtype),
        text_encoder_2=randomised(lambda: CLIPTextModelWithProjection(two), dtype),
        tokenizer=first,
        tokenizer_2=second,
        unet=randomised(lambda: UNet2DConditionModel(**UNET_XL), dtype),
        scheduler=pipelines.ddim(),
        add_watermarker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def drawn(pipe: object, prompt: str) -> torch.Tensor:
    """One step of denoising."""
    generator = torch.Generator().manual_seed(0)
    return pipe(prompt, num_inference_steps=1, height=SIZE, width=SIZE, output_type="latent",
                guidance_scale=1.0, generator=generator).images  # fmt: skip


def one_five() -> StableDiffusionPipeline:
    torch.manual_seed(0)
    tokenizer = pipelines.clip_tokenizer()
    text = pipelines.clip_config(tokenizer, 768, **CLIP_L)
    settings = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}
    pipe = StableDiffusionPipeline(
        vae=eightfold_autoencoder(torch.float32),
        text_encoder=randomised(lambda: CLIPTextModel(text), torch.float32),
        tokenizer=tokenizer,
        unet=randomised(lambda: UNet2DConditionModel(**settings), torch.float32),
        scheduler=pipelines.ddim(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_a_concept_on_a_full_size_stable_diffusion_1_5(tmp_path):
    pipe = one_five()
    found = Parts(pipe).targets
    assert len(found.keys) == len(found.values) == 16
    concept = random_concept(pipe)
    concept.save(tmp_path / "c.safetensors")
    assert (tmp_path / "c.safetensors").stat().st_size <= 32_768
    loaded = Concept.load(tmp_path / "c.safetensors")
    before = drawn(pipe, "a <bean>")
    with apply(pipe, loaded):
        assert not torch.equal(drawn(pipe, "a <bean>"), before)
    assert torch.equal(drawn(pipe, "a <bean>"), before)


def test_a_concept_on_a_full_size_stable_diffusion_xl(tmp_path):
    pipe = xl()
    weights = sum(parameter.numel() for parameter in pipe.unet.parameters())
    assert weights == 2_567_463_684
    found = Parts(pipe).targets
    assert len(found.keys) == len(found.values) == 70
    assert found.width == 2048
    pixels = np.random.default_rng(0).integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8)
    concept = learn(
        pipe, [Image.fromarray(pixels)], placeholder="<bean>", category="cat",
        statistics=["a photo of a cat", "a dog on grass", "a red cup at night"],
        config=Config(steps=1, batch=1, size=SIZE, checkpointing=True), progress=False,
    )  # fmt: skip
    assert all(bool(torch.isfinite(value).all()) for value in concept.targets.values())
    file = tmp_path / "c.safetensors"
    concept.save(file)
    assert file.stat().st_size <= 204_800
    loaded = Concept.load(file)
    assert len(loaded.targets) == 70
    assert [len(row) for row in loaded.embeddings] == [768, 1280]
    assert len(loaded.key) == len(loaded.image) == 2048
    assert {"model", "photos", "step", "config"} <= set(loaded.notes)
    before = drawn(pipe, "a photo of a cat")
    with apply(pipe, loaded):
        inside = drawn(pipe, "a photo of a <bean>")
    assert bool(torch.isfinite(inside).all())
    assert not torch.equal(inside, before)
    assert torch.equal(drawn(pipe, "a photo of a cat"), before)
