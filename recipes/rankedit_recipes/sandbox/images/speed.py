"""Which precision a machine trains in: measured for seconds, written down, and kept on going on.

Processors without bfloat16 instructions are ten to fifty times slower in it, so nothing is assumed.
"""

import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

from rankedit_recipes.sandbox.checkpoint import write_text

PRECISIONS = ("float32", "bfloat16")
"""What a training can run in."""

SECONDS = 2.5
"""For how long each precision is measured, after one try that does not count."""


def norms_in_float32(module: nn.Module) -> None:
    """Let group norms see float32 under autocast: in half precision they take 15 % of a step.

    Args:
        module: Changed in place; without autocast it computes what it computed before.
    """

    def widened(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(x.float() for x in inputs)

    for part in module.modules():
        if isinstance(part, nn.GroupNorm):
            part.register_forward_pre_hook(widened)


def products_in(precision: str, device: str) -> AbstractContextManager[object]:
    """The context of a forward pass.

    Args:
        precision: One of `PRECISIONS`.
        device: Where it runs.

    Returns:
        Autocast to bfloat16, or nothing.

    Raises:
        ValueError: If the precision is another one.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"products_in: expected one of {PRECISIONS}, got {precision!r}")
    if precision == "float32":
        return nullcontext()
    return torch.autocast(torch.device(device).type, torch.bfloat16)


def fastest(step: Callable[[str], object]) -> dict[str, float]:
    """Seconds of a step in each precision.

    Args:
        step: Does a forward and a backward pass in the precision it is given.

    Returns:
        The least seconds by precision.
    """
    found = {}
    for precision in PRECISIONS:
        begun = time.monotonic()
        times: list[float] = []
        # At least once, however slow the precision is.
        while not times or time.monotonic() - begun < SECONDS:
            start = time.perf_counter()
            step(precision)
            times.append(time.perf_counter() - start)
        # The first one also chooses and compiles kernels; where there is no second one, it must do.
        # The least, since whatever else runs on the machine can only add to a time.
        found[precision] = min(times[1:] or times)
    return found


def chosen_precision(wanted: str, folder: Path, step: Callable[[str], object]) -> str:
    """The precision of a training.

    Args:
        wanted: One of `PRECISIONS`, or "measured".
        folder: The training's folder. A measured choice is kept there in `precision.json`, since a
            resumed training must go on in the precision that it began in; remove that file to
            measure again on another machine.
        step: Does a forward and a backward pass in the precision it is given.

    Returns:
        One of `PRECISIONS`.
    """
    if wanted != "measured":
        return wanted
    file = folder / "precision.json"
    if not file.exists():
        seconds = fastest(step)
        best = min(seconds, key=lambda name: seconds[name])
        write_text(file, json.dumps({"precision": best, "seconds": seconds}) + "\n")
    return str(json.loads(file.read_text())["precision"])
