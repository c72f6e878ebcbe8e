"""LoRA files in the programs that they are made for: weights change by ΔW, and nothing else."""

import json
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from rankedit.edits import LowRank
from rankedit.lora import DIFFUSERS, KOHYA, from_lora, to_lora
from rankedit.selecting import select

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


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def edit_for(layer: nn.Module, rank: int, seed: int = 0) -> LowRank:
    with torch.no_grad():
        if isinstance(layer, nn.Conv2d):
            out_features, in_features = layer.out_channels, layer.in_channels
        elif isinstance(layer, nn.Linear):
            out_features, in_features = layer.out_features, layer.in_features
        else:
            in_features, out_features = layer.weight.shape
    return LowRank(normal(out_features, rank, seed=seed), normal(rank, in_features, seed=seed + 1))


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_changed_by(model, before, edits, *, transposed=False, tolerance=0.0) -> None:
    """Edited weights are W + ΔW to the last bit (or the tolerance), all others are untouched."""
    after = model.state_dict()
    assert after.keys() == before.keys()
    for name, old in before.items():
        edit = edits.get(name.removesuffix(".weight"))
        if edit is None:
            assert torch.equal(after[name], old), name
            continue
        delta = edit.delta().T if transposed else edit.delta()
        expected = old + delta.reshape(old.shape)
        torch.testing.assert_close(after[name], expected, rtol=0, atol=tolerance, msg=name)


# -------------------------------------------------------------------- PEFT


def gpt2() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=64, n_positions=32)
    return transformers.GPT2LMHeadModel(config).eval()


def llama() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=64,
    )
    return transformers.LlamaForCausalLM(config).eval()


@pytest.mark.parametrize(
    ("make", "pattern", "transposed"),
    [(gpt2, "*.mlp.c_proj", True), (llama, "*.mlp.down_proj", False), (llama, "*proj", False)],
)
@pytest.mark.parametrize("mixed", [False, True])
def test_peft_adds_exactly_the_edit(tmp_path, make, pattern, transposed, mixed):
    model = make()
    edits = {
        name: edit_for(layer, 1 + i % 3 if mixed else 1, seed=i)
        for i, (name, layer) in enumerate(select(model, pattern).items())
    }
    to_lora(edits, tmp_path / "adapter", model=model)
    before = weights(model)
    with warnings.catch_warnings():
        # A missing key or a wrong fan_in_fan_out is only a warning.
        warnings.simplefilter("error", UserWarning)
        wrapped = peft.PeftModel.from_pretrained(model, str(tmp_path / "adapter"))
    with wrapped.disable_adapter():
        plain = wrapped(torch.arange(8)[None]).logits
    assert torch.equal(plain, make()(torch.arange(8)[None]).logits)
    merged = wrapped.merge_and_unload()
    # PEFT multiplies the factors itself: with more than one term the sum may round otherwise.
    tolerance = 0.0 if not mixed else 1e-5
    assert_changed_by(merged, before, edits, transposed=transposed, tolerance=tolerance)
    assert_same(from_lora(tmp_path / "adapter"), edits)


def test_transformers_loads_the_adapter_without_wrapping_the_model(tmp_path):
    model = llama()
    edits = {n: edit_for(layer, 1) for n, layer in select(model, "*.mlp.down_proj").items()}
    to_lora(edits, tmp_path, config={"task_type": "CAUSAL_LM", "base_model_name_or_path": "tiny"})
    tokens = torch.arange(8)[None]
    expected = llama()
    with torch.no_grad():
        for name, edit in edits.items():
            expected.get_submodule(name).weight += edit.delta()
        model.load_adapter(str(tmp_path))
        torch.testing.assert_close(model(tokens).logits, expected(tokens).logits)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["task_type"], config["r"], config["lora_alpha"]) == ("CAUSAL_LM", 1, 1)


def test_an_adapter_that_peft_saved_is_read_with_its_scale(tmp_path):
    model = llama()
    config = peft.LoraConfig(
        r=2,
        lora_alpha=6,
        target_modules=["q_proj", "down_proj"],
        rank_pattern={"down_proj": 3},
        alpha_pattern={"layers.0.mlp.down_proj": 12},
    )
    wrapped = peft.get_peft_model(model, config)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(generator=generator)
    wrapped.save_pretrained(str(tmp_path))
    edits = from_lora(tmp_path)
    before = weights(llama())
    assert len(edits) == 4
    assert edits["model.layers.0.mlp.down_proj"].rank == 3
    assert_changed_by(wrapped.merge_and_unload(), before, edits, tolerance=1e-5)


def assert_same(back: dict[str, LowRank], edits: dict[str, LowRank]) -> None:
    assert back.keys() == edits.keys()
    for name, edit in edits.items():
        assert torch.equal(back[name].delta(), edit.delta())


# -------------------------------------------------------------------- diffusers


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
