"""What decides the weights of the language model: its size, and how it is trained."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Preset:
    """Settings of a training.

    Attributes:
        pieces: Size of the tokenizer's vocabulary at most.
        width: Width of the residual stream.
        inner: Width inside the MLPs, which is where facts are stored.
        layers: Blocks.
        heads: Attention heads of a block.
        length: Tokens of a row; several texts are packed into one.
        batch: Rows of a step.
        steps: Steps until the rate is zero.
        rate: Peak learning rate.
        decay: Share of the steps over which the rate falls, at the end.
        other_weight: Weight of the loss of tokens that belong to no object. Most of those cannot
            be known (who is spoken of next?), so their gradients are mostly noise.
        familiar: How much the first subjects are preferred at the start, see `text`.
        familiar_for: Share of the steps over which that preference fades.
        spread: Standard deviation of the weights at the start.
        seed: Of weights and texts.
        workers: Processes of one thread that share each step's rows; must divide them.
    """

    # An upper bound: the texts that pieces are learned from give 2,416.
    pieces: int = 2816
    width: int = 128
    # Few wide blocks instead of more narrow ones: docs/decisions/names-that-differ.md.
    inner: int = 1536
    layers: int = 4
    heads: int = 4
    length: int = 128
    batch: int = 8
    steps: int = 3600
    rate: float = 3e-3
    decay: float = 0.5
    # This and the next two: docs/language-sandbox.md, "Training it".
    other_weight: float = 0.2
    familiar: float = 4.0
    familiar_for: float = 0.5
    spread: float = 0.05
    seed: int = 0
    workers: int = 1


PRESETS: Mapping[str, Preset] = {
    "cpu": Preset(workers=2),
    "tiny": Preset(pieces=512, width=16, inner=32, layers=2, heads=2, length=32, batch=2, steps=8),
}
"""By name; `cpu` makes the model that ships, `tiny` is for tests."""
