"""Options of the commands: what each is called, takes and says of itself."""

from pathlib import Path
from typing import Annotated, Any

import typer

from rankedit_recipes.perfusion.errors import PerfusionError
from rankedit_recipes.perfusion.locks import Floor, HeldLock

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
DeadZone = Annotated[
    str,
    typer.Option(
        help="Dead zone: tokens less similar than this are left as they are; 'none', or 'own' for "
        "the concepts' own."
    ),
]
Lock = Annotated[
    HeldLock | None,
    typer.Option(help="Lock all keys of the word, or of the whole prompt, to what it stands for."),
]
Clip = Annotated[
    str, typer.Option(help="CLIP model that scores, a folder or hub name; the sandbox has its own.")
]
Photos = Annotated[Path, typer.Option(help="Folder of photos of the concept.", exists=True)]
OptionalPhotos = Annotated[
    Path | None,
    typer.Argument(help="Folder of photos of the thing, or a photo; one is enough to begin."),
]
ConceptFile = Annotated[Path, typer.Option(help="Where the concept file goes.")]
Placeholder = Annotated[str, typer.Option(help="The new word for it, in angle brackets.")]
Category = Annotated[
    str, typer.Option(help="What kind of thing it is, in a word that the model knows; needed.")
]
Captions = Annotated[
    Path | None,
    typer.Option(help="Text file of captions, one on a line; made up if not given.", exists=True),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option(help="TOML file of settings, see --print-config; on top of the model's own."),
]
Setting = Annotated[
    list[str] | None, typer.Option("--set", help="One setting, such as steps=400; repeat.")
]
LearnSteps = Annotated[int | None, typer.Option(help="Optimiser steps.")]
Seed = Annotated[int | None, typer.Option(help="Same seed, same file.")]
Run = Annotated[
    Path | None, typer.Option(help="Folder for checkpoints; next to the concept if not given.")
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on with the interrupted training of that folder.")
]
Validate = Annotated[
    str, typer.Option(help="CLIP model that chooses the best state, as --clip of evaluate.")
]
PrintConfig = Annotated[
    bool, typer.Option("--print-config", help="Print all settings as TOML, and stop.")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Say what would be learned, how large it gets; stop.")
]


def gate(
    bias: float | None, temperature: float | None, lock: HeldLock | None, floor: str
) -> dict[str, Any]:
    """Arguments of `apply` from what was typed.

    Raises:
        PerfusionError: the dead zone is neither a number nor 'own' nor 'none'.
    """
    height: Floor = None if floor == "none" else "own"
    if floor not in ("none", "own"):
        try:
            height = float(floor)
        except ValueError as error:
            raise PerfusionError(
                f"perfusion: --floor must be a number, 'own' or 'none', got {floor!r}."
            ) from error
    return {"bias": bias, "temperature": temperature, "lock": lock, "floor": height}
