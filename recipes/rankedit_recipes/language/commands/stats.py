"""The command that collects statistics; see `cli`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rankedit_recipes.command_line.choices import ModelChoice
from rankedit_recipes.command_line.names import SANDBOX
from rankedit_recipes.command_line.options import (
    Device,
    DryRun,
    Dtype,
    Offload,
    Overwrite,
    Variant,
)
from rankedit_recipes.command_line.outputs import prepare_outputs
from rankedit_recipes.command_line.quiet import quiet_imports
from rankedit_recipes.command_line.shards import ShardText, file_of, local_device, parsed_shard
from rankedit_recipes.language.commands.options import Jsonl, Layers, Model
from rankedit_recipes.language.errors import LanguageError


def stats(
    texts: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Files of text, or folders; - for the standard input; the sandbox has its own."
        ),
    ] = None,
    *,
    model: Model = SANDBOX,
    out: Annotated[Path, typer.Option(help="Where they go.")] = Path("statistics.safetensors"),
    overwrite: Overwrite = False,
    shard: ShardText = "",
    layers: Layers = "",
    count: Annotated[
        int, typer.Option(min=0, help="Texts at most, of all shards together; 0 for all.")
    ] = 0,
    jsonl: Jsonl = False,
    batch: Annotated[int, typer.Option(help="Texts run together.")] = 16,
    length: Annotated[int, typer.Option(help="Tokens of a text at most; 0 for the model's.")] = 0,
    dry_run: DryRun = False,
    device: Device = "",
    dtype: Dtype = "",
    variant: Variant = "",
    offload: Offload = "none",
) -> None:
    """Collect what the projections read, all layers in one pass over your text.

    Prints whether the text sufficed. Interrupted, the same command goes on where it stopped. Many
    processes take a part each by --shard; `rankedit stats merge` adds them.
    """
    if not texts and model != SANDBOX and not dry_run:
        raise LanguageError(
            "stats: give texts, as files of one text on each line or as folders of them; only the "
            "sandbox has a corpus of its own."
        )
    # typer's own check takes - for the name of a file.
    for path in texts or []:
        if str(path) != "-" and not path.exists():
            raise LanguageError(f"stats: '{path}' does not exist; give a file or a folder of text.")
    part = parsed_shard(shard)
    out = file_of(out, part)
    # A plan writes nothing, so that nothing stands in its way.
    if not dry_run:
        prepare_outputs("stats", files={"--out": out}, overwrite=overwrite)
    with quiet_imports():
        from rankedit_recipes.language.commands import fitting, measuring, opening, tasks

    choice = ModelChoice(model, local_device(device, shard), dtype, variant, offload)
    if dry_run:
        for line in fitting.statistics_plan(choice, tasks.parsed_layers(layers), part):
            typer.echo(line)
        return
    sizes = measuring.Sizes(count, batch, length, part)
    source = measuring.stats_source(texts or [], model, sizes, jsonl=jsonl)
    told = ", ".join(map(str, texts or [])) or model, tasks.parsed_layers(layers), sizes, out
    for line in measuring.stats_to(opening.open_model(choice), source, *told):
        typer.echo(line)
