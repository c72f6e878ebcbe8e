"""Options of the commands: what each is called, takes and says of itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rankedit_recipes.concepts.requests import About

Words = Annotated[list[str], typer.Argument(help="The concept's word or phrase, and synonyms.")]
To = Annotated[
    list[str] | None,
    typer.Option(
        help="What is made instead; repeat for several, of which the nearest is taken.",
        show_default="nothing",
    ),
]
Hold = Annotated[
    list[str] | None,
    typer.Option(help="A concept that stays as it is; repeat.", show_default="none"),
]
AboutOption = Annotated[
    About, typer.Option("--about", help="A thing, or an attribute that stands before a noun.")
]
Context = Annotated[
    list[str] | None,
    typer.Option(
        help="A template with one {}, such as 'a photo of a {}'; repeat.",
        show_default="the method's own",
    ),
]
# None by default: with --onto, a method that was given must be the file's.
Method = Annotated[
    str | None,
    typer.Option(help="covariance, uce, time, rece or speed.", show_default="covariance"),
]
Captions = Annotated[
    Path | None,
    typer.Option(
        help="Text file of captions, one on a line, for the covariance.",
        exists=True,
        show_default="the sandbox's own, or made up",
    ),
]
Out = Annotated[Path, typer.Option(help="The edit's file.")]
Onto = Annotated[
    Path | None,
    typer.Option(
        help="An edit whose requests are asked for too, with its method.",
        exists=True,
        show_default="none",
    ),
]
EditFile = Annotated[Path, typer.Argument(help="A file of an edit.", exists=True)]
Model = Annotated[
    str,
    typer.Option(
        help="'sandbox', a diffusers folder, a .safetensors or .ckpt file, or a name on the hub."
    ),
]
Base = Annotated[
    str,
    typer.Option(
        help="For a single file: folder or hub name of the pipeline it was trained from.",
        show_default="told from the weights",
    ),
]
