"""How a training begins or goes on: its pictures, its weights, and the end it was given."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from rankedit_recipes.sandbox.checkpoint import keep_lines, latest_checkpoint

from .batches import make_batch, singles_of
from .cache import Drawn, drawn_pictures
from .fitting import ResumeError
from .joint_trainer import JointTrainer
from .pace import OPEN
from .presets import Preset
from .trainer import Trainer
from .training import Training


def pictures_of(preset: Preset, folder: Path, processes: int = 2) -> Drawn:
    """The pictures that a training sees.

    Args:
        preset: Settings.
        folder: The training's folder.
        processes: At least so many processes draw.

    Returns:
        The pictures; drawn on the first call.
    """
    return drawn_pictures(
        folder / "cache",
        seed=preset.seed,
        count=preset.pictures,
        singles=singles_of(preset),
        size=preset.size,
        patch=preset.patch,
        workers=max(processes, preset.workers),
        skinned=preset.skinned,
    )


def training_of(preset: Preset, drawn: Drawn) -> Training:
    """The training that a preset asks for, not yet begun.

    Args:
        preset: Settings.
        drawn: Its pictures.

    Returns:
        The training.

    Raises:
        ValueError: If the preset's base is unknown.
    """
    if preset.base not in ("unet", "joint"):
        raise ValueError(f"train: expected a base of 'unet' or 'joint', got {preset.base!r}")
    return Trainer(preset, drawn) if preset.base == "unet" else JointTrainer(preset, drawn)


def as_told(preset: Preset, log: Path) -> Preset:
    """Settings with the end that a training was given last.

    Args:
        preset: What is asked for now.
        log: The training's log.

    Returns:
        The settings, with the log's steps and decay if it tells them.
    """
    lines = log.read_text().splitlines() if log.exists() else []
    told = [entry["preset"] for entry in map(json.loads, lines) if "preset" in entry]
    return replace(preset, steps=told[-1]["steps"], decay=told[-1]["decay"]) if told else preset


def check_stage(preset: Preset, log: Path, step: int) -> None:
    """Refuse another end once the rate falls: no single run could repeat such a training.

    Args:
        preset: What is asked for now.
        log: The training's log, which tells what was asked for before.
        step: Steps done.

    Raises:
        ResumeError: If the end changed and by either one the rate falls by now.
    """
    # Lines that a kill cut off are dropped here too, and for good when the log is opened.
    keep_lines(log, lambda _: True)
    before = as_told(preset, log)
    if before != preset and step > min(before.level_steps, preset.level_steps):
        raise ResumeError(
            f"train: {log.parent} is at step {step}; with --steps {before.steps} --decay "
            f"{before.decay} its rate falls from step {before.level_steps} on, and with --steps "
            f"{preset.steps} --decay {preset.decay} from {preset.level_steps}. The end can be set "
            f"while both are ahead; give values with (1 - decay) * steps >= {step}, or those of "
            "before"
        )


def start(preset: Preset, folder: Path, init_from: Path | None, drawn: Drawn) -> Training:
    """A training from the newest intact checkpoint, or from its beginning.

    Args:
        preset: Settings.
        folder: The training's folder.
        init_from: Folder of a pipeline that a beginning takes its weights from, or None.
        drawn: Its pictures.

    Returns:
        The training, ready for its next step.
    """
    trainer = training_of(preset, drawn)
    state = latest_checkpoint(folder)
    if state is not None:
        trainer.restore(state)
    else:
        trainer.begin(init_from)
    trainer.choose_precision(folder, make_batch(preset, drawn, trainer.tokenizer, 0))
    return trainer


def with_open_end(preset: Preset, log: Path, step: int) -> Preset:
    """Settings of a training whose end is set by time, with the end that it has.

    Args:
        preset: What is asked for.
        log: The training's log.
        step: Steps done.

    Returns:
        The settings: with the end that was set up to this step, or with none.
    """
    # An end that was set later than this step was set in steps that are done again.
    keep_lines(log, lambda entry: done_by(entry) <= step)
    return as_told(replace(preset, steps=OPEN), log) if step else replace(preset, steps=OPEN)


def done_by(entry: dict[str, Any]) -> int:
    """Steps done when a line of the log was written."""
    return int(entry.get("step", entry.get("from_step", 0)))
