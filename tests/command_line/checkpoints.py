"""Small models as people have them: one file in the layout of Stable Diffusion, and GGUF."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from safetensors.torch import save_file

# Of the conversion script of diffusers: names of Stable Diffusion's own code, and of diffusers.
_RESNET = {
    "in_layers.0": "norm1", "in_layers.2": "conv1", "out_layers.0": "norm2",
    "out_layers.3": "conv2", "emb_layers.1": "time_emb_proj", "skip_connection": "conv_shortcut",
}  # fmt: skip
_UNET = {
    "time_embed.0": "time_embedding.linear_1", "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in", "out.0": "conv_norm_out", "out.2": "conv_out",
    "middle_block.0": "mid_block.resnets.0", "middle_block.1": "mid_block.attentions.0",
    "middle_block.2": "mid_block.resnets.1",
}  # fmt: skip
_VAE = {
    "norm_out": "conv_norm_out", "nin_shortcut": "conv_shortcut",
    "mid.block_1.": "mid_block.resnets.0.", "mid.block_2.": "mid_block.resnets.1.",
    "mid.attn_1.norm": "mid_block.attentions.0.group_norm",
    "mid.attn_1.q": "mid_block.attentions.0.to_q", "mid.attn_1.k": "mid_block.attentions.0.to_k",
    "mid.attn_1.v": "mid_block.attentions.0.to_v",
    "mid.attn_1.proj_out": "mid_block.attentions.0.to_out.0",
}  # fmt: skip


def single_file(pipe, path: Path) -> Path:
    """A Stable Diffusion pipeline as one file of its first authors' layout."""
    tensors = {}
    per_block = pipe.unet.config.layers_per_block
    for name, tensor in pipe.unet.state_dict().items():
        tensors["model.diffusion_model." + _unet_name(name, per_block)] = tensor
    blocks = len(pipe.vae.config.block_out_channels)
    for name, tensor in pipe.vae.state_dict().items():
        linear = "attentions" in name and tensor.ndim == 2
        tensors["first_stage_model." + _vae_name(name, blocks)] = (
            tensor[:, :, None, None] if linear else tensor
        )
    for name, tensor in pipe.text_encoder.state_dict().items():
        whole = name if name.startswith("text_model.") else f"text_model.{name}"
        tensors[f"cond_stage_model.transformer.{whole}"] = tensor
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path)
    return path


def _unet_name(name: str, per_block: int) -> str:
    for ours, theirs in _UNET.items():
        name = re.sub(rf"^{re.escape(theirs)}\.", f"{ours}.", name)
    number = per_block + 1
    for way, blocks in (("down", "input_blocks"), ("up", "output_blocks")):
        shift = 1 if way == "down" else 0

        def place(match: re.Match, shift=shift, blocks=blocks) -> str:
            at = int(match[1]) * number + int(match[3]) + shift
            return f"{blocks}.{at}.{0 if match[2] == 'resnets' else 1}."

        name = re.sub(rf"^{way}_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.", place, name)
    name = re.sub(
        r"^down_blocks\.(\d+)\.downsamplers\.0\.conv",
        lambda m: f"input_blocks.{(int(m[1]) + 1) * number}.0.op", name,
    )  # fmt: skip
    # Behind the attention where a block has one, else behind the resnet.
    name = re.sub(
        r"^up_blocks\.(\d+)\.upsamplers\.0\.conv",
        lambda m: f"output_blocks.{int(m[1]) * number + per_block}.1.conv", name,
    )  # fmt: skip
    resnet = r"(input_blocks\.\d+\.0|output_blocks\.\d+\.0|middle_block\.[02])\."
    if re.match(resnet, name):
        for ours, theirs in _RESNET.items():
            name = re.sub(rf"\.{theirs}\.", f".{ours}.", name)
    return name


def _vae_name(name: str, blocks: int) -> str:
    name = re.sub(r"down_blocks\.(\d+)\.resnets\.(\d+)\.", r"down.\1.block.\2.", name)
    name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0\.", r"down.\1.downsample.", name)
    name = re.sub(
        r"up_blocks\.(\d+)\.resnets\.(\d+)\.",
        lambda m: f"up.{blocks - 1 - int(m[1])}.block.{m[2]}.", name,
    )  # fmt: skip
    name = re.sub(
        r"up_blocks\.(\d+)\.upsamplers\.0\.",
        lambda m: f"up.{blocks - 1 - int(m[1])}.upsample.", name,
    )  # fmt: skip
    for ours, theirs in _VAE.items():
        name = name.replace(theirs, ours)
    return name


def gguf_llama(path: Path, words: list[str], width: int = 32, layers: int = 2) -> Path:
    """A Llama of random weights with a tokenizer of words, as a GGUF file."""
    import gguf

    rng = np.random.default_rng(0)
    letters = [*"abcdefghijklmnopqrstuvwxyz", "Ġ"]
    tokens = ["<s>", "</s>", "<unk>", *letters]
    merges: list[str] = []
    for word in words:
        for whole in (word, f"Ġ{word}"):
            part = whole[0]
            for letter in whole[1:]:
                merges.append(f"{part} {letter}")
                part += letter
                tokens.append(part)
    tokens, merges = list(dict.fromkeys(tokens)), list(dict.fromkeys(merges))
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(2 * width)
    writer.add_head_count(4)
    writer.add_head_count_kv(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types(
        [gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * (len(tokens) - 3)
    )
    writer.add_token_merges(merges)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_unk_token_id(2)

    def random(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) * 0.2).astype(np.float32)

    writer.add_tensor("token_embd.weight", random(len(tokens), width))
    writer.add_tensor("output.weight", random(len(tokens), width))
    writer.add_tensor("output_norm.weight", np.ones(width, np.float32))
    shapes = {
        "attn_q": (width, width), "attn_k": (width, width), "attn_v": (width, width),
        "attn_output": (width, width), "ffn_gate": (2 * width, width), "ffn_up": (2 * width, width),
        "ffn_down": (width, 2 * width),
    }  # fmt: skip
    for layer in range(layers):
        for name, shape in shapes.items():
            writer.add_tensor(f"blk.{layer}.{name}.weight", random(*shape))
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", np.ones(width, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
