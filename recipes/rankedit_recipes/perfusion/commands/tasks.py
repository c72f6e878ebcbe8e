"""What the command that teaches does, without the command line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import rankedit as rk
from rankedit_recipes.command_line.choices import ModelChoice
from rankedit_recipes.command_line.errors import CommandError
from rankedit_recipes.command_line.pairs import parsed_pairs
from rankedit_recipes.diffusion.parts import Parts
from rankedit_recipes.diffusion.scoring import Scorer
from rankedit_recipes.diffusion.statistics import load_moment, save_moment, second_moment
from rankedit_recipes.diffusion.text import Pipeline, Tokens
from rankedit_recipes.perfusion.commands.opening import check_category
from rankedit_recipes.perfusion.concept import Concept
from rankedit_recipes.perfusion.errors import PerfusionError
from rankedit_recipes.perfusion.learning.config import Config
from rankedit_recipes.perfusion.learning.photos import load_photos
from rankedit_recipes.perfusion.learning.planning import LearnTask, check_words, plan
from rankedit_recipes.perfusion.learning.training import CHECKPOINT, learn
from rankedit_recipes.perfusion.learning.validation import Validation

# For the command `learn`, which imports this module alone.
__all__ = ["LearnTask", "plan"]


def settings(config: Config, pairs: Sequence[str], given: Mapping[str, Any]) -> Config:
    """A configuration with what was typed: pairs first, options of their own on top.

    Raises:
        PerfusionError: an unknown setting, or one of another type or out of range.
    """
    changes = parsed_pairs(pairs, "learn", PerfusionError)
    changes |= {name: value for name, value in given.items() if value is not None}
    return config.changed(changes)


def learn_task(
    photos: Path | None, placeholder: str, category: str, config: Config, model: str
) -> LearnTask:
    """What is to be learned; photos and words are looked at before a model is opened.

    Raises:
        PerfusionError: no photo can be used, or the sandbox does not know the category.
    """
    check_category(category, model)
    return LearnTask(load_photos(photos or ""), placeholder, category, config)


def check_learnable(choice: ModelChoice) -> None:
    """Refuse, before a model is loaded, a way of loading it in which nothing can be learned.

    Raises:
        CommandError: says what to give instead.
    """
    # `learn` refuses this too, by then with the model in memory.
    if choice.dtype == "float16":
        raise CommandError(
            "learn: in --dtype float16 the small gradients of a picture vanish; give --dtype "
            "bfloat16, which takes no more memory, or float32. Pictures may be made in float16."
        )
    if choice.offload == "model":
        raise CommandError(
            "learn: with --offload model the text encoder is gone from the device when its "
            "gradients are computed; give --offload sequential, or --set checkpointing=true and "
            "--set batch=1 to save memory."
        )


def check_run(folder: Path, *, resume: bool) -> None:
    """Refuse to mix trainings.

    Raises:
        PerfusionError: there is a training and `resume` was not asked for, or the other way round.
    """
    # By the checkpoint and not by the folder, which may hold statistics of an attempt that failed.
    exists = (folder / CHECKPOINT).exists()
    if exists and not resume:
        raise PerfusionError(
            f"learn: '{folder}' holds a training; add --resume to go on with it, or choose another "
            "--run folder."
        )
    if resume and not exists:
        raise PerfusionError(f"learn: there is nothing to resume in '{folder}'.")


def stats_to(
    pipe: Pipeline, captions: Sequence[str], tokens: Tokens, shard: rk.Shard | None, out: Path
) -> Iterator[str]:
    """Collect statistics of captions, or of one shard of them, and write them."""
    moment = second_moment(pipe, captions, tokens=tokens, shard=shard)
    save_moment(moment, out, shard)
    rank = f"effective rank {moment.effective_rank:.1f} of {moment.dim}"
    yield f"{out}: {moment.count:,.0f} tokens, {rank}; {moment.provenance.corpus}"


def learn_to(
    pipe: Pipeline,
    task: LearnTask,
    captions: Sequence[str] | Path,
    folder: Path,
    scorer: Scorer | None,
) -> Concept:
    """`learn` with checkpoints in a folder; captions, or the file of their statistics."""
    # Before statistics are collected, which takes longer than all refusals.
    check_words(Parts(pipe), task)
    tokens = task.config.tokens
    moment = (
        load_moment(captions, pipe, tokens)
        if isinstance(captions, Path)
        # In the run folder: going on does not collect them again.
        else second_moment(pipe, captions, tokens=tokens, cache=folder)
    )
    return learn(
        pipe,
        task.photos,
        placeholder=task.placeholder,
        category=task.category,
        statistics=moment,
        config=task.config,
        validation=None if scorer is None else Validation(scorer),
        run=folder,
    )
