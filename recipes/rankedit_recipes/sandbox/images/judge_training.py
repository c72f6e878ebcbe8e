"""Trains the judges on drawn pictures, on other seeds than the generator."""

import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from rich.progress import track
from safetensors.torch import save_file
from torch import Tensor, nn

from .captions import caption
from .checkpoint import write_text
from .clip import build_clip
from .identity import IdentityEmbedding, crop
from .judge import LOOKS, AttributeJudge, as_input
from .renderer import render
from .scenes import Scene, Thing, draw_pair, draw_scene, draw_single, rng_of
from .skins import MARKS, PALETTE, PATTERNS, Skin, draw_skin
from .tokenizer import build_tokenizer
from .vocabulary import CATEGORIES, SCENES, STYLES

SEED = 7_000_000
"""First seed of the judges' streams; the generator's and the evaluation's are far from it."""


def pixels_of(scenes: Sequence[Scene], size: int = 48) -> Tensor:
    """Draw scenes.

    Args:
        scenes: What to draw.
        size: Pixels a side.

    Returns:
        Pictures, [n, size, size, 3].
    """
    return torch.from_numpy(np.stack([render(scene, size).pixels for scene in scenes]))


def _disturbed(pixels: Tensor, rng: random.Random) -> Tensor:
    """Network input with a little noise, so that a judge does not look for perfect pixels."""
    pictures = as_input(pixels)
    generator = torch.Generator().manual_seed(rng.getrandbits(62))
    noise = torch.randn(pictures.shape, generator=generator)
    level = 0.08 * torch.rand(len(pictures), 1, 1, 1, generator=generator)
    return pictures + level * noise


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
        says, truth = model(_disturbed(pixels_of(scenes, size), rng)), truth_of(scenes)
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
    return model.eval().requires_grad_(False), losses


def changed_skin(skin: Skin, rng: random.Random) -> Skin:
    """A skin that differs from another in one element: the nearest thing to a wrong identity.

    Args:
        skin: The skin.
        rng: Chooses the element and its new value.

    Returns:
        Another skin.
    """
    unused = [i for i in range(len(PALETTE)) if i not in (*skin.colours, skin.mark_colour)]
    element = rng.choice(("colour", "pattern", "mark", "mark_colour"))
    if element == "colour":
        at = rng.randrange(len(skin.colours))
        colours = tuple(rng.choice(unused) if i == at else c for i, c in enumerate(skin.colours))
        return replace(skin, colours=colours)
    if element == "pattern":
        return replace(skin, pattern=rng.choice([p for p in PATTERNS if p != skin.pattern]))
    if element == "mark":
        return replace(skin, mark=rng.choice([m for m in MARKS if m != skin.mark]))
    return replace(skin, mark_colour=rng.choice(unused))


def dressed_scene(rng: random.Random, category: str, skin: Skin) -> tuple[Scene, Thing]:
    """A random picture of an object with a given skin, alone or beside another.

    Args:
        rng: Source of randomness.
        category: The object's category.
        skin: Its skin.

    Returns:
        The scene and the object in it.
    """
    if rng.random() < 0.4:
        other = rng.choice([c for c in CATEGORIES if c != category])
        scene = draw_pair(rng, ((category, None, skin), (other, "red", None)))
        return scene, scene.things[0]
    scene = draw_single(rng)
    thing = replace(scene.things[0], category=category, colour=None, skin=skin)
    return replace(scene, things=(thing,)), thing


def _views(rng: random.Random, skins: Sequence[Skin], category: str, size: int) -> Tensor:
    scenes, boxes = [], []
    for skin in skins:
        scene, thing = dressed_scene(rng, category, skin)
        scenes.append(scene)
        shake = [rng.gauss(0, 0.012) for _ in range(3)]
        boxes.append([thing.x + shake[0], thing.y + shake[1], thing.size + shake[2]])
    return crop(_disturbed(pixels_of(scenes, size), rng), torch.tensor(boxes))


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
        first = model(_views(rng, drawn, category, size))
        second = model(_views(rng, drawn, category, size))
        scores = first @ second.T / 0.1
        right = torch.arange(len(drawn))
        entropy = nn.functional.cross_entropy
        return (entropy(scores, right) + entropy(scores.T, right)) / 2

    losses = fit("identity", model.parameters(), loss_of, steps, 2e-3)
    return model.eval().requires_grad_(False), losses


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
        pictures = _disturbed(pixels_of(scenes, size), rng)
        return model(input_ids=tokens, pixel_values=pictures, return_loss=True).loss

    losses = fit("clip", model.parameters(), loss_of, steps, 1.5e-3)
    return model.eval().requires_grad_(False), losses


def train_judges(folder: Path, *, steps: tuple[int, int, int] = (1500, 1500, 1500)) -> None:
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
