"""Options of the commands: what each is called, takes and says of itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from rankedit_recipes.perfusion.errors import PerfusionError
from rankedit_recipes.perfusion.locks import Floor, HeldLock

# `explain --floor` and others take a number or one of these words.
_FLOORS = ("own", "none")

Model = Annotated[
    str,
    typer.Option(
        help="'sandbox', a diffusers folder, a .safetensors or .ckpt file, or a name on the hub."
    ),
]
Base = Annotated[
    str,
    typer.Option(
        help="For a single file: folder or hub name of the pipeline it was trained from, for "
        "settings and tokenizer.",
        show_default="told from the weights",
    ),
]
# `exists`, here and below: typer refuses before anything heavy is imported.
Concepts = Annotated[list[Path], typer.Argument(help="Concept files.", exists=True)]
OneConcept = Annotated[Path, typer.Argument(help="A concept file.", exists=True)]
SamplingSteps = Annotated[int, typer.Option(help="Steps that a picture is sampled in.", min=1)]
Guidance = Annotated[float, typer.Option(help="Scale of classifier-free guidance.")]
Size = Annotated[
    int, typer.Option(help="Edge of pictures in pixels.", min=0, show_default="the model's own")
]
Pictures = Annotated[
    int, typer.Option(help="Pictures of each prompt, with seeds from --seed on.", min=1)
]
FirstSeed = Annotated[int, typer.Option(help="Seed of the first picture of each prompt.")]
Bias = Annotated[
    float | None,
    typer.Option(
        help="Of the gate: higher lets less of the concept through.", show_default="the concept's"
    ),
]
Temperature = Annotated[
    float | None,
    typer.Option(help="Of the gate: higher makes it softer.", show_default="the concept's"),
]
DeadZone = Annotated[
    str,
    typer.Option(
        help="Dead zone: tokens less similar than this are left as they are; 'none', or 'own' for "
        "the concepts' own."
    ),
]
Lock = Annotated[
    HeldLock | None,
    typer.Option(
        help="Lock all keys of the word, or of the whole prompt, to what it stands for.",
        show_default="the concept's",
    ),
]
Clip = Annotated[
    str,
    typer.Option(
        help="CLIP model that scores, a folder or hub name.", show_default="the sandbox's, for it"
    ),
]
Photos = Annotated[Path, typer.Option(help="Folder of photos of the concept.", exists=True)]
# Not `exists`: first `learn` says all that is needed, and then what is not there.
OptionalPhotos = Annotated[
    Path | None,
    typer.Argument(help="Folder of photos of the thing, or a photo; one is enough to begin."),
]
ConceptFile = Annotated[
    Path | None,
    typer.Option(help="Where the concept file goes.", show_default="PLACEHOLDER.safetensors"),
]
Placeholder = Annotated[
    str,
    typer.Option(
        help="The new word for it, in angle brackets.",
        show_default="the name of --out, or of the photos: <bean> for photos/bean",
    ),
]
Category = Annotated[
    str, typer.Option(help="What kind of thing it is, in a word that the model knows; needed.")
]
Captions = Annotated[
    Path | None,
    typer.Option(help="Text file of captions, one on a line.", exists=True, show_default="made up"),
]
CountedTokens = Annotated[
    Literal["all", "eos", "content"],
    typer.Option(help="Positions that count: all, without padding, or the words alone."),
]
CaptionStatistics = Annotated[
    Path | None,
    typer.Option(
        help="Statistics that `stats` wrote, in the place of captions.",
        exists=True,
        show_default="collected from --captions",
    ),
]
LearnSteps = Annotated[
    int | None, typer.Option(help="Steps of training.", show_default="see --print-config")
]
Vectors = Annotated[
    int | None,
    typer.Option(
        help="Vectors of the word, as textual inversion has several; more take more of a prompt.",
        show_default="1",
    ),
]
LearnSize = Annotated[
    int | None,
    typer.Option(help="Edge of training pictures in pixels.", show_default="the model's own"),
]
Seed = Annotated[
    int | None, typer.Option(help="Of what is drawn: same seed, same file.", show_default="0")
]
Run = Annotated[
    Path | None, typer.Option(help="Folder for checkpoints.", show_default="--out with .run")
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on with the interrupted training of that folder.")
]
Judge = Annotated[
    str,
    typer.Option(
        "--clip",
        help="CLIP model that judges on the way, so that the best state is kept; 'sandbox', a "
        "folder or a hub name.",
        show_default="none: the last state is kept",
    ),
]


def gate(
    bias: float | None, temperature: float | None, lock: HeldLock | None, floor: str
) -> dict[str, Any]:
    """Arguments of `apply` from what was typed.

    Raises:
        PerfusionError: the dead zone is neither a number nor 'own' nor 'none', or the temperature
            makes no gate.
    """
    height: Floor = None if floor == "none" else "own"
    # typer has no type for a number or a word: the text is read here.
    if floor not in _FLOORS:
        try:
            height = float(floor)
        except ValueError as error:
            raise PerfusionError(
                f"perfusion: --floor must be a number, 'own' or 'none', got {floor!r}."
            ) from error
    # `apply` refuses it too, but only after the model was loaded.
    if temperature is not None and not temperature > 0:
        raise PerfusionError(
            f"perfusion: --temperature must be positive, got {temperature:g}; 0.01 makes a sharp "
            "gate."
        )
    return {"bias": bias, "temperature": temperature, "lock": lock, "floor": height}
