"""What the processes of a `torch.distributed` group say to each other about statistics."""

from __future__ import annotations

from typing import Any, TypeVar

import torch

from rankedit.errors import StatisticsError

Said = TypeVar("Said")


def group_device(call: str, group: torch.distributed.ProcessGroup | None) -> torch.device:
    """The device through which a group's tensors travel.

    Raises:
        StatisticsError: no process group is initialised.
    """
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        raise StatisticsError(
            f"{call}: needs an initialised process group; call "
            "torch.distributed.init_process_group (torchrun sets its variables) first."
        )
    on_cuda = "nccl" in distributed.get_backend(group)
    return torch.device("cuda", torch.cuda.current_device()) if on_cuda else torch.device("cpu")


def gathered(said: Said, group: torch.distributed.ProcessGroup | None) -> list[Said]:
    """What each process of the group says, in their order."""
    found: list[Any] = [None] * torch.distributed.get_world_size(group)
    torch.distributed.all_gather_object(found, said, group=group)
    return found
