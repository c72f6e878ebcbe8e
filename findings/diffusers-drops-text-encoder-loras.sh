#!/usr/bin/env bash
# A LoRA in kohya's flat names for a text encoder's query projection and its MLP: diffusers 0.42.1 loads
# the MLP's half and drops the query's, as long as the file has no output projection. Nothing is raised;
# transformers prints that two keys were "UNEXPECTED", which "can be ignored".
# The query's half alone is a ValueError. With an output projection of zeros added, both are loaded.
#
# Why: the convention of a text encoder's names is guessed from the file. `to_out_lora` in any name means
# the old one, which has an entry for `to_q_lora`; else `lora_linear_layer` means the new one, which has
# none, so that the name stays as it is and belongs to no layer.
#
# Fails if any of this changes. Needs two gigabytes and some minutes; uses nothing of this project.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet torch==2.13.0 diffusers==0.42.1 peft==0.21.2 transformers==5.23.0 safetensors
cat > "$place/finding.py" <<'PY'
import sys
import tempfile

import diffusers
import torch
import transformers
from safetensors.torch import save_file

diffusers.logging.set_verbosity_error()
SIZE, RANK = 32, 2
Q, FC, OUT = (
    f"text_model_encoder_layers_0_{name}" for name in ("self_attn_q_proj", "mlp_fc2", "self_attn_out_proj")
)


def changed(*layers: str, zeros: tuple[str, ...] = ()) -> list[str]:
    """Which weights of a text encoder a LoRA for these layers changes."""
    config = transformers.CLIPTextConfig(
        hidden_size=SIZE, intermediate_size=SIZE, num_attention_heads=4, num_hidden_layers=1, vocab_size=100
    )
    encoder = transformers.CLIPTextModel(config)
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(32,), layers_per_block=1, norm_num_groups=8, cross_attention_dim=SIZE,
        down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",),
    )
    pipe = diffusers.StableDiffusionPipeline(
        vae=None, text_encoder=encoder, tokenizer=None, unet=unet, scheduler=diffusers.DDIMScheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )
    tensors = {}
    for layer in (*layers, *zeros):
        value = 0.0 if layer in zeros else 1.0
        tensors[f"lora_te_{layer}.lora_down.weight"] = torch.full((RANK, SIZE), value)
        tensors[f"lora_te_{layer}.lora_up.weight"] = torch.full((SIZE, RANK), value)
        tensors[f"lora_te_{layer}.alpha"] = torch.tensor(float(RANK))
    with tempfile.TemporaryDirectory() as folder:
        save_file(tensors, f"{folder}/lora.safetensors")
        pipe.load_lora_weights(folder, weight_name="lora.safetensors")
    pipe.fuse_lora(components=["text_encoder"])
    pipe.unload_lora_weights()
    after = encoder.state_dict()
    return sorted(name.split(".")[-2] for name, old in before.items() if not torch.equal(after[name], old))


both, mended = changed(Q, FC), changed(Q, FC, zeros=(OUT,))
print("query and MLP:", both)
print("query, MLP, and an output projection of zeros:", mended)
try:
    alone = str(changed(Q))
except ValueError as error:
    alone = f"ValueError: {error}"
print("query alone:", alone)
sys.exit(
    not (
        both == ["fc2"]
        and mended == ["fc2", "q_proj"]
        and alone.startswith("ValueError: Could not automatically infer state dict type")
    )
)
PY
"$place/venv/bin/python" "$place/finding.py"
# Seen:
#   query and MLP: ['fc2']
#   query, MLP, and an output projection of zeros: ['fc2', 'q_proj']
#   query alone: ValueError: Could not automatically infer state dict type
