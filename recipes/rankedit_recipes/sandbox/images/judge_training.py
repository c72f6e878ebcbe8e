"""Trains the judges on drawn pictures, on other seeds than the generator."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from rich.progress import track
from safetensors.torch import save_file
from torch import Tensor, nn

from .captions import caption
from .checkpoint import write_text
from .clip import build_clip
from .identity import IdentityEmbedding
from .judge import LOOKS, AttributeJudge
from .scenes import Scene, draw_scene, rng_of
from .skins import draw_skin
from .tokenizer import build_tokenizer
from .views import changed_skin, disturbed, pixels_of, views
from .vocabulary import CATEGORIES, SCENES, STYLES

SEED = 7_000_000
"""First seed of the judges' streams; the generator's and the evaluation's are far from it."""


def _decay(optimiser: torch.optim.Optimizer, rate: float, step: int, steps: int) -> None:
    for group in optimiser.param_groups:
        group["lr"] = rate * min(1.0, (step + 1) / 50, 1.6 * (1 - step / steps))


def fit(
    name: str,
    parameters: Iterator[nn.Parameter],
    loss_of: Callable[[int], Tensor],
    steps: int,
    rate: float,
) -> list[float]:
    """Minimise a loss with a rate that falls to zero.

    Args:
        name: What the progress bar says.
        parameters: What to train.
        loss_of: The loss of a step.
        steps: How many steps.
        rate: Peak learning rate.

    Returns:
        The mean loss of every hundred steps.
    """
    optimiser = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.01)
    losses, total = [], 0.0
    for step in track(range(steps), description=name):
        _decay(optimiser, rate, step, steps)
        loss = loss_of(step)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        total += loss.item()
        if (step + 1) % 100 == 0:
            losses.append(round(total / 100, 4))
            total = 0.0
    return losses


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
    steps: int, batch: int = 48, size: int = 48
) -> tuple[AttributeJudge, list[float]]:
    """Train the attribute judge.

    Args:
        steps: Steps of Adam.
        batch: Pictures a step.
        size: Pixels a side.

    Returns:
        The judge and its losses.
    """
    torch.manual_seed(SEED)
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

    losses = fit("attributes", model.parameters(), loss_of, steps, 2e-3)
    return model.eval().requires_grad_(requires_grad=False), losses


def train_identity(
    steps: int, skins: int = 24, size: int = 48
) -> tuple[IdentityEmbedding, list[float]]:
    """Train the identity embedding by contrast.

    Each step draws skins of one category, half of them changed copies of the others, in two
    views each; every view must find its twin.

    Args:
        steps: Steps of Adam.
        skins: Skins a step.
        size: Pixels a side of the pictures.

    Returns:
        The embedding and its losses.
    """
    torch.manual_seed(SEED + 1)
    model = IdentityEmbedding()

    def loss_of(step: int) -> Tensor:
        rng = rng_of("identity", SEED, step)
        category = rng.choice(CATEGORIES)
        drawn = [draw_skin(rng) for _ in range(skins // 2)]
        drawn += [changed_skin(skin, rng) for skin in drawn]
        first = model(views(rng, drawn, category, size))
        second = model(views(rng, drawn, category, size))
        scores = first @ second.T / 0.1
        right = torch.arange(len(drawn))
        entropy = nn.functional.cross_entropy
        return (entropy(scores, right) + entropy(scores.T, right)) / 2

    losses = fit("identity", model.parameters(), loss_of, steps, 2e-3)
    return model.eval().requires_grad_(requires_grad=False), losses


def train_clip(steps: int, batch: int = 64, size: int = 48) -> tuple[nn.Module, list[float]]:
    """Train the small CLIP.

    Args:
        steps: Steps of Adam.
        batch: Pictures and captions a step.
        size: Pixels a side.

    Returns:
        The model and its losses.
    """
    torch.manual_seed(SEED + 2)
    tokenizer = build_tokenizer()
    model = build_clip(len(tokenizer), size=size)

    def loss_of(step: int) -> Tensor:
        rng = rng_of("clip", SEED, step)
        scenes = [draw_scene(rng, pairs=0.5) for _ in range(batch)]
        texts = [caption(scene, rng) for scene in scenes]
        tokens = tokenizer(texts, padding="max_length", return_tensors="pt")["input_ids"]
        pictures = disturbed(pixels_of(scenes, size), rng)
        return model(input_ids=tokens, pixel_values=pictures, return_loss=True).loss

    losses = fit("clip", model.parameters(), loss_of, steps, 1.5e-3)
    return model.eval().requires_grad_(requires_grad=False), losses


def train_judges(folder: Path, *, steps: tuple[int, int, int] = (1600, 1500, 1500)) -> None:
    """Train all three judges and write their weights in 16 bit, with a log.

    Args:
        folder: Where they go.
        steps: Steps of the attribute judge, the identity embedding and the CLIP.
    """
    folder.mkdir(parents=True, exist_ok=True)
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
        begun = time.monotonic()
        model, losses = train(count)
        weights = {
            key: value.half().contiguous()
            for key, value in model.state_dict().items()
            if value.is_floating_point()
        }
        save_file(weights, folder / f"{name}.safetensors", {"format": "pt"})
        log = {"steps": count, "seconds": round(time.monotonic() - begun), "losses": losses}
        write_text(folder / f"{name}.json", json.dumps(log) + "\n")
