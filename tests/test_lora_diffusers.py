"""LoRA files in diffusers pipelines: weights change by ΔW, and nothing else."""

import json
import warnings
from pathlib import Path

import pytest
import torch

from rankedit.edits import LowRank
from rankedit.files.lora import DIFFUSERS, KOHYA, from_lora, to_lora
from rankedit.models.selecting import select
from tests.lora_cases import assert_changed_by, assert_same, edit_for, weights

diffusers = pytest.importorskip("diffusers")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")


@pytest.fixture(autouse=True)
def quiet():
    """Other libraries' warnings are not ours to mend."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers.logging.set_verbosity_error()
        diffusers.logging.set_verbosity_error()
        yield


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """A byte-level tokenizer: every byte is a word."""
    folder = tmp_path_factory.mktemp("tokenizer")
    letters = [chr(code) for code in range(33, 127)]
    words = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: i for i, word in enumerate(words)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return transformers.CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))


def pipeline(tokenizer) -> "diffusers.StableDiffusionPipeline":
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(32, 64),
        layers_per_block=1,
        sample_size=8,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=8,
        norm_num_groups=8,
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=[32],
        down_block_types=["DownEncoderBlock2D"],
        up_block_types=["UpDecoderBlock2D"],
        latent_channels=4,
        norm_num_groups=8,
    )
    config = transformers.CLIPTextConfig(
        hidden_size=32,
        intermediate_size=37,
        num_attention_heads=4,
        num_hidden_layers=2,
        vocab_size=len(tokenizer),
        projection_dim=32,
    )
    return diffusers.StableDiffusionPipeline(
        unet=unet,
        vae=vae,
        text_encoder=transformers.CLIPTextModel(config),
        tokenizer=tokenizer,
        scheduler=diffusers.DDIMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def text_edits(pipe, rank: int = 1) -> dict[str, LowRank]:
    layers = select(pipe.text_encoder, "*.mlp.fc2")
    return {n: edit_for(layer, rank, seed=i) for i, (n, layer) in enumerate(layers.items())}


def attention_edits(pipe, *, mixed: bool, pattern: str = "*.attn2.to_[kv]") -> dict[str, LowRank]:
    layers = select(pipe.unet, pattern)
    assert len(layers) > 3
    return {
        name: edit_for(layer, 1 + i % 2 if mixed else 1, seed=i)
        for i, (name, layer) in enumerate(layers.items())
    }


@pytest.mark.parametrize("layout", [DIFFUSERS, KOHYA])
@pytest.mark.parametrize("mixed", [False, True])
def test_diffusers_adds_exactly_the_edit(tmp_path, tokenizer, layout, mixed):
    pipe = pipeline(tokenizer)
    edits = attention_edits(pipe, mixed=mixed)
    path = tmp_path / "lora.safetensors"
    to_lora(edits, path, layout=layout, component="unet")
    before, text_before = weights(pipe.unet), weights(pipe.text_encoder)
    load_and_fuse(pipe, path)
    assert_changed_by(pipe.unet, before, edits, tolerance=0.0 if not mixed else 1e-5)
    assert_changed_by(pipe.text_encoder, text_before, {})
    back = from_lora(path, component="unet", modules=dict(pipe.unet.named_modules()))
    assert_same(back, edits)


def load_and_fuse(pipe, path: Path) -> None:
    pipe.load_lora_weights(str(path.parent), weight_name=path.name)
    pipe.fuse_lora()
    pipe.unload_lora_weights()


@pytest.mark.parametrize("layout", [DIFFUSERS, KOHYA])
def test_diffusers_adds_exactly_the_edit_of_1x1_convolutions(tmp_path, tokenizer, layout):
    pipe = pipeline(tokenizer)
    pattern = "*.conv_shortcut" if layout is DIFFUSERS else "*.attn1.to_q"
    layers = select(pipe.unet, pattern)
    edits = {name: edit_for(layer, 2, seed=i) for i, (name, layer) in enumerate(layers.items())}
    path = tmp_path / "lora.safetensors"
    to_lora(edits, path, layout=layout, component="unet", model=pipe.unet)
    before = weights(pipe.unet)
    load_and_fuse(pipe, path)
    assert_changed_by(pipe.unet, before, edits, tolerance=1e-5)


@pytest.mark.parametrize("layout", [DIFFUSERS, KOHYA])
def test_diffusers_loads_edits_of_the_text_encoder(tmp_path, tokenizer, layout):
    """Files keep the prefix `text_model`, which transformers 5 dropped from the module names."""
    pipe = pipeline(tokenizer)
    edits = text_edits(pipe)
    path = tmp_path / "lora.safetensors"
    to_lora(edits, path, layout=layout, component=text_component(pipe))
    before = weights(pipe.text_encoder)
    load_and_fuse(pipe, path)
    assert_changed_by(pipe.text_encoder, before, edits)


def text_component(pipe) -> str:
    flattened = not hasattr(pipe.text_encoder, "text_model")
    return "text_encoder.text_model" if flattened else "text_encoder"


@pytest.mark.parametrize("layout", [DIFFUSERS, KOHYA])
def test_one_file_may_hold_both_components(tmp_path, tokenizer, layout):
    pipe = pipeline(tokenizer)
    unet, text = attention_edits(pipe, mixed=False), text_edits(pipe)
    named = {f"unet.{n}": e for n, e in unet.items()}
    named |= {f"{text_component(pipe)}.{n}": e for n, e in text.items()}
    path = tmp_path / "lora.safetensors"
    to_lora(named, path, layout=layout)
    before, text_before = weights(pipe.unet), weights(pipe.text_encoder)
    load_and_fuse(pipe, path)
    assert_changed_by(pipe.unet, before, unet)
    assert_changed_by(pipe.text_encoder, text_before, text)


def test_a_lora_that_diffusers_saved_is_read_with_its_scale(tmp_path, tokenizer):
    pipe = pipeline(tokenizer)
    config = peft.LoraConfig(r=2, lora_alpha=6, target_modules=["attn2.to_k", "attn2.to_v"])
    pipe.unet.add_adapter(config)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in pipe.unet.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(generator=generator)
    layers = peft.get_peft_model_state_dict(pipe.unet)
    metadata = {"r": 2, "lora_alpha": 6, "target_modules": ["attn2.to_k", "attn2.to_v"]}
    diffusers.StableDiffusionPipeline.save_lora_weights(
        str(tmp_path), unet_lora_layers=layers, unet_lora_adapter_metadata=metadata
    )
    edits = from_lora(tmp_path / "pytorch_lora_weights.safetensors", component="unet")
    fresh = pipeline(tokenizer)
    before = weights(fresh.unet)
    load_and_fuse(fresh, tmp_path / "pytorch_lora_weights.safetensors")
    assert_changed_by(fresh.unet, before, edits, tolerance=1e-5)
