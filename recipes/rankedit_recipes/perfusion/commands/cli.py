"""The command `rankedit perfusion`: learn a concept, use it, look into it, take it elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rankedit_recipes.command_line.names import SANDBOX
from rankedit_recipes.perfusion.commands.options import (
    Bias,
    Captions,
    Category,
    Clip,
    ConceptFile,
    Concepts,
    ConfigFile,
    DeadZone,
    Device,
    DryRun,
    Dtype,
    Guidance,
    LearnSteps,
    Lock,
    Model,
    OneConcept,
    OptionalPhotos,
    Photos,
    Placeholder,
    PrintConfig,
    Resume,
    Run,
    Seed,
    Setting,
    Steps,
    Temperature,
    Validate,
    gate,
)
from rankedit_recipes.perfusion.errors import PerfusionError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rankedit_recipes.diffusion.scoring import Scorer
    from rankedit_recipes.perfusion.learning.config import Config

# What the commands do needs torch and is imported inside them: help is to come at once.

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Teach a text-to-image model a new thing from a few photos (Perfusion).",
)


@app.command()
def learn(
    photos: OptionalPhotos = None,
    *,
    out: ConceptFile = Path("concept.safetensors"),
    placeholder: Placeholder = "<it>",
    category: Category = "",
    model: Model = SANDBOX,
    captions: Captions = None,
    config: ConfigFile = None,
    setting: Setting = None,
    steps: LearnSteps = None,
    seed: Seed = None,
    run: Run = None,
    resume: Resume = False,
    validate: Validate = "",
    print_config: PrintConfig = False,
    dry_run: DryRun = False,
    device: Device = "",
    dtype: Dtype = "float32",
) -> None:
    """Learn a concept from photos and write its file.

    Ctrl-C keeps the newest state; the same command with --resume goes on from it.
    """
    if not print_config:
        _check_needed(photos, category)
    from rankedit_recipes.perfusion.commands import opening, tasks
    from rankedit_recipes.perfusion.learning.photos import load_photos

    chosen = _settings(
        opening.open_config(config, model), setting or [], {"steps": steps, "seed": seed}
    )
    if print_config:
        typer.echo(chosen.to_toml(), nl=False)
        return
    task = tasks.LearnTask(load_photos(photos or ""), placeholder, category, chosen)
    folder = run or out.with_suffix(".run")
    if dry_run:
        for line in tasks.plan(opening.open_pipeline(model, device=device, dtype=dtype), task):
            typer.echo(line)
        return
    tasks.check_run(folder, resume=resume)
    scorer = _scorer(validate, model) if validate else None
    pipe = opening.open_pipeline(model, device=device, dtype=dtype)
    concept = tasks.learn_to(pipe, task, opening.open_captions(captions, model), folder, scorer)
    concept.save(out)
    typer.echo(f"{out}: {out.stat().st_size:,} bytes; prompts say '{concept.phrase}'")


@app.command()
def generate(
    concepts: Concepts,
    prompt: Annotated[list[str], typer.Option(help="A prompt with the concepts' words; repeat.")],
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("pictures"),
    model: Model = SANDBOX,
    seeds: Annotated[int, typer.Option(help="Pictures of each prompt.")] = 4,
    seed: Annotated[int, typer.Option(help="Seed of the first one.")] = 0,
    bias: Bias = None,
    temperature: Temperature = None,
    strength: Annotated[float, typer.Option(help="0 for none of it, 1 for all.")] = 1.0,
    lock: Lock = None,
    floor: DeadZone = "own",
    steps: Steps = 25,
    guidance: Guidance = 6.0,
    device: Device = "",
    dtype: Dtype = "float32",
) -> None:
    """Make pictures with one or several concepts."""
    from rankedit_recipes.perfusion.commands import opening, tasks

    pipe = opening.open_pipeline(model, device=device, dtype=dtype)
    settings = {**gate(bias, temperature, lock, floor), "strength": strength}
    sampling = tasks.Sampling(steps=steps, guidance=guidance)
    for file in tasks.pictures_to(
        pipe, concepts, prompt, range(seed, seed + seeds), settings, sampling, out
    ):
        typer.echo(file)


@app.command()
def explain(
    concepts: Concepts,
    prompt: Annotated[str, typer.Option(help="The prompt.")],
    model: Model = SANDBOX,
    bias: Bias = None,
    temperature: Temperature = None,
    lock: Lock = None,
    floor: DeadZone = "own",
    plot: Annotated[Path | None, typer.Option(help="Also as a picture, in this file.")] = None,
    device: Device = "",
    dtype: Dtype = "float32",
) -> None:
    """Show how far each concept's gate opens at each token of a prompt."""
    from rankedit_recipes.perfusion.commands import opening, tasks

    pipe = opening.open_pipeline(model, device=device, dtype=dtype)
    settings = gate(bias, temperature, lock, floor)
    tasks.explain_to(pipe, concepts, prompt, settings, plot)


