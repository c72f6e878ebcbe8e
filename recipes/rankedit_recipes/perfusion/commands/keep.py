"""The commands about concept files; see `cli`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rankedit_recipes.command_line.choices import ModelChoice
from rankedit_recipes.command_line.names import SANDBOX
from rankedit_recipes.command_line.options import (
    Device,
    Dtype,
    Offload,
    Overwrite,
    Variant,
)
from rankedit_recipes.command_line.outputs import prepare_outputs
from rankedit_recipes.command_line.quiet import quiet_imports
from rankedit_recipes.perfusion.commands.options import (
    Base,
    Model,
    OneConcept,
)
from rankedit_recipes.perfusion.commands.words import concept_file
from rankedit_recipes.perfusion.errors import PerfusionError


def export(
    concept: OneConcept,
    *,
    embedding: Annotated[
        Path | None, typer.Option(help="Textual-inversion file.", show_default="none")
    ] = None,
    lora: Annotated[
        Path | None,
        typer.Option(
            help="LoRA of the linearised edit; for the layout peft a folder.", show_default="none"
        ),
    ] = None,
    layout: Annotated[str, typer.Option(help="Of the LoRA: kohya, diffusers or peft.")] = "kohya",
    overwrite: Overwrite = False,
    model: Model = SANDBOX,
    device: Device = "",
    dtype: Dtype = "",
    variant: Variant = "",
    offload: Offload = "none",
    base: Base = "",
) -> None:
    """Write a concept for other programs: its word, and a LoRA that approximates its edit."""
    if embedding is None and lora is None:
        raise PerfusionError("export: say what to write: --embedding FILE, --lora FILE, or both.")
    if layout not in ("kohya", "diffusers", "peft"):
        raise PerfusionError(f"export: --layout must be kohya, diffusers or peft, got {layout!r}.")
    # PEFT has a folder for each adapter, the other layouts one file.
    loras = {"--lora": lora}
    prepare_outputs(
        "export", files={"--embedding": embedding, **({} if layout == "peft" else loras)},
        folders=loras if layout == "peft" else {}, overwrite=overwrite,
    )  # fmt: skip
    with quiet_imports():
        from rankedit_recipes.perfusion.commands import files, opening
    choice = ModelChoice(model, device, dtype, variant, offload, base)
    # The word's file needs no model, which takes minutes to load.
    pipe = None if lora is None else opening.open_pipeline(choice)
    for line in files.export_to(pipe, concept, embedding, lora, layout):
        typer.echo(line)


def rename(
    concept: OneConcept,
    *,
    placeholder: Annotated[str, typer.Option(help="The other word, in angle brackets.")],
    out: Annotated[
        Path | None,
        typer.Option(help="The new concept file.", show_default="PLACEHOLDER.safetensors"),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Give a concept another word, so that it can stand beside one that has the same."""
    file = out or concept_file(placeholder)
    prepare_outputs("rename", files={"--out": file}, overwrite=overwrite)
    with quiet_imports():
        from rankedit_recipes.perfusion.commands import files
    for line in files.renamed_to(concept, placeholder, file):
        typer.echo(line)


def info(concept: OneConcept) -> None:
    """Say what a concept file holds."""
    with quiet_imports():
        from rankedit_recipes.perfusion.commands import files
    for line in files.described(concept):
        typer.echo(line)
