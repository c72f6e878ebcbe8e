"""Rows of tokens for a step; they depend on the seed and the step only, so a run can be resumed."""

import random

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from .knowledge import world
from .presets import Preset
from .writing import text


def make_batch(preset: Preset, tokenizer: PreTrainedTokenizerFast, step: int) -> Tensor:
    """The rows of a step: texts one after the other, cut at the row's end.

    Args:
        preset: How many rows, how long, and the seed.
        tokenizer: Puts the start token before each text.
        step: Number of the step.

    Returns:
        Tokens `[batch, length]`; every row begins with a new text.
    """
    rng, known = random.Random(f"batch {preset.seed} {step}"), world()
    rows = []
    for _ in range(preset.batch):
        row: list[int] = []
        while len(row) < preset.length:
            row += tokenizer(text(known, rng))["input_ids"]
        rows.append(row[: preset.length])
    return torch.tensor(rows)