@app.command()
def sweep(
    concept: OneConcept,
    photos: Photos,
    out: Annotated[Path, typer.Option(help="The report.")] = Path("report.html"),
    model: Model = SANDBOX,
    clip: Clip = "",
    bias: Annotated[list[float] | None, typer.Option(help="A bias to try; repeat.")] = None,
    temperature: Annotated[list[float] | None, typer.Option(help="Likewise; repeat.")] = None,
    seeds: Annotated[int, typer.Option(help="Pictures of each prompt and setting.")] = 1,
    run: Annotated[
        Path | None, typer.Option(help="Run folder of the training, for its curve.")
    ] = None,
    together: Annotated[
        Path | None, typer.Option(help="A second concept, for pictures of both.", exists=True)
    ] = None,
    steps: Steps = 25,
    guidance: Guidance = 6.0,
    device: Device = "",
    dtype: Dtype = "float32",
) -> None:
    """Try settings of the gate, print the front, and write a report as one HTML file."""
    from rankedit_recipes.perfusion.commands import opening, tasks

    scorer = _scorer(clip, model)
    pipe = opening.open_pipeline(model, device=device, dtype=dtype)
    task = tasks.SweepTask(
        concept=concept,
        photos=photos,
        biases=tuple(bias or tasks.BIASES),
        temperatures=tuple(temperature or tasks.TEMPERATURES),
        seeds=range(seeds),
        sampling=tasks.Sampling(steps=steps, guidance=guidance),
        run=run,
        together=together,
    )
    for line in tasks.sweep_to(pipe, task, scorer, out):
        typer.echo(line)


@app.command()
def evaluate(
    concept: OneConcept,
    photos: Photos,
    model: Model = SANDBOX,
    clip: Clip = "",
    seeds: Annotated[int, typer.Option(help="Pictures of each prompt.")] = 4,
    bias: Bias = None,
    temperature: Temperature = None,
    lock: Lock = None,
    floor: DeadZone = "own",
    steps: Steps = 25,
    guidance: Guidance = 6.0,
    device: Device = "",
    dtype: Dtype = "float32",
) -> None:
    """Score pictures of a concept: like its photos, and like their prompts."""
    from rankedit_recipes.perfusion.commands import opening, tasks

    scorer = _scorer(clip, model)
    pipe = opening.open_pipeline(model, device=device, dtype=dtype)
    settings = gate(bias, temperature, lock, floor)
    scores = tasks.scores_of(
        pipe, concept, photos, scorer, settings, range(seeds),
        tasks.Sampling(steps=steps, guidance=guidance),
    )  # fmt: skip
    typer.echo(
        f"picture {scores.picture:.4f}, text {scores.text:.4f}, harmonic mean {scores.balance:.4f}"
    )


@app.command()
def export(
    concept: OneConcept,
    embedding: Annotated[Path | None, typer.Option(help="Textual-inversion file.")] = None,
    lora: Annotated[Path | None, typer.Option(help="LoRA of the linearised edit.")] = None,
    layout: Annotated[str, typer.Option(help="Of the LoRA: kohya, diffusers or peft.")] = "kohya",
    model: Model = SANDBOX,
    device: Device = "",
    dtype: Dtype = "float32",
) -> None:
    """Write a concept for other programs: its word, and a LoRA that approximates its edit."""
    if embedding is None and lora is None:
        raise PerfusionError("export: say what to write: --embedding FILE, --lora FILE, or both.")
    from rankedit_recipes.perfusion.commands import opening, tasks

    pipe = None if lora is None else opening.open_pipeline(model, device=device, dtype=dtype)
    for line in tasks.export_to(pipe, concept, embedding, lora, layout):
        typer.echo(line)


@app.command()
def info(concept: OneConcept) -> None:
    """Say what a concept file holds."""
    from rankedit_recipes.perfusion.commands import tasks

    for line in tasks.described(concept):
        typer.echo(line)


def _check_needed(photos: Path | None, category: str) -> None:
    """Before anything is imported that takes time."""
    if photos is None or not category.strip():
        raise PerfusionError(
            "learn: a folder of photos and --category are needed, for example: rankedit perfusion "
            "learn photos/ --category cat --placeholder '<bean>'."
        )


def _scorer(clip: str, model: str) -> Scorer:
    """The CLIP model asked for; without a wish the sandbox's, for the sandbox."""
    from rankedit_recipes.perfusion.commands import opening

    if model != SANDBOX and clip in ("", SANDBOX):
        raise PerfusionError(
            f"perfusion: the sandbox's CLIP model knows only the sandbox's pictures; for those of "
            f"{model!r} give one, such as --clip openai/clip-vit-base-patch32."
        )
    return opening.open_scorer(clip or SANDBOX)


def _settings(config: Config, pairs: Sequence[str], given: dict[str, Any]) -> Config:
    from rankedit_recipes.command_line.pairs import parsed_pairs

    changes = parsed_pairs(pairs, "learn", PerfusionError)
    changes |= {name: value for name, value in given.items() if value is not None}
    return config.changed(changes)
