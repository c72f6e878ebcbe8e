"""The command `rankedit language`: edit facts of a model, take them back, and measure both.

Commands import what needs torch inside themselves: help and refusals are to come at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rankedit_recipes.command_line.boundary import application
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
from rankedit_recipes.language.commands.demo import demo
from rankedit_recipes.language.commands.options import (
    Chat,
    ContextTexts,
    Count,
    Edits,
    Fuse,
    Generations,
    Layers,
    Lora,
    Method,
    Model,
    OptionalStream,
    Out,
    OwnMethod,
    References,
    Replace,
    Requests,
    Space,
    Stats,
    Stream,
    Texts,
)
from rankedit_recipes.language.commands.remedies import REMEDIES
from rankedit_recipes.language.commands.stats import stats
from rankedit_recipes.language.errors import LanguageError

app = application(
    "Edit facts of a causal language model in closed form (ROME, MEMIT, AlphaEdit).", REMEDIES
)
app.command()(demo)
app.command()(stats)


@app.command()
def edit(
    requests: Requests = None,
    *,
    model: Model = SANDBOX,
    method: Method = "",
    statistics: Stats = None,
    layers: Layers = "",
    chat: Chat = False,
    space: Space = None,
    text: ContextTexts = None,
    out: Out = None,
    stream: OptionalStream = None,
    replace: Replace = False,
    lora: Lora = None,
    fuse: Fuse = None,
    overwrite: Overwrite = False,
    config: ConfigFile = None,
    setting: Setting = None,
    print_config: PrintConfig = False,
    dry_run: DryRun = False,
    count: Count = 0,
    device: Device = "",
    dtype: Dtype = "",
    variant: Variant = "",
    offload: Offload = "none",
) -> None:
    """Edit facts: write a file of edits, and if asked a stream, a LoRA or a whole model.

    The file is attached by `rankedit.attach(model, rankedit.load(file))`. With --stream, edits join
    those of the folder, conflicts are reported before anything is written, and a run that was
    interrupted goes on when it is started again.
    """
    # Settings can be asked for with no requests at hand.
    if not print_config:
        _check_requests(requests, model)
        # The sandbox's own 1,500 facts take half an hour, which nobody asks for by leaving all out.
        if not requests and not count:
            raise LanguageError(
                "edit: give a file of facts, such as facts.jsonl with lines like "
                '{"prompt": "{} plays the", "subject": "Anna Carlson", "target": "cello"}, or '
                "--count 10 for so many of the sandbox's own."
            )
    with quiet_imports():
        from rankedit_recipes.language.commands import configuring, opening, tasks

    settings = configuring.chosen_settings(method, config, setting or [])
    if print_config:
        typer.echo(configuring.to_toml(settings), nl=False)
        return
    task = tasks.EditTask(
        cases=opening.open_cases(requests or [], model, count=count, space=space, chat=chat),
        settings=settings,
        chosen=bool(method or config or setting),
        statistics=statistics,
        layers=tasks.parsed_layers(layers),
        stream=stream,
        replace=replace,
        texts=tuple(text or ()),
    )
    if out is None and stream is None:
        out = Path("edits.safetensors")
    # A plan writes nothing, so that nothing stands in its way.
    if not dry_run:
        prepare_outputs(
            "edit", files={"--out": out}, folders={"--lora": lora, "--fuse": fuse},
            # A stream is there to be added to; its folder refuses what is none.
            growing={"--stream": stream}, overwrite=overwrite,
        )  # fmt: skip
    opened = opening.open_model(ModelChoice(model, device, dtype, variant, offload))
    lines = tasks.plan(opened, task) if dry_run else tasks.edit_to(
        opened, task, tasks.Outputs(out, lora, fuse)
    )  # fmt: skip
    for line in lines:
        typer.echo(line)


@app.command()
def undo(
    stream: Stream,
    names: Annotated[
        list[str] | None, typer.Argument(help="Names of facts, as `list` shows them.")
    ] = None,
    *,
    model: Model = SANDBOX,
    method: OwnMethod = "",
    statistics: Stats = None,
    last: Annotated[int, typer.Option(min=0, help="Instead of names: the latest so many.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(help="Write the edits that are left, to this file.", show_default="none"),
    ] = None,
    lora: Lora = None,
    fuse: Fuse = None,
    overwrite: Overwrite = False,
    device: Device = "",
    dtype: Dtype = "",
    variant: Variant = "",
    offload: Offload = "none",
) -> None:
    """Take facts out of a stream, exactly as if they had never been in it."""
    # `undo_in` asks again, but only with the model in memory.
    if bool(names) == bool(last):
        raise LanguageError("undo: give names of facts, or --last N; not both, not neither.")
    prepare_outputs(
        "undo", files={"--out": out}, folders={"--lora": lora, "--fuse": fuse}, overwrite=overwrite
    )
    with quiet_imports():
        from rankedit_recipes.language.commands import opening, tasks

    opened = opening.open_model(ModelChoice(model, device, dtype, variant, offload))
    outputs = tasks.Outputs(out, lora, fuse)
    for line in tasks.undo_in(opened, stream, statistics, names or [], last, outputs, method):
        typer.echo(line)


# Named here, for the function of this name is Python's own.
@app.command("list")
def list_(
    stream: Stream,
    subject: Annotated[
        str, typer.Option(help="Only facts whose subject has this in it.", show_default="all")
    ] = "",
) -> None:
    """Say what a stream is, and which facts it has; opens no model."""
    with quiet_imports():
        from rankedit_recipes.language.commands import tasks

    for line in tasks.listed(stream, subject):
        typer.echo(line)


@app.command()
def evaluate(
    requests: Requests = None,
    *,
    model: Model = SANDBOX,
    edits: Edits = None,
    strength: Annotated[float, typer.Option(help="0 for none of the edits, 1 for all.")] = 1.0,
    chat: Chat = False,
    space: Space = None,
    text: Texts = None,
    generations: Generations = False,
    references: References = None,
    base: Annotated[bool, typer.Option(help="Also evaluate the model without the edits.")] = True,
    report: Annotated[
        Path | None, typer.Option(help="Report with plots, one HTML file.", show_default="none")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="All scores as JSON.", show_default="none")
    ] = None,
    overwrite: Overwrite = False,
    count: Count = 0,
    device: Device = "",
    dtype: Dtype = "",
    variant: Variant = "",
    offload: Offload = "none",
) -> None:
    """Score a model by CounterFact's and zsRE's definitions, each printed beside its number."""
    _check_requests(requests, model)
    prepare_outputs("evaluate", files={"--report": report, "--out": out}, overwrite=overwrite)
    with quiet_imports():
        from rankedit_recipes.language.commands import measuring, opening

    opened = opening.open_model(ModelChoice(model, device, dtype, variant, offload))
    task = measuring.EvaluateTask(
        cases=opening.open_cases(
            requests or [], model, count=count, references=references, space=space, chat=chat
        ),
        edits=tuple(edits or ()),
        strength=strength,
        texts=tuple(text or ()),
        generations=generations,
        # Without edits the one evaluation is that of the unedited model.
        base=base and bool(edits),
    )
    for line in measuring.evaluate_to(opened, task, report, out):
        typer.echo(line)


def _check_requests(requests: list[Path] | None, model: str) -> None:
    if not requests and model != SANDBOX:
        raise LanguageError(
            "language: give a file of requests; only the sandbox has a test set of its own."
        )
