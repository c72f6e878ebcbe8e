"""Settings of the generator's training."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Preset:
    """What decides the weights that a training makes.

    Attributes:
        size: Pixels a side.
        patch: Pixels a side of one latent cell.
        channels: Latent channels.
        widths: Features of each level of the UNet.
        batch: Pictures a step, over all workers.
        steps: Steps until the rate is zero.
        decay: Part of the steps, at the end, in which the rate falls to zero.
        single_steps: Steps at the start that see pictures of one object only.
        pairs: How many pictures show two objects after that.
        rate: Peak learning rate of the UNet.
        text_rate: The text encoder's rate as a part of it.
        average: Decay of the running average of the weights.
        pictures: Pictures in the cache, one third of them with one object.
        object_weight: How much more an object's cells weigh in the loss than the background's.
        warm_steps: Steps of the text encoder's warm-up.
        seed: Seed of everything.
        device: Where it runs.
        workers: Processes that share each batch.
    """

    size: int = 48
    patch: int = 4
    channels: int = 24
    widths: tuple[int, ...] = (80, 128)
    batch: int = 24
    steps: int = 9000
    decay: float = 0.5
    single_steps: int = 2000
    pairs: float = 0.6
    rate: float = 1e-3
    text_rate: float = 0.3
    average: float = 0.998
    pictures: int = 90_000
    object_weight: float = 3.0
    warm_steps: int = 400
    seed: int = 0
    device: str = "cpu"
    workers: int = 2


PRESETS: Mapping[str, Preset] = {
    "cpu": Preset(steps=10_100, pairs=0.85),
    "gpu": Preset(
        size=64,
        batch=256,
        steps=60_000,
        single_steps=5000,
        average=0.9995,
        pictures=600_000,
        device="cuda",
        workers=1,
    ),
    "tiny": Preset(
        size=16,
        channels=8,
        widths=(32, 32),
        batch=4,
        steps=12,
        single_steps=4,
        pictures=60,
        warm_steps=3,
        workers=1,
    ),
}
"""`cpu` makes the weights that ship; `gpu` the larger ones; `tiny` is for tests."""
