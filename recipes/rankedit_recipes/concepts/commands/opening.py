"""Opening what the command line names: pipelines and captions."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image

from rankedit_recipes.command_line.boundary import one_line
from rankedit_recipes.command_line.choices import ModelChoice
from rankedit_recipes.command_line.devices import check_offload, chosen_device, chosen_dtype
from rankedit_recipes.command_line.names import SANDBOX
from rankedit_recipes.command_line.quiet import quiet_imports
from rankedit_recipes.concepts.errors import ConceptsError
from rankedit_recipes.diffusion.captions import make_captions
from rankedit_recipes.diffusion.opening import load_pipeline, place
from rankedit_recipes.diffusion.scoring import ClipScorer
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


def open_clip(name: str) -> ClipScorer:
    """A CLIP model: `sandbox`, a folder, or a name on the hub.

    Raises:
        ConceptsError: transformers cannot open it.
    """
    if name == SANDBOX:
        with quiet_imports():
            from rankedit_recipes import sandbox

            model, tokenizer = sandbox.world_clip()
        return ClipScorer(model, _small, tokenizer)
    with quiet_imports():
        # By name: `CLIPImageProcessor` (transformers 5.23) warns if torchvision is missing.
        from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizerFast

    try:
        return ClipScorer(
            CLIPModel.from_pretrained(name),
            CLIPImageProcessorPil.from_pretrained(name),
            CLIPTokenizerFast.from_pretrained(name),
        )
    except Exception as error:  # of transformers: nearly anything, for damaged and foreign folders
        raise ConceptsError(
            f"debias: the CLIP model '{name}' cannot be opened: {one_line(error)}. Give --judge a "
            "folder, or a name on the hub such as openai/clip-vit-base-patch32."
        ) from error


def _small(images: Sequence[Image.Image], return_tensors: str) -> SimpleNamespace:  # noqa: ARG001
    """Pictures of the sandbox as its CLIP takes them: 48 pixels, −1 to 1."""
    array = np.stack([np.asarray(image.convert("RGB").resize((48, 48))) for image in images])
    pixels = torch.from_numpy(array.astype(np.float32) / 127.5 - 1).permute(0, 3, 1, 2)
    return SimpleNamespace(pixel_values=pixels)


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
