"""Options of the commands: what each is called, takes and says of itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rankedit_recipes.command_line.names import SANDBOX
from rankedit_recipes.concepts.errors import ConceptsError
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
Gate = Annotated[
    bool,
    typer.Option(
        "--gate", help="Act on the concepts' own tokens alone; everything else stays bit for bit."
    ),
]
Strength = Annotated[float, typer.Option(help="Of the edit: 1 is all of it, 0 nothing.")]
Judge = Annotated[
    str,
    typer.Option(
        help="Who judges pictures: a CLIP model, by folder or name on the hub.",
        show_default="the sandbox's own, for the sandbox",
    ),
]
Share = Annotated[
    list[str],
    typer.Option(help="An attribute and its share of all pictures, such as red=0.5; repeat."),
]
Pictures = Annotated[int, typer.Option(help="Pictures of each prompt.", min=1)]
Seed = Annotated[int, typer.Option(help="Seed of the first picture of each prompt.")]
SamplingSteps = Annotated[int, typer.Option(help="Steps of sampling.", min=1)]
Guidance = Annotated[float, typer.Option(help="Scale of classifier-free guidance.")]


def check_judge(command: str, judge: str, model: str) -> None:
    """Refuse a judge that has never seen such pictures.

    Raises:
        ConceptsError: says which to give.
    """
    if model != SANDBOX and not judge:
        raise ConceptsError(
            f"{command}: the sandbox's judge knows only the sandbox's pictures; for those of "
            f"{model!r} give one, such as --judge openai/clip-vit-base-patch32."
        )
