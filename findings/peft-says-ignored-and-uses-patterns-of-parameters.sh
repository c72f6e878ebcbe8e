#!/usr/bin/env bash
# PEFT 0.21.2, LoRA on parameters (`target_parameters`, the way to adapt the fused experts of transformers 5):
# `rank_pattern` and `alpha_pattern` with the name of a parameter take effect, and PEFT warns that these keys
# "did not match any targeted module and were ignored". Who believes the warning and takes the keys out, or
# reads such a file by the common rank and alpha alone, gets another strength: here 2 in place of 8.
#
# Expected: no warning, or rank 4 and scale 2 for both parameters, as the warning says.
# Seen:     said to be ignored: True; down_proj: rank 2, scale 8.0; up_proj: rank 4, scale 2.0
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  torch==2.13.0 peft==0.21.2 transformers==5.23.0 accelerate numpy==2.4.6
"$folder/venv/bin/python" - 2>/dev/null <<'PYTHON' | tee "$folder/seen"
import warnings

import torch
from peft import LoraConfig, get_peft_model
from torch import nn


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.down_proj = nn.Parameter(torch.randn(3, 8, 6))  # experts, out, in
        self.up_proj = nn.Parameter(torch.randn(3, 6, 8))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.experts = Experts()


names = ["experts.down_proj", "experts.up_proj"]
config = LoraConfig(
    r=4, lora_alpha=8, target_modules=[], target_parameters=names,
    rank_pattern={"experts.down_proj": 2}, alpha_pattern={"experts.down_proj": 16},
)
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    model = get_peft_model(Block(), config)
ignored = [kind for kind in ("rank_pattern", "alpha_pattern")
           if any(f"{kind} keys did not match" in str(w.message) and "ignored" in str(w.message) for w in seen)]
found = {part.parameter_name: part for part in model.modules() if hasattr(part, "parameter_name")}
told = [f"{n}: rank {found[n].r['default']}, scale {found[n].scaling['default']}" for n in ("down_proj", "up_proj")]
print(f"said to be ignored: {len(ignored) == 2}; {'; '.join(told)}")
PYTHON
grep -qx "said to be ignored: True; down_proj: rank 2, scale 8.0; up_proj: rank 4, scale 2.0" "$folder/seen"
