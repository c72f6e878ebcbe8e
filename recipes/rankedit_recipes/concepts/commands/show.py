"""The commands that show what an edit does; see `cli`."""

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
from rankedit_recipes.command_line.outputs import picture_files, prepare_outputs
from rankedit_recipes.command_line.quiet import quiet_imports
from rankedit_recipes.concepts.commands import options as o
from rankedit_recipes.concepts.errors import ConceptsError


def evaluate(
    edit: o.EditFile,
    *,
    prompt: Annotated[list[str], typer.Option(help="A prompt; repeat.")],
    out: Annotated[Path, typer.Option(help="Folder for pictures and report.")] = Path("pictures"),
    pictures: o.Pictures = 2,
    seed: o.Seed = 0,
    strength: o.Strength = 1.0,
    sampling_steps: o.SamplingSteps = 25,
    guidance: o.Guidance = 6.0,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
    model: o.Model = SANDBOX,
    device: Device = "",
    dtype: Dtype = "",
    variant: Variant = "",
    offload: Offload = "none",
    base: o.Base = "",
) -> None:
    """Pictures without an edit and with it, of the same noise: files, and a report beside them."""
    seeds = range(seed, seed + pictures)
    after = picture_files(out / "after", len(prompt), seeds)
    before = picture_files(out / "before", len(prompt), seeds)
    report = out / "report.html"
    if not dry_run:
        files = {f"--out, for {f.parent.name}/{f.name},": f for f in (*before, *after)}
        prepare_outputs(
            "evaluate", files={**files, "--out, for report.html,": report},
            growing={"--out": out}, overwrite=overwrite,
        )  # fmt: skip
    with quiet_imports():
        from rankedit_recipes.concepts.commands import showing
    task = showing.ShowTask(
        edit, ModelChoice(model, device, dtype, variant, offload, base), strength,
        showing.Sampling(steps=sampling_steps, guidance=guidance),
    )  # fmt: skip
    files_by_picture = list(zip(before, after, strict=True))
    lines = (
        showing.plan_pictures(task, prompt, seeds, out)
        if dry_run
        else showing.pictures_to(task, prompt, seeds, files_by_picture, report)
    )
    for line in lines:
        typer.echo(line)


def probe(
    edit: o.EditFile,
    *,
    implicit: Annotated[
        list[str] | None,
        typer.Option(
            help="A concept and a description without its word, as 'cat=a pet that purrs'; repeat.",
            show_default="none",
        ),
    ] = None,
    neighbours: Annotated[
        int, typer.Option(help="Words with the nearest embeddings that are asked for.", min=0)
    ] = 4,
    out: Annotated[Path, typer.Option(help="The report.")] = Path("probe.html"),
    judge: o.Judge = "",
    among: Annotated[
        list[str] | None,
        typer.Option(
            help="Another word that a picture may show, for --judge; repeat.",
            show_default="the edit's words",
        ),
    ] = None,
    teach: Annotated[
        str,
        typer.Option(
            help="Teach each concept anew by textual inversion, and look after so many steps, "
            "as '0,50,200'.",
            show_default="not at all",
        ),
    ] = "",
    run: Annotated[
        Path | None,
        typer.Option(
            help="Folder of all that is made; the same command goes on from it.",
            show_default="none",
        ),
    ] = None,
    pictures: o.Pictures = 2,
    sampling_steps: o.SamplingSteps = 25,
    guidance: o.Guidance = 6.0,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
    model: o.Model = SANDBOX,
    device: Device = "",
    dtype: Dtype = "",
    variant: Variant = "",
    offload: Offload = "none",
    base: o.Base = "",
) -> None:
    """Try to bring an edit's concepts back, and say how far pictures show them again."""
    described: dict[str, list[str]] = {}
    for pair in implicit or ():
        name, sign, text = pair.partition("=")
        if not sign or not name.strip() or not text.strip():
            raise ConceptsError(
                f"probe: --implicit takes concept=description, got {pair!r}; for example "
                "--implicit 'cat=a pet that purrs'."
            )
        described.setdefault(name.strip(), []).append(text.strip())
    o.check_judge("probe", judge, model)
    steps = _steps(teach)
    if not dry_run:
        prepare_outputs("probe", files={"--out": out}, growing={"--run": run}, overwrite=overwrite)
    with quiet_imports():
        from rankedit_recipes.concepts.commands import showing
    task = showing.ShowTask(
        edit, ModelChoice(model, device, dtype, variant, offload, base), 1.0,
        showing.Sampling(steps=sampling_steps, guidance=guidance),
    )  # fmt: skip
    asked = showing.ProbeTask(described, neighbours, judge, among or (), pictures, out, steps, run)
    for line in (showing.plan_probe if dry_run else showing.probe_to)(task, asked):
        typer.echo(line)


def _steps(text: str) -> list[int]:
    """Steps that rise, of `--teach`."""
    steps = [int(part) for part in text.split(",") if part.strip().isdecimal()]
    if text and (len(steps) != text.count(",") + 1 or steps != sorted(set(steps))):
        raise ConceptsError(
            f"probe: --teach takes whole numbers that rise, as 0,50,200, got {text!r}."
        )
    return steps
