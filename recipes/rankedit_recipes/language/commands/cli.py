"""The command `rankedit language`: edit facts of a model, take them back, and measure both."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rankedit_recipes.command_line.names import SANDBOX
from rankedit_recipes.language.errors import LanguageError

if TYPE_CHECKING:
    from rankedit_recipes.language.settings import Settings

# What the commands do needs torch and is imported inside them: help is to come at once.

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Edit facts of a causal language model in closed form (ROME, MEMIT, AlphaEdit).",
)

Model = Annotated[
    str,
    typer.Option(help="'sandbox', a folder of transformers, or a name on the hub."),
]
Device = Annotated[str, typer.Option(help="Such as cpu or cuda; chosen if not given.")]
Dtype = Annotated[str, typer.Option(help="float32, float16 or bfloat16.")]
Requests = Annotated[
    list[Path] | None,
    typer.Argument(
        help='Files of requests: JSON Lines of {"prompt": "{} plays the", "subject": ..., '
        "\"target\": ...}, or CounterFact's or zsRE's own. The sandbox has a test set of its own.",
        exists=True,
    ),
]
Limit = Annotated[int, typer.Option(help="Take so many requests, from the first; 0 for all.")]
Stream = Annotated[Path, typer.Argument(help="Folder of a stream of edits.", exists=True)]
OptionalStream = Annotated[
    Path | None, typer.Option(help="Folder in which edits are kept, to add to and undo later.")
]
Stats = Annotated[
    Path | None,
    typer.Option(help="Statistics that `stats` wrote. The sandbox collects its own.", exists=True),
]
Layers = Annotated[
    str,
    typer.Option(
        help="Blocks such as 5 or 3,4,5, or a pattern of projections; by rule if empty. For edits "
        "also 'traced': where a causal trace of the requests finds the facts."
    ),
]
Lora = Annotated[Path | None, typer.Option(help="Also as a LoRA of PEFT, exact, in this file.")]
Fuse = Annotated[
    Path | None,
    typer.Option(help="Also as a whole model in this folder, the edits in its weights."),
]
Method = Annotated[
    str,
    typer.Option(
        help="rome, r-rome, memit, encore, emmet or alphaedit, or package.module:function of your "
        "own (docs/new-method.md); memit if not given, or that of the stream."
    ),
]
Out = Annotated[Path, typer.Option(help="Where the edits go.")]
Replace = Annotated[
    bool, typer.Option("--replace", help="Requests take the place of facts of the stream.")
]
Config = Annotated[Path | None, typer.Option(help="TOML file of settings; see --print-config.")]
Setting = Annotated[
    list[str] | None, typer.Option("--set", help="One setting, such as steps=40; repeat.")
]
PrintConfig = Annotated[
    bool, typer.Option("--print-config", help="Print all settings as TOML, and stop.")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Say what would be edited, and where; stop.")
]
Texts = Annotated[
    list[Path] | None,
    typer.Option("--text", help="File or folder of unrelated text, for the locality; repeat."),
]


@app.command()
def edit(
    requests: Requests = None,
    *,
    model: Model = SANDBOX,
    method: Method = "",
    statistics: Stats = None,
    layers: Layers = "",
    out: Out = Path("edits.safetensors"),
    stream: OptionalStream = None,
    replace: Replace = False,
    lora: Lora = None,
    fuse: Fuse = None,
    config: Config = None,
    setting: Setting = None,
    print_config: PrintConfig = False,
    dry_run: DryRun = False,
    limit: Limit = 0,
    device: Device = "",
    dtype: Dtype = "float32",
) -> None:
    """Edit facts: write a file of edits, and if asked a stream, a LoRA or a whole model.

    The file is attached by `rankedit.attach(model, rankedit.load(file))`. With --stream, edits join
    those of the folder, conflicts are reported before anything is written, and a run that was
    interrupted goes on when it is started again.
    """
    from rankedit_recipes.language.commands import configuring, opening, tasks

    settings = _settings(method, config, setting or [])
    if print_config:
        typer.echo(configuring.to_toml(settings), nl=False)
        return
    task = tasks.EditTask(
        cases=opening.open_cases(requests or [], model, count=limit),
        settings=settings,
        chosen=bool(method or config or setting),
        statistics=statistics,
        layers=tasks.parsed_layers(layers),
        stream=stream,
        replace=replace,
    )
    opened = opening.open_model(model, device=device, dtype=dtype)
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
    method: Annotated[
        str, typer.Option(help="package.module:function, for a stream of a method of your own.")
    ] = "",
    statistics: Stats = None,
    last: Annotated[int, typer.Option(help="Instead of names: the latest so many.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="Write the edits that are left, to this file.")
    ] = None,
    lora: Lora = None,
    fuse: Fuse = None,
    device: Device = "",
    dtype: Dtype = "float32",
) -> None:
    """Take facts out of a stream, exactly as if they had never been in it."""
    from rankedit_recipes.language.commands import opening, tasks

    opened = opening.open_model(model, device=device, dtype=dtype)
    outputs = tasks.Outputs(out, lora, fuse)
    for line in tasks.undo_in(opened, stream, statistics, names or [], last, outputs, method):
        typer.echo(line)


@app.command("list")
def list_(
    stream: Stream,
    subject: Annotated[str, typer.Option(help="Only facts whose subject has this in it.")] = "",
) -> None:
    """Say what a stream is, and which facts it has; opens no model."""
    from rankedit_recipes.language.commands import tasks

    for line in tasks.listed(stream, subject):
        typer.echo(line)


@app.command()
def evaluate(
    requests: Requests = None,
    *,
    model: Model = SANDBOX,
    edits: Annotated[
        list[Path] | None, typer.Option(help="File of edits to attach; repeat.", exists=True)
    ] = None,
    strength: Annotated[float, typer.Option(help="0 for none of the edits, 1 for all.")] = 1.0,
    text: Texts = None,
    generations: Annotated[
        bool, typer.Option("--generations", help="Also let the model write: generation entropy.")
    ] = False,
    references: Annotated[
        Path | None,
        typer.Option(
            help="CounterFact's attribute_snippets.json: with --generations, the reference score.",
            exists=True,
        ),
    ] = None,
    base: Annotated[bool, typer.Option(help="Also evaluate the model without the edits.")] = True,
    report: Annotated[Path | None, typer.Option(help="Report with plots, one HTML file.")] = None,
    out: Annotated[Path | None, typer.Option(help="All scores as JSON.")] = None,
    limit: Limit = 0,
    device: Device = "",
    dtype: Dtype = "float32",
) -> None:
    """Score a model by CounterFact's and zsRE's definitions, each printed beside its number."""
    from rankedit_recipes.language.commands import measuring, opening

    opened = opening.open_model(model, device=device, dtype=dtype)
    task = measuring.EvaluateTask(
        cases=opening.open_cases(requests or [], model, count=limit, references=references),
        edits=tuple(edits or ()),
        strength=strength,
        texts=tuple(text or ()),
        generations=generations,
        base=base and bool(edits),
    )
    for line in measuring.evaluate_to(opened, task, report, out):
        typer.echo(line)


@app.command()
def stats(
    texts: Annotated[
        list[Path] | None,
        typer.Argument(help="Files of text, or folders; the sandbox has its own.", exists=True),
    ] = None,
    *,
    model: Model = SANDBOX,
    out: Annotated[Path, typer.Option(help="Where they go.")] = Path("statistics.safetensors"),
    layers: Layers = "",
    count: Annotated[int, typer.Option(help="Texts at most; 0 for all.")] = 0,
    batch: Annotated[int, typer.Option(help="Texts run together.")] = 16,
    length: Annotated[int, typer.Option(help="Tokens of a text at most; 0 for the model's.")] = 0,
    device: Device = "",
    dtype: Dtype = "float32",
) -> None:
    """Collect what the projections read, all layers in one pass over your text.

    Prints whether the text sufficed. Interrupted, the same command goes on where it stopped.
    """
    from rankedit_recipes.language.commands import measuring, opening, tasks

    opened = opening.open_model(model, device=device, dtype=dtype)
    sizes = measuring.Sizes(count, batch, length)
    for line in measuring.stats_to(opened, texts or [], tasks.parsed_layers(layers), sizes, out):
        typer.echo(line)


def _settings(method: str, config: Path | None, pairs: list[str]) -> Settings:
    from rankedit_recipes.language.commands.configuring import from_pairs, from_toml
    from rankedit_recipes.language.editing import settings_of

    settings = settings_of(method or "memit") if config is None else from_toml(config)
    if config is not None and method and settings_of(method).method != settings.method:
        raise LanguageError(
            f"edit: --method {method} and the method {settings.method} of '{config}' differ; give "
            "one of them."
        )
    return from_pairs(settings, pairs)
