"""Pipelines as people have them: folders, names on the hub, and single files."""

from __future__ import annotations

from pathlib import Path

import torch

from rankedit_recipes.command_line.boundary import one_line
from rankedit_recipes.command_line.choices import ModelChoice
from rankedit_recipes.command_line.errors import CommandError
from rankedit_recipes.command_line.names import SANDBOX
from rankedit_recipes.command_line.quiet import quiet_imports
from rankedit_recipes.diffusion.text import Pipeline

_WAYS = (
    f"Give --model '{SANDBOX}', a folder that diffusers wrote, a .safetensors or .ckpt file, or a "
    "name on the hub."
)


def load_pipeline(choice: ModelChoice, dtype: torch.dtype) -> Pipeline:
    """A pipeline from a folder, a name on the hub, or a single file, in main memory.

    Raises:
        CommandError: diffusers cannot open it; one line that says why, and what may be given.
    """
    with quiet_imports():
        import diffusers
    file = choice.file
    if file is not None and file.suffix.lower() == ".gguf":
        raise CommandError(
            f"'{file}' is a GGUF file, which holds a part of a pipeline or a language model, and "
            f"no whole pipeline. {_WAYS}"
        )
    try:
        if file is not None:
            return _from_file(file, choice, dtype)
        return diffusers.DiffusionPipeline.from_pretrained(
            choice.name, torch_dtype=dtype, variant=choice.variant or None
        )
    # Our own words, which the next clause would wrap.
    except CommandError:
        raise
    except Exception as error:
        # Damaged and foreign folders make diffusers raise nearly anything.
        raise CommandError(
            f"the model '{choice.name}' cannot be opened: {one_line(error)}. {_WAYS}"
        ) from error


def _from_file(file: Path, choice: ModelChoice, dtype: torch.dtype) -> Pipeline:
    """A pipeline of a checkpoint in one file, in the layout of its first authors.

    Such a file has weights only. What they are weights of stands in the configuration of the
    pipeline that it was trained from, which diffusers tells from the weights' shapes and gets from
    the hub, or which is in a folder.
    """
    import diffusers
    from diffusers.loaders.single_file_utils import (
        fetch_diffusers_config,
        load_single_file_checkpoint,
    )

    if not file.is_file():
        raise CommandError(f"there is no file '{file}'. {_WAYS}")
    base = choice.base
    if not base:
        weights = load_single_file_checkpoint(str(file))
        # As `from_single_file` of diffusers 0.42 does, but here what cannot be read is named.
        base = fetch_diffusers_config(weights)["pretrained_model_name_or_path"]
    try:
        name = diffusers.DiffusionPipeline.load_config(base)["_class_name"]
    except (OSError, ValueError, KeyError) as error:
        raise CommandError(
            f"'{file}' is a single file, whose settings and tokenizer are those of '{base}', which "
            f"cannot be read: {one_line(error)}. Give --base a folder with them: a pipeline of the "
            "same kind that diffusers wrote."
        ) from error
    kind = getattr(diffusers, name, None)
    if kind is None or not hasattr(kind, "from_single_file"):
        raise CommandError(
            f"'{file}' is a {name}, which diffusers does not read from a single file; convert it "
            "to a folder and give that."
        )
    return kind.from_single_file(str(file), config=base, torch_dtype=dtype)


def place(pipe: Pipeline, device: torch.device, offload: str) -> Pipeline:
    """The pipeline on a device, or in main memory with parts that visit the device.

    Args:
        pipe: as it was loaded.
        device: where it computes.
        offload: `"none"`, `"model"` or `"sequential"`.
    """
    if offload == "model":
        pipe.enable_model_cpu_offload(device=device)
    elif offload == "sequential":
        pipe.enable_sequential_cpu_offload(device=device)
    else:
        pipe = pipe.to(device)
    return pipe
