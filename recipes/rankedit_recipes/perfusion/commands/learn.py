"""The command that teaches; see `cli`."""

from __future__ import annotations

from pathlib import Path

import typer

from rankedit_recipes.command_line.choices import ModelChoice
from rankedit_recipes.command_line.names import SANDBOX
from rankedit_recipes.command_line.options import (
    ConfigFile,
    Device,
    DryRun,
    Dtype,
    Offload,
    Overwrite,
    PrintConfig,
    Setting,
    Variant,
)
from rankedit_recipes.command_line.outputs import prepare_outputs
from rankedit_recipes.command_line.quiet import quiet_imports
from rankedit_recipes.perfusion.commands.judging import chosen_scorer
from rankedit_recipes.perfusion.commands.options import (
    Base,
    Captions,
    CaptionStatistics,
    Category,
    ConceptFile,
    Judge,
    LearnSize,
    LearnSteps,
    Model,
    OptionalPhotos,
    Placeholder,
    Resume,
    Run,
    Seed,
    Vectors,
)
from rankedit_recipes.perfusion.commands.words import concept_file, derived_placeholder
from rankedit_recipes.perfusion.errors import PerfusionError


def learn(
    photos: OptionalPhotos = None,
    *,
    category: Category = "",
    placeholder: Placeholder = "",
    out: ConceptFile = None,
    model: Model = SANDBOX,
    captions: Captions = None,
    statistics: CaptionStatistics = None,
    config: ConfigFile = None,
    setting: Setting = None,
    steps: LearnSteps = None,
    size: LearnSize = None,
    vectors: Vectors = None,
    seed: Seed = None,
    run: Run = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    judge: Judge = "",
    print_config: PrintConfig = False,
    dry_run: DryRun = False,
    device: Device = "",
    dtype: Dtype = "",
    variant: Variant = "",
    offload: Offload = "none",
    base: Base = "",
) -> None:
    """Learn a concept from photos and write its file.

    Ctrl-C keeps the newest state; the same command with --resume goes on from it.
    """
    word, file = "", Path()
    if statistics is not None and captions is not None:
        raise PerfusionError("learn: give --captions or --statistics, not both.")
    # Settings can be asked for with no photos at hand.
    if not print_config:
        word, file = _check_needed(photos, category, placeholder, out)
    with quiet_imports():
        from rankedit_recipes.perfusion.commands import opening, tasks
    chosen = {"steps": steps, "size": size, "seed": seed, "vectors": vectors}
    settings = tasks.settings(opening.open_config(config, model), setting or [], chosen)
    if print_config:
        typer.echo(settings.to_toml(), nl=False)
        return
    task = tasks.learn_task(photos, word, category, settings, model)
    choice = ModelChoice(model, device, dtype, variant, offload, base)
    # What can be refused is refused in order of cost: words, photos, outputs, and then models.
    tasks.check_learnable(choice)
    if dry_run:
        for line in tasks.plan(opening.open_pipeline(choice), task):
            typer.echo(line)
        return
    folder = run or file.with_suffix(".run")
    # A run folder that is there may be the one to go on with: `check_run` decides.
    prepare_outputs("learn", files={"--out": file}, growing={"--run": folder}, overwrite=overwrite)
    tasks.check_run(folder, resume=resume)
    scorer = chosen_scorer(judge, model) if judge else None
    pipe = opening.open_pipeline(choice)
    given = statistics or opening.open_captions(captions, model)
    concept = tasks.learn_to(pipe, task, given, folder, scorer)
    # The run folder has it too, under a name that says nothing.
    concept.save(file)
    typer.echo(f"{file}: {file.stat().st_size:,} bytes; prompts say '{concept.phrase}'")


def _check_needed(
    photos: Path | None, category: str, placeholder: str, out: Path | None
) -> tuple[str, Path]:
    """The word and the file, before anything is imported that takes time."""
    if photos is None or not category.strip():
        raise PerfusionError(
            "learn: a folder of photos and --category are needed, for example: rankedit perfusion "
            "learn photos/bean --category cat."
        )
    if not photos.exists():
        raise PerfusionError(f"learn: there is no file or folder '{photos}'.")
    word = placeholder or derived_placeholder(photos, out)
    return word, out or concept_file(word)
