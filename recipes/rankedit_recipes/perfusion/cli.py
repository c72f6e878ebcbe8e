"""The command `rankedit perfusion`: learn a concept, use it, look into it, take it elsewhere."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from rankedit_recipes.perfusion import commands
from rankedit_recipes.perfusion.config import Config
from rankedit_recipes.perfusion.errors import PerfusionError
from rankedit_recipes.perfusion.models import SANDBOX, open_captions, open_pipeline, open_scorer

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Teach a text-to-image model a new thing from a few photos (Perfusion).",
)

Model = Annotated[
    str,
    typer.Option(help="'sandbox', a diffusers folder, or a name on the hub.", show_default=True),
]
Device = Annotated[str, typer.Option(help="Such as cpu or cuda; chosen if not given.")]
Dtype = Annotated[str, typer.Option(help="float32, float16 or bfloat16.")]
Concepts = Annotated[list[Path], typer.Argument(help="Concept files.", exists=True)]
OneConcept = Annotated[Path, typer.Argument(help="A concept file.", exists=True)]
Steps = Annotated[int, typer.Option(help="Sampling steps of a picture.")]
Guidance = Annotated[float, typer.Option(help="Scale of classifier-free guidance.")]
Bias = Annotated[
    float | None, typer.Option(help="Of the gate: higher lets less of the concept through.")
]
Temperature = Annotated[float | None, typer.Option(help="Of the gate: higher makes it softer.")]
Lock = Annotated[
    Literal["local", "global"] | None,
    typer.Option(help="Keys of the concept's word, or of the whole prompt, follow the category."),
]
Clip = Annotated[str, typer.Option(help="CLIP model that scores: 'sandbox', a folder or hub name.")]
Photos = Annotated[Path, typer.Option(help="Folder of photos of the concept.", exists=True)]


@app.command()
def learn(
    photos: Annotated[
        Path | None, typer.Argument(help="Folder of photos of the thing; one is enough to begin.")
    ] = None,
    *,
    out: Annotated[Path, typer.Option(help="Where the concept file goes.")] = Path(
        "concept.safetensors"
    ),
    placeholder: Annotated[str, typer.Option(help="The new word for it.")] = "<it>",
    category: Annotated[str, typer.Option(help="What kind of thing it is.")] = "",
    model: Model = SANDBOX,
    captions: Annotated[
        Path | None, typer.Option(help="Text file of captions, one on a line.", exists=True)
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="TOML file of settings; see --print-config.")
    ] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", help="One setting, such as steps=400; repeat.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps.")] = None,
    seed: Annotated[int | None, typer.Option(help="Same seed, same file.")] = None,
    run: Annotated[
        Path | None, typer.Option(help="Folder for checkpoints; next to the concept if not given.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the interrupted training of that folder.")
    ] = False,
    validate: Annotated[
        str, typer.Option(help="CLIP model that chooses the best state; none if empty.")
    ] = "",
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print all settings as TOML, and stop.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be learned, how large it gets; stop.")
    ] = False,
    device: Device = "",
    dtype: Dtype = "float32",
) -> None:
    """Learn a concept from photos and write its file.

    Ctrl-C keeps the newest state; the same command with --resume goes on from it.
    """
    chosen = _settings(config, setting or [], {"steps": steps, "seed": seed})
    if print_config:
        typer.echo(chosen.to_toml(), nl=False)
        return
    if photos is None or not category:
        raise PerfusionError(
            "learn: a folder of photos and --category are needed, for example: rankedit perfusion "
            "learn photos/ --category cat --placeholder '<bean>'."
        )
    pipe = open_pipeline(model, device=device, dtype=dtype)
    if dry_run:
        for line in commands.plan(pipe, photos, placeholder, category, chosen):
            typer.echo(line)
        return
    folder = run or out.with_suffix(".run")
    commands.check_run(folder, resume=resume)
    scorer = open_scorer(validate) if validate else None
    concept = commands.learn_to(
        pipe,
        photos,
        (placeholder, category),
        open_captions(captions, model),
        chosen,
        folder,
        scorer,
    )
    concept.save(out)
    typer.echo(f"{out}: {out.stat().st_size:,} bytes, {placeholder} is a {category}")


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
    steps: Steps = 25,
    guidance: Guidance = 6.0,
    device: Device = "",
    dtype: Dtype = "float32",
) -> None:
    """Make pictures with one or several concepts."""
    pipe = open_pipeline(model, device=device, dtype=dtype)
    settings = {"bias": bias, "temperature": temperature, "strength": strength, "lock": lock}
    sampling = commands.Sampling(steps=steps, guidance=guidance)
    for file in commands.pictures_to(
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
    plot: Annotated[Path | None, typer.Option(help="Also as a picture, in this file.")] = None,
) -> None:
    """Show how far each concept's gate opens at each token of a prompt."""
    pipe = open_pipeline(model)
    settings = {"bias": bias, "temperature": temperature, "lock": lock}
    commands.explain_to(pipe, concepts, prompt, settings, plot)


