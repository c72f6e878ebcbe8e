#!/usr/bin/env bash
# `clip_skip=1` of diffusers 0.42.1's Stable Diffusion pipeline, beside transformers 5.23.0: an AttributeError
# from within `encode_prompt`, though both packages are the newest and accept each other's versions.
# `clip_skip=None` encodes, and the layer that is asked for is there.
#
# Why: the pipeline takes the last norm from `text_encoder.text_model`, and this CLIPTextModel has its
# parts itself.
#
# Fails if any of this changes. Needs two gigabytes and some minutes; uses nothing of this project.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet torch==2.13.0 diffusers==0.42.1 transformers==5.23.0
cat > "$place/finding.py" <<'PY'
import sys

import diffusers
import torch
import transformers

diffusers.logging.set_verbosity_error()
SIZE = 32
torch.manual_seed(0)
config = transformers.CLIPTextConfig(
    hidden_size=SIZE, intermediate_size=SIZE, num_attention_heads=4, num_hidden_layers=3, vocab_size=3,
    bos_token_id=0, eos_token_id=1, pad_token_id=1,
)
words = {"<|startoftext|>": 0, "<|endoftext|>": 1, "cat</w>": 2}
tokenizer = transformers.CLIPTokenizer(vocab=words, merges=[], model_max_length=8)
encoder = transformers.CLIPTextModel(config).eval()
unet = diffusers.UNet2DConditionModel(
    block_out_channels=(32,), layers_per_block=1, norm_num_groups=8, cross_attention_dim=SIZE,
    down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",),
)
pipe = diffusers.StableDiffusionPipeline(
    vae=None, text_encoder=encoder, tokenizer=tokenizer, unet=unet, scheduler=diffusers.DDIMScheduler(),
    safety_checker=None, feature_extractor=None, requires_safety_checker=False,
)


def encoded(clip_skip):
    try:
        embeds, _ = pipe.encode_prompt("cat", "cpu", 1, False, clip_skip=clip_skip)
    except AttributeError as error:
        return f"AttributeError: {error}"
    return list(embeds.shape)


plain, skipped = encoded(None), encoded(1)
print("clip_skip=None:", plain)
print("clip_skip=1:", skipped)
print("the encoder's own last norm:", hasattr(encoder, "final_layer_norm"))
sys.exit(
    not (
        plain == [1, 8, SIZE]
        and skipped == "AttributeError: 'CLIPTextModel' object has no attribute 'text_model'"
        and hasattr(encoder, "final_layer_norm")
    )
)
PY
"$place/venv/bin/python" "$place/finding.py"
# Seen:
#   clip_skip=None: [1, 8, 32]
#   clip_skip=1: AttributeError: 'CLIPTextModel' object has no attribute 'text_model'
#   the encoder's own last norm: True
