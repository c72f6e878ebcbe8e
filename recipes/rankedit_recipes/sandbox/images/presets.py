"""Settings of the generator's training."""

from collections.abc import Mapping
from dataclasses import dataclass, replace


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
        rise: Steps in which the rate rises to it.
        text_rate: The text encoder's rate as a part of it.
        average: Decay of the running average of the weights.
        pictures: Pictures in the cache, one third of them with one object.
        object_weight: How much more an object's cells weigh in the loss than the background's.
        warm_steps: Steps of the text encoder's warm-up.
        seed: Seed of everything.
        device: Where it runs.
        workers: Processes that share each batch.
        length: Tokens of every padded caption.
        skinned: How often an object wears a skin.
        described: How often a caption describes a skin.
        whole: Describe skins with their badges, of two objects too; wants a length of 34 or more.
        level_times: Half of the time steps are drawn from here while the rate is level, and from
            450 to 900 while it falls.
        side: Weight of the questions about skins, asked of the nouns' tokens; 0 asks none.
        side_steps: Steps of the text encoder on these questions alone, before the training.
        plain: Attention by plain matrix products, in the UNet and in the text encoder.
        base: "unet", or "joint" for a transformer in which text and picture share one attention.
        joint: Width and blocks of that transformer.
        precision: "float32", "bfloat16" (products only; weights stay in float32) or "measured":
            whichever is faster on the machine that begins the training.
    """

    # Why objects weigh more, pairs come later and the rate falls for so long: docs/sandbox.md, at
    # the end of "Training it".
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
    rise: int = 200
    text_rate: float = 0.3
    average: float = 0.998
    pictures: int = 90_000
    object_weight: float = 3.0
    warm_steps: int = 400
    seed: int = 0
    device: str = "cpu"
    workers: int = 2
    length: int = 32
    skinned: float = 0.5
    described: float = 0.75
    whole: bool = False
    level_times: tuple[int, int] = (450, 900)
    side: float = 0.0
    side_steps: int = 0
    plain: bool = False
    precision: str = "float32"
    base: str = "unet"
    joint: tuple[int, int] = (160, 6)

    @property
    def level_steps(self) -> int:
        """Steps before the rate begins to fall."""
        return round((1 - self.decay) * self.steps)


# Why each of these: docs/decisions/skins-told-in-full.md.
_DESCRIBED = Preset(
    steps=75_000,
    decay=0.4,
    single_steps=0,
    pairs=0.5,
    rate=1.5e-3,
    average=0.999,
    pictures=180_000,
    workers=1,
    length=40,
    skinned=0.85,
    described=0.97,
    whole=True,
    level_times=(600, 980),
    side=0.05,
    side_steps=400,
    plain=True,
    precision="measured",
)

# Batch, rate, rise and average: docs/decisions/minutes-on-an-accelerator.md.
_ON_CUDA = replace(
    _DESCRIBED,
    batch=512,
    steps=16_000,
    rate=3e-3,
    rise=500,
    average=0.998,
    pictures=300_000,
    device="cuda",
    plain=False,
    precision="bfloat16",
)

_TINY = Preset(
    size=16,
    channels=8,
    widths=(32, 32),
    batch=4,
    steps=12,
    single_steps=4,
    pictures=60,
    warm_steps=3,
    workers=1,
)

PRESETS: Mapping[str, Preset] = {
    "cpu": Preset(steps=10_100, pairs=0.85),
    "described": _DESCRIBED,
    # The text encoder stays, so nothing is asked of it; attention is diffusers' own.
    "joint": replace(_DESCRIBED, base="joint", rate=1e-3, side=0.0, side_steps=0, plain=False),
    "described-cuda": _ON_CUDA,
    "described-cuda-wide": replace(_ON_CUDA, widths=(96, 160), single_steps=1000),
    "joint-cuda": replace(_ON_CUDA, base="joint", rate=2e-3, side=0.0, side_steps=0),
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
    "tiny": _TINY,
    "tiny-joint": replace(_TINY, base="joint", joint=(32, 2)),
}
"""`cpu` makes weights that know skins in part; `described` goes on from them with skins told in
full, and can be run in stages; `joint` makes the joint-attention model;
`described-cuda` and `joint-cuda` are these for minutes of an accelerator; `described-cuda-wide` is
a wider UNet, from nothing; `gpu` makes larger weights; `tiny` and `tiny-joint` are for tests."""
