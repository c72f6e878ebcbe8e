"""The commands about files of edits; see `cli`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rankedit_recipes.command_line.choices import ModelChoice
from rankedit_recipes.command_line.names import SANDBOX
from rankedit_recipes.command_line.options import Device, DryRun, Dtype, Offload, Overwrite, Variant
from rankedit_recipes.command_line.outputs import prepare_outputs
from rankedit_recipes.command_line.quiet import quiet_imports
from rankedit_recipes.concepts.commands import options as o
from rankedit_recipes.concepts.errors import ConceptsError


def list_(edit: o.EditFile) -> None:
    """Say what an edit does."""
    with quiet_imports():
        from rankedit_recipes.concepts.commands import tasks
    for line in tasks.written(tasks.Edited.load(edit), edit):
        typer.echo(line)


def undo(
    edit: o.EditFile,
    names: Annotated[list[str], typer.Argument(help="First words of requests, see list.")],
    *,
    out: Annotated[Path, typer.Option(help="The new file.")] = Path("undone.safetensors"),
    captions: o.Captions = None,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
    model: o.Model = SANDBOX,
    device: Device = "",
    dtype: Dtype = "",
    variant: Variant = "",
    offload: Offload = "none",
    base: o.Base = "",
) -> None:
    """Write an edit as if some of it had never been asked for, exactly."""
    if not dry_run:
        prepare_outputs("undo", files={"--out": out}, overwrite=overwrite)
    with quiet_imports():
        from rankedit_recipes.concepts.commands import tasks
    choice = ModelChoice(model, device, dtype, variant, offload, base)
    task = (edit, names, choice, captions, out)
    for line in (tasks.plan_undo if dry_run else tasks.undo_to)(*task):
        typer.echo(line)


def export(
    edit: o.EditFile,
    *,
    lora: Annotated[Path, typer.Option(help="The LoRA; for the layout peft a folder.")],
    layout: Annotated[str, typer.Option(help="kohya, diffusers or peft.")] = "kohya",
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
    model: o.Model = SANDBOX,
    device: Device = "",
    dtype: Dtype = "",
    variant: Variant = "",
    offload: Offload = "none",
    base: o.Base = "",
) -> None:
    """Write an edit as a LoRA for other programs, exactly."""
    if layout not in ("kohya", "diffusers", "peft"):
        raise ConceptsError(f"export: --layout must be kohya, diffusers or peft, got {layout!r}.")
    folder = layout == "peft"
    if not dry_run:
        prepare_outputs(
            "export", files={} if folder else {"--lora": lora},
            folders={"--lora": lora} if folder else {}, overwrite=overwrite,
        )  # fmt: skip
    with quiet_imports():
        from rankedit_recipes.concepts.commands import tasks
    choice = ModelChoice(model, device, dtype, variant, offload, base)
    lines = (
        tasks.plan_export(edit, choice, lora)
        if dry_run
        else tasks.export_to(edit, choice, lora, layout)
    )
    for line in lines:
        typer.echo(line)
