"""How much memory is left, and how much of it is said in words."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_CGROUP = Path("/sys/fs/cgroup")


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a device; of main memory what a container may still take, too."""
    if device.type == "cuda":
        import torch

        return torch.cuda.mem_get_info(device)[0]
    import psutil

    free = int(psutil.virtual_memory().available)
    try:
        # psutil tells of the machine, and a container may have a part of it only.
        most, used = ((_CGROUP / f"memory.{name}").read_text() for name in ("max", "current"))
        return min(free, max(0, int(most) - int(used)))
    except (OSError, ValueError):  # no container, or one without a limit ("max")
        return free


def size_text(size: float) -> str:
    """Bytes in words.

    Example:
        >>> size_text(3.3e9), size_text(52_000), size_text(12)
        ('3.3 GB', '0.1 MB', '0.0 MB')
    """
    return f"{size / 1e9:,.1f} GB" if size >= 1e8 else f"{size / 1e6:,.1f} MB"
