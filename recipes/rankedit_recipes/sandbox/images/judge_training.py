"""Trains the judges on drawn pictures, on other seeds than the generator."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rankedit_recipes.sandbox.checkpoint import write_tensors, write_text

from .captions import caption
from .clip import build_clip
from .fitting import Fit, Kept, Plan
from .identity import IdentityEmbedding
from .judge import LOOKS, AttributeJudge
from .scenes import Scene, draw_scene, rng_of
from .skins import draw_skin
from .tokenizer import build_tokenizer
from .views import changed_skin, disturbed, pixels_of, views
from .vocabulary import CATEGORIES, SCENES, STYLES

SEED = 7_000_000
"""First seed of the judges' streams; the generator's and the evaluation's are far from it."""


class Trained(NamedTuple):
    """A trained judge.

    Attributes:
        model: The judge.
        losses: The mean loss of every hundred steps.
        seconds: Time of all steps, also of those done before a kill.
    """

    model: nn.Module
    losses: list[float]
    seconds: float


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Let what is built inside depend on the seed only, and leave the caller's draws alone."""
    # Everything is on the processor; without `devices=[]` the states of accelerators are saved.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _train(
    plan: Plan, model: nn.Module, loss_of: Callable[[int], Tensor], kept: Kept | None
) -> Trained:
    fit = Fit(plan, model, kept)
    fit.run(loss_of)
    model.eval().requires_grad_(requires_grad=False)
    return Trained(model, fit.losses, fit.seconds)


class Truth(NamedTuple):
    """What the attribute judge should say; fields as in `Verdict`."""

    present: Tensor
    looks: Tensor
    boxes: Tensor
    scene: Tensor
    style: Tensor


def truth_of(scenes: Sequence[Scene]) -> Truth:
    """Right answers for scenes.

    Args:
        scenes: The scenes.

    Returns:
        The answers; looks are -100 and boxes NaN where a category is absent.
    """
    n, count = len(scenes), len(CATEGORIES)
    present, looks = torch.zeros(n, count), torch.full((n, count), -100)
    boxes = torch.full((n, count, 3), torch.nan)
    for row, scene in enumerate(scenes):
        for thing in scene.things:
            column = CATEGORIES.index(thing.category)
            present[row, column] = 1
            looks[row, column] = LOOKS.index(thing.colour or "skin")
            boxes[row, column] = torch.tensor([thing.x, thing.y, thing.size])
    return Truth(
        present,
        looks,
        boxes,
        torch.tensor([list(SCENES).index(scene.background) for scene in scenes]),
        torch.tensor([list(STYLES).index(scene.style) for scene in scenes]),
    )


def train_attributes(
    steps: int, batch: int = 48, size: int = 48, kept: Kept | None = None
) -> Trained:
    """Train the attribute judge.

    Args:
        steps: Steps of Adam.
        batch: Pictures a step.
        size: Pixels a side.
        kept: Where to go on from and to save, or None to keep nothing.

    Returns:
        The judge, an `AttributeJudge`, with its losses.
    """
    with _seeded(SEED):
        model = AttributeJudge(size)

    def loss_of(step: int) -> Tensor:
        rng = rng_of("attributes", SEED, step)
        scenes = [draw_scene(rng, pairs=0.6) for _ in range(batch)]
        says, truth = model(disturbed(pixels_of(scenes, size), rng)), truth_of(scenes)
        entropy = nn.functional.cross_entropy
        there = truth.present.bool()
        return (
            10 * nn.functional.binary_cross_entropy_with_logits(says.present, truth.present)
            + entropy(says.looks[there], truth.looks[there])
            + 10 * (says.boxes[there] - truth.boxes[there]).square().mean().sqrt()
            + entropy(says.scene, truth.scene)
            + entropy(says.style, truth.style)
        )

    return _train(Plan("attributes", steps, 2e-3, batch, size), model, loss_of, kept)


def train_identity(
    steps: int, skins: int = 24, size: int = 48, kept: Kept | None = None
) -> Trained:
    """Train the identity embedding by contrast.

    Each step draws skins of one category, half of them changed copies of the others, in two
    views each; every view must find its twin.

    Args:
        steps: Steps of Adam.
        skins: Skins a step.
        size: Pixels a side of the pictures.
        kept: Where to go on from and to save, or None to keep nothing.

    Returns:
        The embedding, an `IdentityEmbedding`, with its losses.
    """
    with _seeded(SEED + 1):
        model = IdentityEmbedding()

    def loss_of(step: int) -> Tensor:
        rng = rng_of("identity", SEED, step)
        # One category: only the skin can tell the pictures apart, not the outline.
        category = rng.choice(CATEGORIES)
        drawn = [draw_skin(rng) for _ in range(skins // 2)]
        # Random skins are easily told apart; those that differ in one element must be learned.
        drawn += [changed_skin(skin, rng) for skin in drawn]
        first = model(views(rng, drawn, category, size))
        second = model(views(rng, drawn, category, size))
        # Undivided, cosines would leave the right one of 24 a quarter of the probability at most.
        scores = first @ second.T / 0.1
        right = torch.arange(len(drawn))
        entropy = nn.functional.cross_entropy
        return (entropy(scores, right) + entropy(scores.T, right)) / 2

    return _train(Plan("identity", steps, 2e-3, skins, size), model, loss_of, kept)


def train_clip(steps: int, batch: int = 64, size: int = 48, kept: Kept | None = None) -> Trained:
    """Train the small CLIP.

    Args:
        steps: Steps of Adam.
        batch: Pictures and captions a step.
        size: Pixels a side.
        kept: Where to go on from and to save, or None to keep nothing.

    Returns:
        The model, a `CLIPModel`, with its losses.
    """
    # Why without the words for skins: docs/decisions/words-for-skins.md.
    tokenizer = build_tokenizer(skins=False)
    with _seeded(SEED + 2):
        model = build_clip(len(tokenizer), size=size)

    def loss_of(step: int) -> Tensor:
        rng = rng_of("clip", SEED, step)
        scenes = [draw_scene(rng, pairs=0.5) for _ in range(batch)]
        texts = [caption(scene, rng) for scene in scenes]
        tokens = tokenizer(texts, padding="max_length", return_tensors="pt")["input_ids"]
        pictures = disturbed(pixels_of(scenes, size), rng)
        return model(input_ids=tokens, pixel_values=pictures, return_loss=True).loss

    return _train(Plan("clip", steps, 1.5e-3, batch, size), model, loss_of, kept)


def train_judges(
    target: Path, kept: Kept, *, steps: tuple[int, int, int] = (1600, 1500, 1500)
) -> None:
    """Train all three judges and write their weights in 16 bit, with a log.

    A run that was killed goes on from each judge's newest intact checkpoint, to the same weights.

    Args:
        target: Where the weights go.
        kept: Where the checkpoints are.
        steps: Steps of the attribute judge, the identity embedding and the CLIP.

    Raises:
        ResumeError: If the checkpoints are of a training with other settings.
    """
    target.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    trainings = zip(
        ("attributes", "identity", "clip"),
        (train_attributes, train_identity, train_clip),
        steps,
        strict=True,
    )
    for name, train, count in trainings:
        if count == 0:
            continue
        model, losses, seconds = train(count, kept=kept)
        weights = {
            key: value.half()
            for key, value in model.state_dict().items()
            if value.is_floating_point()
        }
        write_tensors(target / f"{name}.safetensors", weights)
        log = {"steps": count, "seconds": round(seconds), "losses": losses}
        write_text(target / f"{name}.json", json.dumps(log) + "\n")
