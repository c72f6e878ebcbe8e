"""Checkpoints that survive a kill at any moment: written aside, checked, then renamed."""

import hashlib
import json
import os
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

KEPT = 2
"""Checkpoints that stay; older ones are removed."""


class Checkpoint(NamedTuple):
    """State of a training.

    Attributes:
        step: Steps done.
        tensors: Weights, their averages and the optimiser's moments.
    """

    step: int
    tensors: dict[str, Tensor]


def sha256(file: Path) -> str:
    """Hash of a file's bytes."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_text(file: Path, text: str) -> None:
    """Replace a file's text in one atomic step.

    Args:
        file: The file.
        text: Its new content.
    """
    scratch = file.with_name(f".{file.name}.{os.getpid()}")
    with scratch.open("w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    scratch.replace(file)


def save_checkpoint(folder: Path, state: Checkpoint) -> Path:
    """Write a checkpoint; earlier ones stay valid until it is complete.

    Args:
        folder: Where checkpoints lie.
        state: What to write.

    Returns:
        The file. Its hash lies beside it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"step-{state.step:08d}.safetensors"
    scratch = folder / f".{file.name}.{os.getpid()}"
    save_file({k: v.contiguous() for k, v in state.tensors.items()}, scratch, {"format": "pt"})
    with scratch.open("rb+") as stream:
        os.fsync(stream.fileno())
    digest = sha256(scratch)
    scratch.replace(file)
    write_text(file.with_suffix(".json"), json.dumps({"step": state.step, "sha256": digest}))
    for old in sorted(folder.glob("step-*.safetensors"))[:-KEPT]:
        old.with_suffix(".json").unlink(missing_ok=True)
        old.unlink()
    return file


def latest_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest checkpoint whose bytes match their hash.

    Args:
        folder: Where checkpoints lie.

    Returns:
        The checkpoint, or None where there is none that is intact.
    """
    for file in sorted(folder.glob("step-*.safetensors"), reverse=True):
        note = file.with_suffix(".json")
        if not note.exists():
            continue
        told = json.loads(note.read_text())
        if sha256(file) != told["sha256"]:
            continue
        try:
            with safe_open(file, framework="pt") as stored:
                tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        except SafetensorError:
            continue
        return Checkpoint(int(told["step"]), tensors)
    return None
