"""Opening what the command line names: pipelines, scorers and captions."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image

from rankedit_recipes.command_line.boundary import one_line
from rankedit_recipes.command_line.choices import ModelChoice
from rankedit_recipes.command_line.devices import check_offload, chosen_device, chosen_dtype
from rankedit_recipes.command_line.names import SANDBOX
from rankedit_recipes.command_line.quiet import quiet_imports
from rankedit_recipes.diffusion.captions import make_captions
from rankedit_recipes.diffusion.opening import load_pipeline, place
from rankedit_recipes.diffusion.scoring import ClipScorer
from rankedit_recipes.diffusion.statistics import read_captions
from rankedit_recipes.diffusion.text import Pipeline
from rankedit_recipes.perfusion.errors import PerfusionError
from rankedit_recipes.perfusion.learning.config import Config
from rankedit_recipes.perfusion.prompts import CONTEXTS

SANDBOX_CONFIG = Config(
    lock="coarse", adjective="new", contexts=CONTEXTS, steps=500, value_rate=0.3, flip=False
)
"""How concepts are learned on the sandbox: `docs/decisions/coarse-key-lock.md` says why. Nothing is
mirrored, for its patterns have a left and a right."""


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


def open_config(path: Path | None, model: str) -> Config:
    """Settings of learning: the defaults, or the sandbox's own, and a TOML file's on top.

    Raises:
        PerfusionError: the file cannot be read or has wrong settings.
    """
    own = SANDBOX_CONFIG if model == SANDBOX else Config()
    return own if path is None else Config.from_toml(path, own)


def open_captions(path: Path | None, model: str) -> list[str]:
    """Captions from a file; without one those of the sandbox, or of a small grammar."""
    if path is not None:
        return read_captions(path)
    return sandbox_captions() if model == SANDBOX else make_captions()


def sandbox_captions(count: int = 2000) -> list[str]:
    """Captions of the sandbox's world, as its generator was trained on."""
    from rankedit_recipes.sandbox.images.captions import DESCRIBED, caption
    from rankedit_recipes.sandbox.images.scenes import draw_scene

    # The same captions each time: concepts have one metric then, and can be merged.
    rng = random.Random("perfusion captions")
    return [caption(draw_scene(rng), rng, described=DESCRIBED) for _ in range(count)]


def check_category(category: str, model: str) -> None:
    """Refuse, before anything is loaded, a kind of thing that the sandbox has never seen.

    Raises:
        PerfusionError: lists those that it knows.
    """
    if model != SANDBOX:
        return
    from rankedit_recipes.sandbox.images.vocabulary import CATEGORIES

    # The last word of a phrase is its noun, as where positions are looked up.
    if (category.split() or [""])[-1] not in CATEGORIES:
        raise PerfusionError(
            f"learn: the sandbox knows no {category!r}; give --category one of "
            f"{', '.join(sorted(CATEGORIES))}."
        )


def open_scorer(clip: str) -> ClipScorer:
    """CLIP scores by the name `sandbox`, or by a CLIP model's folder or hub name.

    Raises:
        PerfusionError: transformers cannot open it.
    """
    if clip == SANDBOX:
        with quiet_imports():
            from rankedit_recipes import sandbox

            model, tokenizer = sandbox.world_clip()
        return ClipScorer(model, _small_pictures, tokenizer)
    with quiet_imports():
        # By name: `CLIPImageProcessor` (transformers 5.23) warns if torchvision is missing.
        from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizerFast

    try:
        return ClipScorer(
            CLIPModel.from_pretrained(clip),
            CLIPImageProcessorPil.from_pretrained(clip),
            CLIPTokenizerFast.from_pretrained(clip),
        )
    except Exception as error:  # of transformers: nearly anything, for damaged and foreign folders
        raise PerfusionError(
            f"perfusion: the CLIP model '{clip}' cannot be opened: {one_line(error)}. Give --clip "
            f"'{SANDBOX}', a folder, or a name on the hub such as openai/clip-vit-base-patch32."
        ) from error


def _small_pictures(images: Sequence[Image.Image], return_tensors: str) -> Any:  # noqa: ANN401, ARG001
    """Pictures of the sandbox as its CLIP takes them: 48 pixels, −1 to 1."""
    # The size that the sandbox's pictures have, in which its CLIP was trained.
    resized = [image.convert("RGB").resize((48, 48)) for image in images]
    array = np.stack([np.asarray(image) for image in resized]).astype(np.float32)
    pixels = torch.from_numpy(array / 127.5 - 1).permute(0, 3, 1, 2)
    return SimpleNamespace(pixel_values=pixels)
