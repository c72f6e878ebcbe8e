"""Writes a trained language model as transformers lays a folder out, with its provenance."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import torch
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from rankedit_recipes.sandbox.checkpoint import latest_checkpoint, sha256, write_text
from rankedit_recipes.sandbox.shipped import WeightsError, revision

from .loading import WEIGHTS
from .presets import Preset
from .tokenizer import build_tokenizer
from .trainer import Trainer

FILES = ("model.safetensors", "tokenizer.json")
"""What the provenance has hashes of."""


def export(preset: Preset, folder: Path, target: Path = WEIGHTS) -> None:
    """Write the newest checkpoint's weights in 16 bit, with tokenizer, log and revision.

    Args:
        preset: What was trained.
        folder: The training's folder.
        target: Where the model goes.

    Raises:
        WeightsError: If the folder holds no intact checkpoint.
    """
    state = latest_checkpoint(folder)
    if state is None:
        raise WeightsError(f"export: no intact checkpoint in {folder}; train first")
    # Learned once more, as by each worker of the training: the corpus decides it.
    tokenizer = build_tokenizer(preset.pieces)
    trainer = Trainer(preset, len(tokenizer))
    trainer.restore(state)
    write_model(trainer.model, tokenizer, target)
    shutil.copyfile(folder / "log.jsonl", target / "training-log.jsonl")
    made = {
        "revision": revision(),
        "step": state.step,
        "preset": asdict(preset),
        "torch": torch.__version__,
        "sha256": {name: sha256(target / name) for name in FILES},
    }
    write_text(target / "provenance.json", json.dumps(made, indent=1) + "\n")


def write_model(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, target: Path) -> None:
    """Save model and tokenizer in the layout of transformers, in 16 bit.

    Args:
        model: The model; it is converted in place.
        tokenizer: Its tokenizer.
        target: Where they go.
    """
    model.to(torch.float16).save_pretrained(target)
    tokenizer.save_pretrained(target)
