"""How a concept for joint attention is learned."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from rankedit_recipes.perfusion.errors import PerfusionError
from rankedit_recipes.perfusion.prompts import TEMPLATES


@dataclass(frozen=True)
class JointConfig:
    """How a concept for joint attention is learned.

    Attributes:
        steps: optimiser steps.
        batch: photos in a step, drawn with repetition.
        knots: times, evenly from none to all noise, at which values and keys are learned; between
            them they are interpolated. 1 for the same at all times.
        keys: whether keys are learned beside values; how far they act is chosen for pictures.
        rate: of Adam, relative to the root mean square of what each projection gives.
        warmup: steps over which the rate rises; over the second half of all it falls to zero.
        flip: mirror photos at random; wrong for things that have a left and a right.
        templates: prompts to learn in, with `{}` for the word.
        size: edge of the training pictures in pixels; 0 for what the model was made for.
        checkpointing: recompute activations in the backward pass, to save memory.
        seed: of everything that is drawn.
        checkpoint_every: steps between checkpoints, if there is a run folder.
    """

    steps: int = 150
    batch: int = 12
    knots: int = 4
    keys: bool = True
    rate: float = 0.3
    warmup: int = 20
    flip: bool = True
    templates: tuple[str, ...] = TEMPLATES
    size: int = 0
    checkpointing: bool = False
    seed: int = 0
    checkpoint_every: int = 25

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "knots", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise PerfusionError(
                    f"JointConfig: {name} must be at least 1, got {getattr(self, name)}."
                )
        if not (self.rate > 0 and math.isfinite(self.rate)) or self.warmup < 0:
            raise PerfusionError(
                "JointConfig: rate must be positive and warmup not negative, got "
                f"{self.rate} and {self.warmup}."
            )

    def rate_at(self, step: int) -> float:
        """What the rate is multiplied by in a step."""
        rise = min(1.0, (step + 1) / (self.warmup + 1))
        return rise * min(1.0, 2 * (self.steps - step) / self.steps)

    def deciding(self) -> dict[str, str]:
        """What decides the result, as texts by name: all settings but how often it is kept."""
        return {n: str(v) for n, v in asdict(self).items() if n != "checkpoint_every"}
