"""The commands that make pictures and judge them; see `cli`."""

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
from rankedit_recipes.command_line.outputs import picture_files, prepare_outputs
from rankedit_recipes.command_line.quiet import quiet_imports
from rankedit_recipes.perfusion.commands.judging import check_judge, chosen_scorer
from rankedit_recipes.perfusion.commands.options import (
    Base,
    Bias,
    Clip,
    Concepts,
    DeadZone,
    FirstSeed,
    Guidance,
    Lock,
    Model,
    OneConcept,
    Photos,
    Pictures,
    SamplingSteps,
    Size,
    Temperature,
    gate,
)
from rankedit_recipes.perfusion.errors import PerfusionError

PLOTS = (".png", ".pdf", ".svg", ".jpg")


def generate(
    concepts: Concepts,
    *,
    prompt: Annotated[list[str], typer.Option(help="A prompt with the concepts' words; repeat.")],
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("pictures"),
    overwrite: Overwrite = False,
    model: Model = SANDBOX,
    pictures: Pictures = 4,
    seed: FirstSeed = 0,
    bias: Bias = None,
    temperature: Temperature = None,
    strength: Annotated[float, typer.Option(help="0 for none of it, 1 for all.")] = 1.0,
    lock: Lock = None,
    floor: DeadZone = "own",
    sampling_steps: SamplingSteps = 25,
    guidance: Guidance = 6.0,
    size: Size = 0,
    device: Device = "",
    dtype: Dtype = "",
    variant: Variant = "",
    offload: Offload = "none",
    base: Base = "",
) -> None:
    """Make pictures with one or several concepts."""
    settings = {**gate(bias, temperature, lock, floor), "strength": strength}
    seeds = range(seed, seed + pictures)
    with quiet_imports():
        from rankedit_recipes.perfusion.commands import opening
        from rankedit_recipes.perfusion.commands import pictures as work
    # Concept files are small: a mistyped word is found before a model is loaded.
    work.check_prompts(prompt, work.phrases_of(concepts))
    files = picture_files(out, len(prompt), seeds)
    prepare_outputs(
        "generate", files={f"--out, for {file.name},": file for file in files},
        # Pictures of other prompts may lie in the folder: only names of these are asked about.
        growing={"--out": out}, overwrite=overwrite,
    )  # fmt: skip
    pipe = opening.open_pipeline(ModelChoice(model, device, dtype, variant, offload, base))
    sampling = work.Sampling(steps=sampling_steps, guidance=guidance, size=size)
    for file in work.pictures_to(pipe, concepts, prompt, seeds, settings, sampling, files):
        typer.echo(file)


def explain(
    concepts: Concepts,
    *,
    prompt: Annotated[str, typer.Option(help="The prompt.")],
    model: Model = SANDBOX,
    bias: Bias = None,
    temperature: Temperature = None,
    lock: Lock = None,
    floor: DeadZone = "own",
    plot: Annotated[
        Path | None, typer.Option(help="Also as a picture, in this file.", show_default="none")
    ] = None,
    overwrite: Overwrite = False,
    device: Device = "",
    dtype: Dtype = "",
    variant: Variant = "",
    offload: Offload = "none",
    base: Base = "",
) -> None:
    """Show how far each concept's gate opens at each token of a prompt."""
    settings = gate(bias, temperature, lock, floor)
    if plot is not None and plot.suffix.lower() not in PLOTS:
        raise PerfusionError(f"explain: --plot must end in {', '.join(PLOTS)}, got '{plot}'.")
    with quiet_imports():
        from rankedit_recipes.perfusion.commands import opening
        from rankedit_recipes.perfusion.commands import pictures as work
    work.check_prompts([prompt], work.phrases_of(concepts))
    prepare_outputs("explain", files={"--plot": plot}, overwrite=overwrite)
    pipe = opening.open_pipeline(ModelChoice(model, device, dtype, variant, offload, base))
    work.explain_to(pipe, concepts, prompt, settings, plot)


def sweep(
    concept: OneConcept,
    *,
    photos: Photos,
    out: Annotated[Path, typer.Option(help="The report, one HTML file.")] = Path("report.html"),
    overwrite: Overwrite = False,
    model: Model = SANDBOX,
    clip: Clip = "",
    bias: Annotated[
        list[float] | None,
        typer.Option(help="A bias to try; repeat.", show_default="0.3 0.5 0.6 0.7 0.8 1"),
    ] = None,
    temperature: Annotated[
        list[float] | None, typer.Option(help="Likewise; repeat.", show_default="0.1 0.15")
    ] = None,
    pictures: Pictures = 1,
    seed: FirstSeed = 0,
    run: Annotated[
        Path | None,
        typer.Option(help="Run folder of the training, for its curve.", show_default="no curve"),
    ] = None,
    together: Annotated[
        Path | None,
        typer.Option(
            help="A second concept, for pictures of both.", exists=True, show_default="none"
        ),
    ] = None,
    sampling_steps: SamplingSteps = 25,
    guidance: Guidance = 6.0,
    size: Size = 0,
    device: Device = "",
    dtype: Dtype = "",
    variant: Variant = "",
    offload: Offload = "none",
    base: Base = "",
) -> None:
    """Try settings of the gate, print the front, and write a report as one HTML file."""
    check_judge(clip, model)
    prepare_outputs("sweep", files={"--out": out}, overwrite=overwrite)
    with quiet_imports():
        from rankedit_recipes.perfusion.commands import opening
        from rankedit_recipes.perfusion.commands import pictures as work
    task = work.SweepTask(
        concept=concept,
        photos=photos,
        biases=tuple(bias or work.BIASES),
        temperatures=tuple(temperature or work.TEMPERATURES),
        seeds=range(seed, seed + pictures),
        sampling=work.Sampling(steps=sampling_steps, guidance=guidance, size=size),
        # Read now, so that a wrong folder is refused before pictures are made.
        history=work.history_of(run),
        together=together,
    )
    scorer = chosen_scorer(clip, model)
    pipe = opening.open_pipeline(ModelChoice(model, device, dtype, variant, offload, base))
    for line in work.sweep_to(pipe, task, scorer, out):
        typer.echo(line)


def evaluate(
    concept: OneConcept,
    *,
    photos: Photos,
    model: Model = SANDBOX,
    clip: Clip = "",
    pictures: Pictures = 4,
    seed: FirstSeed = 0,
    bias: Bias = None,
    temperature: Temperature = None,
    lock: Lock = None,
    floor: DeadZone = "own",
    sampling_steps: SamplingSteps = 25,
    guidance: Guidance = 6.0,
    size: Size = 0,
    device: Device = "",
    dtype: Dtype = "",
    variant: Variant = "",
    offload: Offload = "none",
    base: Base = "",
) -> None:
    """Score pictures of a concept: like its photos, and like their prompts."""
    settings = gate(bias, temperature, lock, floor)
    scorer = chosen_scorer(clip, model)
    with quiet_imports():
        from rankedit_recipes.perfusion.commands import opening
        from rankedit_recipes.perfusion.commands import pictures as work
    pipe = opening.open_pipeline(ModelChoice(model, device, dtype, variant, offload, base))
    scores = work.scores_of(
        pipe, concept, photos, scorer, settings, range(seed, seed + pictures),
        work.Sampling(steps=sampling_steps, guidance=guidance, size=size),
    )  # fmt: skip
    typer.echo(
        f"picture {scores.picture:.4f}, text {scores.text:.4f}, harmonic mean {scores.balance:.4f}"
    )
