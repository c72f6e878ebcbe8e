"""Checkpoints that survive a kill at any moment: written aside, checked, then renamed."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from rankedit.atomic import sync_folder

# Two, so that there is one to go on from where the newest is broken.
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
    # In the same folder, since a rename is atomic within one file system only; with the process's
    # number, so that two writers do not share it.
    scratch = file.with_name(f".{file.name}.{os.getpid()}")
    with scratch.open("w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    scratch.replace(file)


def write_tensors(file: Path, tensors: Mapping[str, Tensor]) -> str:
    """Replace a safetensors file in one atomic step.

    Args:
        file: The file.
        tensors: Its new content.

    Returns:
        The hash of the bytes meant to be there.
    """
    scratch = file.with_name(f".{file.name}.{os.getpid()}")
    save_file({k: v.contiguous() for k, v in tensors.items()}, scratch, {"format": "pt"})
    # Synced before it is renamed: after a power cut the name must not stand for bytes that never
    # reached the disk.
    with scratch.open("rb+") as stream:
        os.fsync(stream.fileno())
    digest = sha256(scratch)
    scratch.replace(file)
    return digest


def keep_lines(file: Path, wanted: Callable[[dict[str, Any]], bool]) -> None:
    """Drop lines of a log, such as those a killed run wrote after its last checkpoint.

    Args:
        file: A log of one JSON object a line; nothing happens where there is none.
        wanted: Whether an entry stays. Lines that were cut off by the kill do not.
    """
    if not file.exists():
        return
    kept = []
    for line in file.read_text().splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        if wanted(entry):
            kept.append(f"{line}\n")
    write_text(file, "".join(kept))


def state_tensors(
    named: Mapping[str, nn.Parameter], optimiser: torch.optim.Optimizer
) -> dict[str, Tensor]:
    """Weights and the optimiser's moments, for a checkpoint.

    Args:
        named: Parameters by name.
        optimiser: What trains them.

    Returns:
        Tensors under `weight.NAME`, `exp_avg.NAME` and so on; they share the originals' memory.
    """
    tensors: dict[str, Tensor] = {}
    for name, parameter in named.items():
        tensors[f"weight.{name}"] = parameter.detach()
        for moment, value in optimiser.state[parameter].items():
            tensors[f"{moment}.{name}"] = value
    return tensors


@torch.no_grad()
def restore_tensors(
    tensors: Mapping[str, Tensor],
    named: Mapping[str, nn.Parameter],
    optimiser: torch.optim.Optimizer,
) -> None:
    """Undo `state_tensors`: put weights and moments back.

    Args:
        tensors: What `state_tensors` returned, in this process or in one that was killed.
        named: Parameters by name.
        optimiser: A fresh Adam over them.
    """
    for name, parameter in named.items():
        parameter.copy_(tensors[f"weight.{name}"])
        moments: dict[str, Tensor] = {}
        for moment in ("step", "exp_avg", "exp_avg_sq"):
            # Adam has no moments before its first step, and neither has a checkpoint of step 0.
            stored = tensors.get(f"{moment}.{name}")
            if stored is not None:
                # Files keep no strides: a moment gets those of its parameter again, such as
                # channels_last.
                # Fused Adam counts its steps where the parameter is, and files are read elsewhere.
                moments[moment] = (
                    stored.to(parameter.device)
                    if moment == "step"
                    else torch.empty_like(parameter).copy_(stored)
                )
        if moments:
            optimiser.state[parameter] = moments


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
    digest = write_tensors(file, state.tensors)
    # The note comes last. A file without one does not count, so that a kill in between leaves the
    # checkpoint before this one.
    write_text(file.with_suffix(".json"), json.dumps({"step": state.step, "sha256": digest}))
    # Before older ones go: a power cut may undo a rename, and keep what was removed after it.
    sync_folder(folder)
    # Files of later steps are broken, or the run would have begun there: they must not push this
    # one out.
    known = [other for other in sorted(folder.glob("step-*.safetensors")) if other <= file]
    for old in known[:-KEPT]:
        # The note goes first: what a kill leaves is then passed over, and removed the next time.
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
                # `safe_open` is no mapping and no iterator (safetensors 0.8), hence `keys()`.
                tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        except SafetensorError:
            continue
        return Checkpoint(int(told["step"]), tensors)
    return None
