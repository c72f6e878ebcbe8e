"""The commands that edit; see `cli`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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
from rankedit_recipes.concepts.commands import options as o
from rankedit_recipes.concepts.errors import ConceptsError
from rankedit_recipes.concepts.requests import Request
from rankedit_recipes.concepts.requests import erase as erase_request
from rankedit_recipes.concepts.requests import hold as hold_request
from rankedit_recipes.concepts.requests import replace as replace_request

_OUT = Path("concepts.safetensors")


def erase(
    words: o.Words,
    *,
    to: o.To = None,
    hold: o.Hold = None,
    about: o.AboutOption = "thing",
    context: o.Context = None,
    method: o.Method = None,
    captions: o.Captions = None,
    onto: o.Onto = None,
    gate: o.Gate = False,
    out: o.Out = _OUT,
    config: ConfigFile = None,
    set_: Setting = None,
    print_config: PrintConfig = False,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
    model: o.Model = SANDBOX,
    device: Device = "",
    dtype: Dtype = "",
    variant: Variant = "",
    offload: Offload = "none",
    base: o.Base = "",
) -> None:
    """Take a concept out of what a model makes."""
    request = erase_request(*words, to=to or (), about=about, contexts=context or ())
    choice = ModelChoice(model, device, dtype, variant, offload, base)
    _edit(
        "erase", request, hold, choice, captions, onto, out, (method, config, set_ or []),
        gate=gate, print_config=print_config, dry_run=dry_run, overwrite=overwrite,
    )  # fmt: skip


def replace(
    word: Annotated[str, typer.Argument(help="A word or phrase.")],
    by: Annotated[str, typer.Argument(help="What it is to mean.")],
    *,
    hold: o.Hold = None,
    about: o.AboutOption = "thing",
    context: o.Context = None,
    method: o.Method = None,
    captions: o.Captions = None,
    onto: o.Onto = None,
    gate: o.Gate = False,
    out: o.Out = _OUT,
    config: ConfigFile = None,
    set_: Setting = None,
    print_config: PrintConfig = False,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
    model: o.Model = SANDBOX,
    device: Device = "",
    dtype: Dtype = "",
    variant: Variant = "",
    offload: Offload = "none",
    base: o.Base = "",
) -> None:
    """Let a word mean another one."""
    request = replace_request(word, by, about=about, contexts=context or ())
    choice = ModelChoice(model, device, dtype, variant, offload, base)
    _edit(
        "replace", request, hold, choice, captions, onto, out, (method, config, set_ or []),
        gate=gate, print_config=print_config, dry_run=dry_run, overwrite=overwrite,
    )  # fmt: skip


def _edit(
    command: str,
    request: Request,
    hold: list[str] | None,
    choice: ModelChoice,
    captions: Path | None,
    onto: Path | None,
    out: Path,
    method: tuple[str | None, Path | None, list[str]],
    *,
    gate: bool,
    print_config: bool,
    dry_run: bool,
    overwrite: bool,
) -> None:
    requests = [request, *([hold_request(*hold)] if hold else [])]
    with quiet_imports():
        from rankedit_recipes.concepts.commands import tasks
    settings = tasks.settings_from(*method)
    if onto is not None:
        asked, settings = settings, tasks.Edited.load(onto).settings
        if asked != settings and any(method):
            raise ConceptsError(
                f"{command}: --onto goes on with the method {settings.method!r} and the settings "
                f"of '{onto}', and others were given; leave out --method, --config and --set, or "
                "begin another edit."
            )
    if print_config:
        typer.echo(tasks.as_toml(settings))
        return
    task = tasks.EditTask(requests, settings, choice, captions, onto, out, gate)
    if not dry_run:
        prepare_outputs(command, files={"--out": out}, overwrite=overwrite)
    for line in tasks.plan(task) if dry_run else tasks.edit_to(task):
        typer.echo(line)
