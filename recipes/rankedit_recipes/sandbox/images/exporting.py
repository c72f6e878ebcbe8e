"""Writes the averaged weights of a training as a diffusers pipeline with its provenance."""

import json
import os
import shutil
import tarfile
from dataclasses import asdict
from pathlib import Path

import torch
from diffusers import DiffusionPipeline

from rankedit_recipes.sandbox.checkpoint import latest_checkpoint, sha256, write_text
from rankedit_recipes.sandbox.shipped import revision

from .loading import JOINT_WEIGHTS, WEIGHTS, WeightsError, files_of
from .presets import Preset
from .samples import save_samples
from .starting import as_told, pictures_of, training_of
from .training import Training


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
    # The end may have been set on the way; the log tells it.
    trainer.preset = as_told(preset, folder / "log.jsonl")
    write_pipeline(trainer.pipeline(), target)
    save_samples(trainer, target / "samples.png")
    shutil.copyfile(folder / "log.jsonl", target / "training-log.jsonl")
    _write_provenance(trainer, target)


def _write_provenance(trainer: Training, target: Path) -> None:
    made = {
        "revision": revision(),
        "step": trainer.step,
        "preset": asdict(trainer.preset),
        "torch": torch.__version__,
        "sha256": {name: sha256(target / file) for name, file in files_of(target).items()},
    }
    write_text(target / "provenance.json", json.dumps(made, indent=1) + "\n")


def hand_over(trainer: Training, folder: Path, out: Path) -> None:
    """Write what a training has reached as few files: `weights.tar` and `log.jsonl`.

    Args:
        trainer: The training, whose newest line is in its log.
        folder: The training's folder; the pipeline is written to `weights` there.
        out: Where the files go, each replaced in one step.
    """
    target = folder / "weights"
    write_pipeline(trainer.pipeline(), target)
    _write_provenance(trainer, target)
    shutil.copyfile(folder / "log.jsonl", target / "training-log.jsonl")
    out.mkdir(parents=True, exist_ok=True)
    scratch = out / f".weights.{os.getpid()}"
    with tarfile.open(scratch, "w") as archive:
        archive.add(target, "weights")
    scratch.replace(out / "weights.tar")
    write_text(out / "log.jsonl", (folder / "log.jsonl").read_text())


def write_pipeline(pipe: DiffusionPipeline, target: Path) -> None:
    """Save a pipeline's parts in 16 bit, in the layout of diffusers.

    Args:
        pipe: The pipeline; it is converted in place.
        target: Where it goes.
    """
    pipe.to(torch.float16)
    pipe.save_pretrained(target, safe_serialization=True)
