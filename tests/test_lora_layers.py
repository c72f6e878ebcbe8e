"""LoRA files for every layer type of UNets and text encoders: diffusers adds the edit."""

import json
import re
import warnings

import pytest
import safetensors.torch
import torch
from torch import nn

from rankedit.files.lora import DIFFUSERS, KOHYA, from_lora, to_lora
from tests.lora_cases import assert_changed_by, assert_same, edit_for, normal, weights

diffusers = pytest.importorskip("diffusers")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

TEXT = {"text_encoder": transformers.CLIPTextModel}
TEXT["text_encoder_2"] = transformers.CLIPTextModelWithProjection
ATTENTION = "encoder.layers.1.self_attn"


@pytest.fixture(autouse=True)
def quiet():
    """Other libraries' warnings are not ours to mend."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers.logging.set_verbosity_error()
        diffusers.logging.set_verbosity_error()
        yield


def make_unet(*, sdxl: bool) -> "diffusers.UNet2DConditionModel":
    torch.manual_seed(0)
    labels = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 80,
        "transformer_layers_per_block": (1, 2),
    }
    return diffusers.UNet2DConditionModel(
        block_out_channels=(32, 64),
        layers_per_block=2,
        sample_size=8,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=8,
        norm_num_groups=8,
        use_linear_projection=sdxl,
        **(labels if sdxl else {}),
    )


def make_text_encoder(component: str) -> nn.Module:
    torch.manual_seed(1)
    config = transformers.CLIPTextConfig(
        hidden_size=32, intermediate_size=37, num_attention_heads=4, num_hidden_layers=2,
        vocab_size=100, projection_dim=16,
    )  # fmt: skip
    return TEXT[component](config)


def pipeline(**components: nn.Module) -> "diffusers.StableDiffusionXLPipeline":
    """A pipeline that can load LoRAs, and nothing else."""
    names = ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    parts = dict.fromkeys(names) | {"unet": make_unet(sdxl=True)} | components
    return diffusers.StableDiffusionXLPipeline(**parts, scheduler=diffusers.DDIMScheduler())


def matrices(model: nn.Module) -> dict[str, nn.Module]:
    def is_matrix(layer) -> bool:
        pointwise = isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1)
        return pointwise or isinstance(layer, nn.Linear)

    return {name: layer for name, layer in model.named_modules() if is_matrix(layer)}


def load_and_fuse(path, **components: nn.Module) -> None:
    pipe = pipeline(**components)
    pipe.load_lora_weights(str(path.parent), weight_name=path.name)
    pipe.fuse_lora(components=[*components])
    pipe.unload_lora_weights()


def text_component(component: str, model: nn.Module, name: str) -> str:
    old = hasattr(model, "text_model") or name == "text_projection"
    return component if old else f"{component}.text_model"


@pytest.mark.parametrize("layout", [DIFFUSERS, KOHYA], ids=lambda layout: layout.title)
@pytest.mark.parametrize("sdxl", [False, True])
def test_every_matrix_of_a_unet(tmp_path, layout, sdxl):
    unet = make_unet(sdxl=sdxl)
    edits = {n: edit_for(layer, 2, seed=i) for i, (n, layer) in enumerate(matrices(unet).items())}
    kinds = {re.sub(r"\.\d+(?=\.)", "", name) for name in edits}
    assert len(kinds) == (45 if sdxl else 43)
    path = tmp_path / "lora.safetensors"
    to_lora(edits, path, layout=layout, component="unet", model=unet)
    before = weights(unet)
    load_and_fuse(path, unet=unet)
    assert_changed_by(unet, before, edits, tolerance=1e-5)
    assert_same(from_lora(path, component="unet", modules=dict(unet.named_modules())), edits)


SUBSETS = [
    ("text_encoder", [f"{ATTENTION}.{name}"]) for name in ("q_proj", "k_proj", "v_proj", "out_proj")
]
SUBSETS += [
    ("text_encoder", ["encoder.layers.1.mlp.fc1"]),
    ("text_encoder", [f"{ATTENTION}.q_proj", "encoder.layers.0.mlp.fc2"]),
    ("text_encoder", [f"{ATTENTION}.q_proj", "encoder.layers.0.self_attn.out_proj"]),
    ("text_encoder_2", ["text_projection"]),
    ("text_encoder_2", ["text_projection", "text_model.encoder.layers.0.mlp.fc2"]),
    ("text_encoder_2", ["text_projection", f"text_model.{ATTENTION}.v_proj"]),
    ("text_encoder_2", [f"text_model.{ATTENTION}.k_proj"]),
]


@pytest.mark.parametrize("layout", [DIFFUSERS, KOHYA], ids=lambda layout: layout.title)
@pytest.mark.parametrize(("component", "names"), SUBSETS, ids=lambda value: str(value)[-24:])
def test_layers_of_a_text_encoder_alone(tmp_path, layout, component, names):
    """diffusers guesses the convention from what is in the file, and drops what it cannot tell."""
    model = make_text_encoder(component)
    layers = matrices(model)
    edits = {name: edit_for(layers[name], 2, seed=i) for i, name in enumerate(names)}
    path = tmp_path / "lora.safetensors"
    named = {f"{text_component(component, model, n)}.{n}": edit for n, edit in edits.items()}
    to_lora(named, path, layout=layout, dtype=torch.float32)
    before = weights(model)
    load_and_fuse(path, **{component: model})
    assert_changed_by(model, before, edits, tolerance=1e-5)
    assert_same(from_lora(path, component=component, modules=dict(model.named_modules())), edits)


def test_a_rank_that_bfloat16_cannot_hold_keeps_its_strength_in_diffusers(tmp_path):
    unet = make_unet(sdxl=False)
    name = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    edit = edit_for(matrices(unet)[name], 257)
    path = tmp_path / "lora.safetensors"
    for layout in (KOHYA, DIFFUSERS):
        before = weights(unet)
        to_lora({name: edit}, path, layout=layout, component="unet", dtype=torch.bfloat16)
        load_and_fuse(path, unet=unet)
        change = unet.state_dict()[f"{name}.weight"] - before[f"{name}.weight"]
        share = float((change * edit.delta()).sum() / edit.delta().square().sum())
        assert abs(share - 1) < 3e-4  # alpha 256 for rank 257 would be 39e-4 too little


# -------------------------------------------------------------------- what diffusers reads, we read


def ldm_names(tensors: dict) -> dict:
    """diffusers' flat names as Stable Diffusion's own code has them, for `make_unet(sdxl=True)`."""
    words = {
        "down_blocks_0_resnets_1": "input_blocks_2_0",
        "down_blocks_1_resnets_0": "input_blocks_4_0",
        "down_blocks_1_attentions_0": "input_blocks_4_1",
        "down_blocks_1_attentions_1": "input_blocks_5_1",
        "mid_block_attentions_0": "middle_block_1",
        "mid_block_resnets_1": "middle_block_2",
        "up_blocks_0_attentions_2": "output_blocks_2_1",
        "up_blocks_1_resnets_0": "output_blocks_3_0",
        "time_emb_proj": "emb_layers_1",
        "conv_shortcut": "skip_connection",
        "time_embedding_linear_2": "time_embed_2",
    }
    renamed = {}
    for key, tensor in tensors.items():
        for word, other in words.items():
            key = key.replace(word, other)
        renamed[key] = tensor
    return renamed


def test_names_of_the_original_code_are_read_as_diffusers_reads_them(tmp_path):
    unet = make_unet(sdxl=True)
    layers = matrices(unet)
    pattern = (
        r"down_blocks\.0\.resnets\.1\.time_emb_proj|down_blocks\.1\.resnets\.0\.conv_shortcut|"
        r"down_blocks\.1\.attentions\.[01].*(attn2\.to_k|proj_in)|mid_block.*(attn1\.to_q|net\.2)|"
        r"mid_block\.resnets\.1\.time_emb_proj|up_blocks\.0\.attentions\.2.*to_out\.0|"
        r"up_blocks\.1\.resnets\.0\.conv_shortcut|add_embedding.*|time_embedding\.linear_2"
    )
    chosen = [name for name in layers if re.fullmatch(pattern, name)]
    edits = {name: edit_for(layers[name], 2, seed=i) for i, name in enumerate(chosen)}
    path = tmp_path / "lora.safetensors"
    to_lora(edits, path, layout=KOHYA, component="unet", model=unet)
    tensors = ldm_names(safetensors.torch.load_file(path))
    assert not any("_blocks_0_resnets" in k or "attentions" in k for k in tensors)
    safetensors.torch.save_file(tensors, path)
    assert_same(from_lora(path, component="unet", modules=dict(unet.named_modules())), edits)
    before = weights(unet)
    load_and_fuse(path, unet=unet)
    assert_changed_by(unet, before, edits, tolerance=1e-5)


def test_names_of_attention_processors_are_read_as_diffusers_reads_them(tmp_path):
    unet = make_unet(sdxl=False)
    stem = "mid_block.attentions.0.transformer_blocks.0.attn1"
    names = [f"{stem}.to_q", f"{stem}.to_v", f"{stem}.to_out.0"]
    edits = {name: edit_for(matrices(unet)[name], 2, seed=i) for i, name in enumerate(names)}
    tensors = {}
    for name, edit in edits.items():
        last = name.removeprefix(f"{stem}.").removesuffix(".0")
        for part, tensor in (("down", edit.down), ("up", edit.up)):
            tensors[f"unet.{stem}.processor.{last}_lora.{part}.weight"] = tensor
    path = tmp_path / "lora.safetensors"
    safetensors.torch.save_file(tensors, path)
    assert_same(from_lora(path, component="unet"), edits)
    before = weights(unet)
    load_and_fuse(path, unet=unet)
    assert_changed_by(unet, before, edits, tolerance=1e-5)


@pytest.mark.parametrize(
    "fields",
    [
        {"lora_alpha": 6},
        {"lora_alpha": 3, "use_rslora": True},
        {"alpha_pattern": {r".*attn1\.to_q": 1}, "rank_pattern": {"to_v": 3}},
    ],
)
def test_what_a_model_saved_of_itself_is_read_with_its_strength(tmp_path, fields):
    """`save_lora_adapter` writes the configuration without a component before its fields."""
    unet = make_unet(sdxl=False)
    unet.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q", "to_v"], **fields))
    for i, (name, parameter) in enumerate(unet.named_parameters()):
        if "lora_" in name:
            parameter.data = normal(*parameter.shape, seed=i)
    unet.save_lora_adapter(str(tmp_path))
    path = tmp_path / "pytorch_lora_weights.safetensors"
    with safetensors.safe_open(path, "pt") as opened:
        assert "lora_alpha" in json.loads(opened.metadata()["lora_adapter_metadata"])
    fresh = make_unet(sdxl=False)
    before = weights(fresh)
    fresh.load_lora_adapter(str(tmp_path), weight_name=path.name, prefix=None)
    fresh.fuse_lora()
    fresh.unload_lora()
    assert_changed_by(fresh, before, from_lora(path), tolerance=1e-5)
