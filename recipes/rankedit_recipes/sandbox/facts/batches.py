"""Rows of tokens for a step; they depend on the seed and the step only, so a run can be resumed."""

import random
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from .knowledge import world
from .presets import Preset
from .writing import marked, text


class Batch(NamedTuple):
    """Rows of a step.

    Attributes:
        tokens: `[rows, length]`; every row begins with a new text.
        weights: `[rows, length]`, of the loss of each token: 1 in objects, less elsewhere.
    """

    tokens: Tensor
    weights: Tensor


def make_batch(
    preset: Preset, tokenizer: PreTrainedTokenizerFast, step: int, worker: int = 0
) -> Batch:
    """A worker's rows of a step: texts one after the other, cut at the row's end.

    Args:
        preset: How many rows, how long, and the seed.
        tokenizer: Puts the start token before each text.
        step: Number of the step.
        worker: Number of the worker. All workers' rows together are the same for any number.

    Returns:
        `batch / workers` rows.
    """
    share = preset.batch // preset.workers
    # Rows are numbered over all workers, so that a step has the same ones for any number of them.
    rows = [_row(preset, tokenizer, step, worker * share + index) for index in range(share)]
    tokens, weights = zip(*rows, strict=True)
    return Batch(torch.tensor(tokens), torch.tensor(weights))


def familiarity(preset: Preset, step: int) -> float:
    """How much the first subjects are preferred; falls to 1, which is not at all.

    Args:
        preset: Settings.
        step: Number of the step.

    Returns:
        What `text` asks for.
    """
    left = max(0.0, 1 - step / max(1.0, preset.familiar_for * preset.steps))
    return 1 + (preset.familiar - 1) * left


def _row(
    preset: Preset, tokenizer: PreTrainedTokenizerFast, step: int, row: int
) -> tuple[list[int], list[float]]:
    # `random` seeds by a string's SHA-512, which is the same in every process, unlike its `hash`.
    rng, familiar = random.Random(f"row {preset.seed} {step} {row}"), familiarity(preset, step)
    tokens, weights = list[int](), list[float]()
    # Packed, not padded. Attention is not cut between texts: the start token tells that a new one
    # begins, as it does wherever the model is used.
    while len(tokens) < preset.length:
        said, objects = marked(text(world(), rng, familiar=familiar))
        told = tokenizer(said, return_offsets_mapping=True)
        tokens += told["input_ids"]
        for first, last in told["offset_mapping"]:
            # `first < last` leaves out the start token, whose offsets are (0, 0).
            inside = any(start <= first < last <= end for start, end in objects)
            weights.append(1.0 if inside else preset.other_weight)
    return tokens[: preset.length], weights[: preset.length]
