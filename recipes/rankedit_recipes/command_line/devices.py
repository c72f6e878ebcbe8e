"""Where a model runs, and in which numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rankedit_recipes.command_line.boundary import one_line
from rankedit_recipes.command_line.errors import CommandError

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "bfloat16", "float16")


def chosen_device(text: str) -> torch.device:
    """The device of that name; without one the first CUDA device, or the processor.

    Raises:
        CommandError: no such device, or not on this machine; says which there are.
    """
    import torch

    if not text:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(text)
        # torch makes tensors there without a word.
        if device.type == "meta":
            raise ValueError("it holds no numbers")
        # Only a tensor on it tells whether this build of torch and this machine have it.
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, ValueError, NotImplementedError) as error:
        raise CommandError(
            f"--device {text} cannot be used here ({one_line(error, 120)}); this machine has "
            f"{', '.join(_devices())}: give --device {_devices()[-1]}, or leave it out."
        ) from error
    return device


def chosen_dtype(text: str, device: torch.device) -> torch.dtype:
    """The dtype of that name; without one bfloat16 on an accelerator that has it, else float32.

    Raises:
        CommandError: an unknown name.
    """
    import torch

    if text and text not in DTYPES:
        raise CommandError(f"--dtype must be one of {', '.join(DTYPES)}, got {text!r}.")
    if text:
        chosen: torch.dtype = getattr(torch, text)
        return chosen
    return torch.bfloat16 if has_bfloat16(device) else torch.float32


def has_bfloat16(device: torch.device) -> bool:
    """Whether it computes in bfloat16 by itself; the processor counts as one that does not.

    On a processor bfloat16 saves memory and costs time, and half the digits: it is for who asks.
    """
    import torch

    if device.type == "cuda":
        # Emulated on cards before Ampere: slower there than float32.
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return False
    try:
        torch.ones(2, 2, dtype=torch.bfloat16, device=device) @ torch.ones(
            2, 2, dtype=torch.bfloat16, device=device
        )
    except (RuntimeError, TypeError, NotImplementedError):
        return False
    return True


def check_offload(offload: str, device: torch.device) -> None:
    """Refuse to keep a model in main memory for the sake of main memory.

    Raises:
        CommandError: there is no accelerator to offload from.
    """
    if offload != "none" and device.type == "cpu":
        raise CommandError(
            f"--offload {offload} is for an accelerator, but the model runs on the cpu; leave it "
            "out, or give --device."
        )


def _devices() -> list[str]:
    import torch

    found = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    return [*found, "mps"] if torch.backends.mps.is_available() else found
