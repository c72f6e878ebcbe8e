"""Reads the shipped language model: lazily, offline, and with words when a file is broken."""

from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from rankedit_recipes.sandbox.shipped import fill, read_config

from .model import TIED

WEIGHTS = Path(__file__).parent / "weights"
"""The model that comes with the package, as transformers lays a folder out."""

REBUILD = (
    "python -m rankedit_recipes.sandbox.facts.train --export --target FIRST && "
    "python -m rankedit_recipes.sandbox.facts.settling FIRST"
)
"""Makes the weights, in the two stages that the shipped ones had."""


def load_model(
    folder: Path | None = None, *, dtype: torch.dtype = torch.float32
) -> GPT2LMHeadModel:
    """The language model that knows the world of facts.

    Args:
        folder: A folder that a training exported; the shipped one by default.
        dtype: Precision of the weights in memory; on disk they have 16 bit.

    Returns:
        A fresh model on the processor, ready for use. Nothing is downloaded.

    Raises:
        WeightsError: If a file is missing or broken; the message names it and the command that
            rebuilds it.
    """
    folder = WEIGHTS if folder is None else folder
    config = GPT2Config(**read_config(folder / "config.json", REBUILD))
    # Random starting values are drawn and thrown away; the caller's generator must not notice.
    with torch.random.fork_rng(devices=[]):
        model = GPT2LMHeadModel(config)
    # As in `build_model`: the configuration that was read does not say it.
    model.generation_config.pad_token_id = 0
    fill(model, folder / "model.safetensors", REBUILD, tied=TIED)
    return model.to(dtype)


def load_tokenizer(folder: Path | None = None) -> PreTrainedTokenizerFast:
    """The language model's tokenizer.

    Args:
        folder: A folder that a training exported; the shipped one by default.

    Returns:
        The tokenizer. It puts `<|endoftext|>` before each text and knows offsets.

    Raises:
        WeightsError: If a file is missing or broken.
    """
    folder = WEIGHTS if folder is None else folder
    # Read only to refuse a missing or broken file in words that name the remedy; transformers reads
    # both by itself.
    for name in ("tokenizer.json", "tokenizer_config.json"):
        read_config(folder / name, REBUILD)
    return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
