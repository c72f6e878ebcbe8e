"""Reads files that ship with the sandbox, with words when one is missing or broken."""

import json
import subprocess
from collections.abc import Collection
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn


class WeightsError(RuntimeError):
    """A file of the shipped models is missing or broken."""


def check_there(file: Path, rebuild: str) -> None:
    """Refuse a file that is not there.

    Args:
        file: The file.
        rebuild: The command that makes it.

    Raises:
        WeightsError: If there is none.
    """
    if not file.is_file():
        raise WeightsError(f"sandbox: {file} is missing; rebuild it with `{rebuild}`")


def broken(file: Path, error: Exception, rebuild: str) -> WeightsError:
    """What to say of a file that cannot be read.

    Args:
        file: The file.
        error: Why.
        rebuild: The command that makes it.

    Returns:
        The exception to raise.
    """
    return WeightsError(f"sandbox: {file} is corrupt ({error}); rebuild it with `{rebuild}`")


def read_weights(file: Path, rebuild: str) -> dict[str, Tensor]:
    """Read a weight file.

    Args:
        file: A safetensors file.
        rebuild: The command that makes it.

    Returns:
        Its tensors, in single precision.

    Raises:
        WeightsError: If it is missing or broken; the message names it and the command.
    """
    check_there(file, rebuild)
    try:
        return {name: value.float() for name, value in load_file(file).items()}
    except SafetensorError as error:
        raise broken(file, error, rebuild) from error


def read_config(file: Path, rebuild: str) -> dict[str, object]:
    """Read a file of settings.

    Args:
        file: A JSON file.
        rebuild: The command that makes it.

    Returns:
        The settings.

    Raises:
        WeightsError: If it is missing or broken; the message names it and the command.
    """
    check_there(file, rebuild)
    try:
        settings: dict[str, object] = json.loads(file.read_text())
    # Broken JSON and bytes that are no UTF-8 are both ValueErrors.
    except ValueError as error:
        raise broken(file, error, rebuild) from error
    return settings


def fill(module: nn.Module, file: Path, rebuild: str, *, tied: Collection[str] = ()) -> None:
    """Load a file into a module and make it ready for use.

    Args:
        module: What the weights are for.
        file: A safetensors file.
        rebuild: The command that makes it.
        tied: Names under which the module has a tensor a second time; the file has it once.

    Raises:
        WeightsError: If the file is missing, broken, or of another module.
    """
    weights = read_weights(file, rebuild)
    own = {name: value for name, value in module.state_dict().items() if name not in tied}
    # Compared here: `load_state_dict` would list every name, and no remedy.
    wanted = {name: tuple(value.shape) for name, value in own.items()}
    if wanted != {name: tuple(value.shape) for name, value in weights.items()}:
        raise WeightsError(
            f"sandbox: {file} is corrupt: it holds {len(weights)} tensors that are not the "
            f"{len(wanted)} of a {type(module).__name__}; rebuild it with `{rebuild}`"
        )
    # Nothing but second names can be missing by now; transformers writes a tied tensor once.
    module.load_state_dict(weights, strict=not tied)
    module.eval().requires_grad_(requires_grad=False)


def revision() -> str:
    """The git revision of the working directory, or "unknown" outside a repository."""
    try:
        told = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return told.stdout.strip()
