"""Reads the shipped weights: lazily, offline, and with words when a file is broken."""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

WEIGHTS = Path(__file__).parent / "weights"
"""The weights that come with the package."""

REBUILD = "python -m rankedit_recipes.sandbox.train --preset cpu"
REBUILD_JUDGES = "python -m rankedit_recipes.sandbox.train --judges"


class WeightsError(RuntimeError):
    """A weight file is missing or broken."""


def read_weights(file: Path, rebuild: str = REBUILD) -> dict[str, Tensor]:
    """Read a weight file.

    Args:
        file: A safetensors file.
        rebuild: The command that makes it.

    Returns:
        Its tensors.

    Raises:
        WeightsError: If it is missing or broken; the message names it and the command.
    """
    if not file.is_file():
        raise WeightsError(f"read_weights: {file} is missing; rebuild it with `{rebuild}`")
    try:
        return load_file(file)
    except SafetensorError as error:
        raise WeightsError(
            f"read_weights: {file} is corrupt ({error}); rebuild it with `{rebuild}`"
        ) from error


def load_weights_into(modules: nn.ModuleDict, folder: Path) -> None:
    """Load the text encoder and the UNet of a saved pipeline into modules that are being trained.

    Args:
        modules: "text_encoder" and "unet".
        folder: Folder of the pipeline.

    Raises:
        WeightsError: If a file is missing or broken.
    """
    files = {
        "text_encoder": folder / "text_encoder" / "model.safetensors",
        "unet": folder / "unet" / "diffusion_pytorch_model.safetensors",
    }
    for name, file in files.items():
        weights = {key: value.float() for key, value in read_weights(file).items()}
        modules[name].load_state_dict(weights)
