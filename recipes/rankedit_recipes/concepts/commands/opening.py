"""Opening what the command line names: pipelines and captions."""

from __future__ import annotations

import random
from pathlib import Path

from rankedit_recipes.command_line.choices import ModelChoice
from rankedit_recipes.command_line.devices import check_offload, chosen_device, chosen_dtype
from rankedit_recipes.command_line.names import SANDBOX
from rankedit_recipes.command_line.quiet import quiet_imports
from rankedit_recipes.diffusion.captions import make_captions
from rankedit_recipes.diffusion.opening import load_pipeline, place
from rankedit_recipes.diffusion.statistics import read_captions
from rankedit_recipes.diffusion.text import Pipeline


def open_pipeline(choice: ModelChoice) -> Pipeline:
    """The pipeline that was chosen, where and in the numbers that were chosen.

    Raises:
        CommandError: no such device or dtype, or diffusers cannot open it.
    """
    device = chosen_device(choice.device)
    dtype = chosen_dtype(choice.dtype, device)
    check_offload(choice.offload, device)
    if choice.is_sandbox:
        with quiet_imports():
            from rankedit_recipes import sandbox

            pipe: Pipeline = sandbox.pipeline(dtype=dtype)
    else:
        pipe = load_pipeline(choice, dtype)
    # A bar of diffusers for every picture would bury the lines of the command.
    pipe.set_progress_bar_config(disable=True)
    return place(pipe, device, choice.offload)


def open_captions(path: Path | None, model: str) -> list[str]:
    """Captions from a file; without one those of the sandbox, or of a small grammar."""
    if path is not None:
        return read_captions(path)
    return sandbox_captions() if model == SANDBOX else make_captions()


def sandbox_captions(count: int = 2000) -> list[str]:
    """Captions of the sandbox's world, as its generator was trained on."""
    from rankedit_recipes.sandbox.images.captions import DESCRIBED, caption
    from rankedit_recipes.sandbox.images.scenes import draw_scene

    # The same captions each time: an edit can then be changed with the same statistics.
    rng = random.Random("concepts captions")
    return [caption(draw_scene(rng), rng, described=DESCRIBED) for _ in range(count)]
