"""The command that steers shares; see `cli`."""

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
from rankedit_recipes.concepts.requests import balance
from rankedit_recipes.concepts.requests import hold as hold_request


def debias(
    words: o.Words,
    *,
    share: o.Share,
    hold: o.Hold = None,
    context: o.Context = None,
    method: o.Method = None,
    captions: o.Captions = None,
    judge: o.Judge = "",
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            help="A prompt with one {}, whose pictures are judged; repeat.",
            show_default="the concept's contexts",
        ),
    ] = None,
    pictures: Annotated[int, typer.Option(help="Pictures in each round.", min=1)] = 24,
    rounds: Annotated[int, typer.Option(help="Rounds at most.", min=1)] = 10,
    step: Annotated[
        float, typer.Option(help="How far a share that is missed moves the concept.")
    ] = 1.0,
    tolerance: Annotated[float, typer.Option(help="Of a share that counts as met.")] = 0.05,
    seed: Annotated[int, typer.Option(help="Seed of the first picture.")] = 0,
    sampling_steps: o.SamplingSteps = 25,
    guidance: o.Guidance = 6.0,
    out: o.Out = Path("debiased.safetensors"),
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the edit in --out, interrupted or not.")
    ] = False,
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
    """Let pictures of a concept show attributes in given shares, by measuring them in rounds.

    Ctrl-C keeps the best round; the same command with --resume goes on from it.
    """
    request = balance(words, _shares(share), contexts=context or ())
    o.check_judge("debias", judge, model)
    with quiet_imports():
        from rankedit_recipes.concepts.commands import steering
    settings = steering.settings_from(method, config, set_ or [])
    if print_config:
        typer.echo(steering.as_toml(settings))
        return
    task = steering.DebiasTask(
        [request, *([hold_request(*hold)] if hold else [])], settings,
        ModelChoice(model, device, dtype, variant, offload, base), captions, judge,
        steering.Steering(
            pictures, tuple(prompt or ()), rounds, step, tolerance, seed,
            steering.Sampling(steps=sampling_steps, guidance=guidance),
        ),
        out,
    )  # fmt: skip
    task = steering.resumed(task) if resume else task
    if not dry_run:
        prepare_outputs("debias", files={"--out": out}, overwrite=overwrite or resume)
    for line in (steering.plan if dry_run else steering.debias_to)(task):
        typer.echo(line)


def _shares(pairs: list[str]) -> dict[str, float]:
    found: dict[str, float] = {}
    for pair in pairs:
        name, _, text = pair.partition("=")
        try:
            share = float(text)
        except ValueError:
            share = -1.0
        if share < 0 or not name.strip() or name.strip() in found:
            raise ConceptsError(
                f"debias: --share takes each attribute once with a number from 0 to 1, such as "
                f"red=0.5, got {pair!r}."
            )
        found[name.strip()] = share
    return found
