"""The command that collects statistics of captions apart from learning; see `cli`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rankedit_recipes.command_line.choices import ModelChoice
from rankedit_recipes.command_line.names import SANDBOX
from rankedit_recipes.command_line.options import Device, Dtype, Offload, Overwrite, Variant
from rankedit_recipes.command_line.outputs import prepare_outputs
from rankedit_recipes.command_line.quiet import quiet_imports
from rankedit_recipes.command_line.shards import (
    ShardText,
    file_of,
    glob_of,
    local_device,
    parsed_shard,
)
from rankedit_recipes.perfusion.commands.options import Base, Captions, CountedTokens, Model


def stats(
    captions: Captions = None,
    *,
    out: Annotated[Path, typer.Option(help="Where they go.")] = Path("captions.safetensors"),
    model: Model = SANDBOX,
    tokens: CountedTokens = "all",
    shard: ShardText = "",
    overwrite: Overwrite = False,
    device: Device = "",
    dtype: Dtype = "",
    variant: Variant = "",
    offload: Offload = "none",
    base: Base = "",
) -> None:
    """Collect what cross-attention reads of captions, once for all concepts of a model.

    With --shard, many processes take a part each; `rankedit stats merge` adds them.
    """
    part = parsed_shard(shard)
    out = file_of(out, part)
    prepare_outputs("stats", files={"--out": out}, overwrite=overwrite)
    with quiet_imports():
        from rankedit_recipes.perfusion.commands import opening, tasks
    texts = opening.open_captions(captions, model)
    choice = ModelChoice(model, local_device(device, shard), dtype, variant, offload, base)
    for line in tasks.stats_to(opening.open_pipeline(choice), texts, tokens, part, out):
        typer.echo(line)
    if part is not None:
        typer.echo(
            f"shard {part}: when all are there, rankedit stats merge {glob_of(out, part)} "
            "--out FILE"
        )
