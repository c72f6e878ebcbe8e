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

from rankedit_recipes.command_line.names import SANDBOX
from rankedit_recipes.diffusion.captions import make_captions
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


def open_pipeline(model: str, *, device: str = "", dtype: str = "float32") -> Pipeline:
    """A pipeline by the name `sandbox`, or from a folder or a hub name that diffusers knows.

    Raises:
        PerfusionError: an unknown dtype, or diffusers cannot open it.
    """
    kinds = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    if dtype not in kinds:
        raise PerfusionError(f"perfusion: dtype must be one of {', '.join(kinds)}, got {dtype!r}.")
    if model == SANDBOX:
        from rankedit_recipes import sandbox

        pipe: Pipeline = sandbox.pipeline(dtype=kinds[dtype])
    else:
        from diffusers import DiffusionPipeline

        try:
            pipe = DiffusionPipeline.from_pretrained(model, torch_dtype=kinds[dtype])
        except (OSError, ValueError) as error:
            raise PerfusionError(
                f"perfusion: the model {model!r} cannot be opened: {error}. Give '{SANDBOX}', a "
                "folder that diffusers wrote, or a name on the hub."
            ) from error
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))


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

    rng = random.Random("perfusion captions")
    return [caption(draw_scene(rng), rng, described=DESCRIBED) for _ in range(count)]


def open_scorer(clip: str) -> ClipScorer:
    """CLIP scores by the name `sandbox`, or by a CLIP model's folder or hub name.

    Raises:
        PerfusionError: transformers cannot open it.
    """
    if clip == SANDBOX:
        from rankedit_recipes import sandbox

        model, tokenizer = sandbox.world_clip()
        return ClipScorer(model, _small_pictures, tokenizer)
    from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizerFast

    try:
        return ClipScorer(
            CLIPModel.from_pretrained(clip),
            CLIPImageProcessorPil.from_pretrained(clip),
            CLIPTokenizerFast.from_pretrained(clip),
        )
    except (OSError, ValueError) as error:
        raise PerfusionError(
            f"perfusion: the CLIP model {clip!r} cannot be opened: {error}. Give '{SANDBOX}', a "
            "folder, or a name on the hub such as 'openai/clip-vit-base-patch32'."
        ) from error


def _small_pictures(images: Sequence[Image.Image], return_tensors: str) -> Any:  # noqa: ANN401, ARG001
    """Pictures of the sandbox as its CLIP takes them: 48 pixels, −1 to 1."""
    resized = [image.convert("RGB").resize((48, 48)) for image in images]
    array = np.stack([np.asarray(image) for image in resized]).astype(np.float32)
    pixels = torch.from_numpy(array / 127.5 - 1).permute(0, 3, 1, 2)
    return SimpleNamespace(pixel_values=pixels)
