"""Which model a command works with, and where."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rankedit_recipes.command_line.names import SANDBOX
from rankedit_recipes.command_line.options import Offloading

SINGLE_FILES = (".safetensors", ".ckpt", ".gguf")


@dataclass(frozen=True)
class ModelChoice:
    """What was typed about the model.

    Attributes:
        name: `sandbox`, a folder, a file, or a name on the hub.
        device: empty for the machine's best.
        dtype: empty for what the device computes in well.
        variant: of the weights' files; empty for none.
        offload: how much of the model is on the device at a time.
        base: of a single file, the folder or the name of a pipeline that it was trained from.
    """

    name: str = SANDBOX
    device: str = ""
    dtype: str = ""
    variant: str = ""
    offload: Offloading = "none"
    base: str = ""

    @property
    def is_sandbox(self) -> bool:
        """Whether it is the model that comes with the package."""
        return self.name == SANDBOX

    @property
    def file(self) -> Path | None:
        """The single file that it is, if it is one."""
        # By its ending, whether it is there or not: a missing file is no name on the hub.
        path = Path(self.name)
        return path if path.suffix.lower() in SINGLE_FILES else None
