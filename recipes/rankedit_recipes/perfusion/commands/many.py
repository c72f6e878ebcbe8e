"""The command that teaches many concepts; see `cli`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rankedit.atomic import atomic_write
from rankedit_recipes.command_line.choices import ModelChoice
from rankedit_recipes.command_line.names import SANDBOX
from rankedit_recipes.command_line.options import (
    ConfigFile,
    Device,
    Dtype,
    Offload,
    Setting,
    Variant,
)
from rankedit_recipes.command_line.outputs import prepare_outputs
from rankedit_recipes.command_line.quiet import quiet_imports
from rankedit_recipes.command_line.shards import local_device, parsed_shard
from rankedit_recipes.perfusion.commands.judging import chosen_scorer
from rankedit_recipes.perfusion.commands.options import (
    Base,
    Captions,
    CaptionStatistics,
    Judge,
    Model,
)
from rankedit_recipes.perfusion.errors import PerfusionError


def learn_many(
    concepts: Annotated[
        Path,
        typer.Argument(
            help='TOML file: \\[bean], below it photos = "photos/bean" and category = "cat".',
            exists=True,
            dir_okay=False,
        ),
    ],
    *,
    out: Annotated[Path, typer.Option(help="Folder of concepts and their table.")] = Path(
        "concepts"
    ),
    model: Model = SANDBOX,
    shard: Annotated[
        str,
        typer.Option(
            help="Part of the concepts, such as 1/8, or 'auto' in torchrun, accelerate and Slurm.",
            show_default="all of them",
        ),
    ] = "",
    captions: Captions = None,
    statistics: CaptionStatistics = None,
    config: ConfigFile = None,
    setting: Setting = None,
    judge: Judge = "",
    device: Device = "",
    dtype: Dtype = "",
    variant: Variant = "",
    offload: Offload = "none",
    base: Base = "",
) -> None:
    """Learn the concepts of a list, a part of them in each process, with one table of all.

    The same command goes on: what is there is not learned again.
    """
    if statistics is not None and captions is not None:
        raise PerfusionError("learn-many: give --captions or --statistics, not both.")
    part = parsed_shard(shard)
    prepare_outputs("learn-many", growing={"--out": out})
    with quiet_imports():
        from rankedit_recipes.perfusion.commands import opening, studying, tasks
    choice = ModelChoice(model, local_device(device, shard), dtype, variant, offload, base)
    tasks.check_learnable(choice)
    wanted = studying.read_list(concepts, model)
    study = studying.Study(
        out,
        tasks.settings(opening.open_config(config, model), setting or [], {}),
        statistics or opening.open_captions(captions, model),
        chosen_scorer(judge, model) if judge else None,
    )
    # Before the model is opened: settings, and results of another list.
    for each in wanted:
        study.row_of(each)
        study.config_of(each)
    own = [each for number, each in enumerate(wanted) if part is None or part.takes(number)]
    try:
        if own:
            for line in studying.learn_all(opening.open_pipeline(choice), own, study):
                typer.echo(line)
    finally:
        # Whoever ends last writes it whole.
        text = studying.table(wanted, study)
        with atomic_write(out / "table.md") as aside:
            aside.write_text(text + "\n", encoding="utf-8")
    typer.echo(text)