@app.command()
def sweep(
    concept: OneConcept,
    photos: Photos,
    out: Annotated[Path, typer.Option(help="The report.")] = Path("report.html"),
    model: Model = SANDBOX,
    clip: Clip = SANDBOX,
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
    pipe = open_pipeline(model, device=device, dtype=dtype)
    task = commands.SweepTask(
        concept=concept,
        photos=photos,
        biases=tuple(bias or commands.BIASES),
        temperatures=tuple(temperature or commands.TEMPERATURES),
        seeds=range(seeds),
        sampling=commands.Sampling(steps=steps, guidance=guidance),
        run=run,
        together=together,
    )
    for line in commands.sweep_to(pipe, task, open_scorer(clip), out):
        typer.echo(line)


@app.command()
def evaluate(
    concept: OneConcept,
    photos: Photos,
    model: Model = SANDBOX,
    clip: Clip = SANDBOX,
    seeds: Annotated[int, typer.Option(help="Pictures of each prompt.")] = 4,
    bias: Bias = None,
    temperature: Temperature = None,
    lock: Lock = None,
    steps: Steps = 25,
    guidance: Guidance = 6.0,
    device: Device = "",
    dtype: Dtype = "float32",
) -> None:
    """Score pictures of a concept: like its photos, and like their prompts."""
    pipe = open_pipeline(model, device=device, dtype=dtype)
    settings = {"bias": bias, "temperature": temperature, "lock": lock}
    scores = commands.scores_of(
        pipe, concept, photos, open_scorer(clip), settings, range(seeds),
        commands.Sampling(steps=steps, guidance=guidance),
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
) -> None:
    """Write a concept for other programs: its word, and a LoRA that approximates its edit."""
    if embedding is None and lora is None:
        raise PerfusionError("export: say what to write: --embedding FILE, --lora FILE, or both.")
    pipe = None if lora is None else open_pipeline(model)
    for line in commands.export_to(pipe, concept, embedding, lora, layout):
        typer.echo(line)


@app.command()
def info(concept: OneConcept) -> None:
    """Say what a concept file holds."""
    for line in commands.described(concept):
        typer.echo(line)


def _settings(file: Path | None, pairs: Sequence[str], given: dict[str, Any]) -> Config:
    config = Config() if file is None else Config.from_toml(file)
    changes: dict[str, Any] = {}
    for pair in pairs:
        name, found, text = pair.partition("=")
        if not found:
            raise PerfusionError(f"learn: --set takes name=value, got {pair!r}.")
        try:
            changes[name.strip()] = json.loads(text)
        except json.JSONDecodeError:
            changes[name.strip()] = text.strip()
    changes |= {name: value for name, value in given.items() if value is not None}
    return config.changed(changes)
