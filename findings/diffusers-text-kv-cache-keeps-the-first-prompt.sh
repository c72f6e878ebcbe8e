#!/usr/bin/env bash
# diffusers 0.42.1, TextKVCacheConfig ("exact (lossless) text K/V caching"): keys and values of the text are
# kept under the memory address of the encoding. A second prompt that is written into the same buffer, as
# callers with static buffers do (CUDA graphs, exported programs), gets the first prompt's keys and values, so
# that the denoiser gives the first prompt's output. No warning. The same happens to whoever changes a text
# projection's weights, or edits it, between two calls: nothing but a reset makes the cache look again.
# Pipelines reset it at the end of a call; code that calls the denoiser itself must call disable_cache or
# _reset_stateful_cache.
#
# Expected: the outputs of the two prompts differ, and the second is that of the model without the cache.
# Seen:     first right: True; second right: False; second equals the first prompt's: True
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  torch==2.13.0 diffusers==0.42.1 transformers==5.23.0 numpy==2.4.6
"$folder/venv/bin/python" - 2>/dev/null <<'PYTHON' | tee "$folder/seen"
import torch
from diffusers import NucleusMoEImageTransformer2DModel
from diffusers.hooks import TextKVCacheConfig

torch.manual_seed(0)
model = NucleusMoEImageTransformer2DModel(
    patch_size=2, in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16,
    num_attention_heads=2, joint_attention_dim=32, axes_dims_rope=(4, 6, 6), moe_enabled=False,
    capacity_factors=2.0,
).eval()
for parameter in model.parameters():
    torch.nn.init.normal_(parameter, std=0.1)
picture, first, second = torch.randn(1, 16, 16), torch.randn(1, 5, 32), torch.randn(1, 5, 32)


@torch.no_grad()
def run(text):
    return model(
        hidden_states=picture, img_shapes=[(1, 4, 4)], encoder_hidden_states=text,
        encoder_hidden_states_mask=torch.ones(1, 5, dtype=torch.bool),
        timestep=torch.tensor([0.5]), return_dict=False,
    )[0]


right = run(first), run(second)
assert not torch.allclose(*right, atol=1e-5)
model.enable_cache(TextKVCacheConfig())
buffer = first.clone()
one = run(buffer)
buffer.copy_(second)
two = run(buffer)
same = [torch.allclose(a, b, atol=1e-5) for a, b in ((one, right[0]), (two, right[1]), (two, right[0]))]
print("first right: {}; second right: {}; second equals the first prompt's: {}".format(*same))
PYTHON
grep -qx "first right: True; second right: False; second equals the first prompt's: True" "$folder/seen"
