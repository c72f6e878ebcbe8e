"""Options of the commands: what each is called, takes and says of itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[
    str,
    typer.Option(
        help="'sandbox', a folder of transformers, a .gguf file, or a name on the hub.",
    ),
]
# `exists`, here and below: typer refuses before anything heavy is imported.
Requests = Annotated[
    list[Path] | None,
    typer.Argument(
        help='Files of requests: JSON Lines of {"prompt": "{} plays the", "subject": ..., '
        "\"target\": ...}, or CounterFact's or zsRE's own. The sandbox has a test set of its own.",
        exists=True,
    ),
]
Count = Annotated[int, typer.Option(help="Take so many requests, from the first; 0 for all.")]
Stream = Annotated[Path, typer.Argument(help="Folder of a stream of edits.", exists=True)]
OptionalStream = Annotated[
    Path | None,
    typer.Option(
        help="Folder in which edits are kept, to add to and undo later.", show_default="none"
    ),
]
Stats = Annotated[
    Path | None,
    typer.Option(
        help="Statistics that `stats` wrote.", exists=True, show_default="the sandbox collects some"
    ),
]
Layers = Annotated[
    str,
    typer.Option(
        help="Blocks such as 5 or 3,4,5, or a pattern of projections. For edits also 'traced': "
        "where a causal trace of the requests finds the facts.",
        show_default="by the method's rule",
    ),
]
Lora = Annotated[
    Path | None,
    typer.Option(help="Also as a LoRA of PEFT, exact, in this folder.", show_default="none"),
]
Fuse = Annotated[
    Path | None,
    typer.Option(
        help="Also as a whole model in this folder, the edits in its weights.", show_default="none"
    ),
]
Method = Annotated[
    str,
    typer.Option(
        help="rome, r-rome, memit, encore, emmet, alphaedit or rlsedit, or package.module:function "
        "of your own (docs/new-method.md).",
        show_default="memit, or that of the stream",
    ),
]
OwnMethod = Annotated[
    str,
    typer.Option(
        help="package.module:function, for a stream of a method of your own.", show_default="none"
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        help="Where the edits go.", show_default="edits.safetensors; with --stream only there"
    ),
]
Replace = Annotated[
    bool, typer.Option("--replace", help="Requests take the place of facts of the stream.")
]
Texts = Annotated[
    list[Path] | None,
    typer.Option(
        "--text",
        help="File or folder of unrelated text, for the locality; repeat.",
        show_default="the sandbox has some",
    ),
]
Chat = Annotated[
    bool,
    typer.Option(
        "--chat",
        help="Prompts are what the user says in a chat, targets what the assistant begins with.",
    ),
]
Space = Annotated[
    bool | None,
    typer.Option(
        help="Whether a space comes before targets.",
        show_default="yes, but not behind Chinese, Japanese, Thai and the like",
    ),
]
References = Annotated[
    Path | None,
    typer.Option(
        help="CounterFact's attribute_snippets.json: with --generations, the reference score.",
        exists=True,
        show_default="none",
    ),
]
ContextTexts = Annotated[
    list[Path] | None,
    typer.Option(
        "--text",
        help="File or folder of your text, of which sentences stand before prompts; repeat.",
        exists=True,
        show_default="the model writes them",
    ),
]
Generations = Annotated[
    bool, typer.Option("--generations", help="Also let the model write: generation entropy.")
]
Edits = Annotated[
    list[Path] | None,
    typer.Option(help="File of edits to attach; repeat.", exists=True, show_default="none"),
]
Jsonl = Annotated[
    bool, typer.Option("--jsonl", help='The standard input is JSON Lines of {"text": ...}.')
]
