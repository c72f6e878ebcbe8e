"""Writes the averaged weights of a training as a diffusers pipeline with its provenance."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import torch
from diffusers import DiffusionPipeline

from rankedit_recipes.sandbox.checkpoint import latest_checkpoint, sha256, write_text
from rankedit_recipes.sandbox.shipped import revision

from .loading import JOINT_WEIGHTS, WEIGHTS, WeightsError, files_of
from .presets import Preset
from .run import pictures_of, training_of
from .samples import save_samples


def export(preset: Preset, folder: Path, target: Path | None = None) -> None:
    """Write the newest checkpoint's averaged weights in 16 bit, with log, revision and grid.

    Args:
        preset: What was trained.
        folder: The training's folder.
        target: Where the pipeline goes; by default where its kind is looked for.

    Raises:
        WeightsError: If the folder holds no intact checkpoint.
    """
    state = latest_checkpoint(folder)
    if state is None:
        raise WeightsError(f"export: no intact checkpoint in {folder}; train first")
    target = target or (WEIGHTS if preset.base == "unet" else JOINT_WEIGHTS)
    # Its pictures decide the autoencoder of checkpoints of earlier versions, which hold none.
    trainer = training_of(preset, pictures_of(preset, folder))
    trainer.restore(state)
    write_pipeline(trainer.pipeline(), target)
    save_samples(trainer, target / "samples.png")
    shutil.copyfile(folder / "log.jsonl", target / "training-log.jsonl")
    made = {
        "revision": revision(),
        "step": state.step,
        "preset": asdict(preset),
        "torch": torch.__version__,
        "sha256": {name: sha256(target / file) for name, file in files_of(target).items()},
    }
    write_text(target / "provenance.json", json.dumps(made, indent=1) + "\n")


def write_pipeline(pipe: DiffusionPipeline, target: Path) -> None:
    """Save a pipeline's parts in 16 bit, in the layout of diffusers.

    Args:
        pipe: The pipeline; it is converted in place.
        target: Where it goes.
    """
    pipe.to(torch.float16)
    pipe.save_pretrained(target, safe_serialization=True)
