"""The attribute judge: which objects a picture shows, where, in which colours, scene and style."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .vocabulary import CATEGORIES, COLOURS, SCENES, STYLES

LOOKS: tuple[str, ...] = (*COLOURS, "skin")
"""What an object can wear, as the judge sees it."""


def block(inside: int, outside: int, stride: int = 1) -> nn.Sequential:
    """A convolution, its normalisation and its nonlinearity."""
    # Group norm: what is said of a picture does not depend on the others in its batch.
    return nn.Sequential(
        nn.Conv2d(inside, outside, 3, stride, 1, bias=False), nn.GroupNorm(8, outside), nn.SiLU()
    )


@dataclass(frozen=True)
class Verdict:
    """What the judge sees in a batch of pictures.

    Attributes:
        present: Scores of the categories (positive: present), [n, categories].
        looks: Scores of the colours, and of wearing a skin, for each category, [n, categories, 9].
        boxes: Centre from the left, from the top, and diameter of each category's object, as
            parts of the width, [n, categories, 3].
        scene: Scores of the backgrounds, [n, scenes].
        style: Scores of the styles, [n, styles].
    """

    present: Tensor
    looks: Tensor
    boxes: Tensor
    scene: Tensor
    style: Tensor

    def colour(self, category: int) -> Tensor:
        """The best-scoring colour of a category's object, as an index into `COLOURS`, [n]."""
        return self.looks[:, category, : len(COLOURS)].argmax(1)

    def relation(self, first: int, second: int) -> list[str]:
        """How one category's object lies to another's: left, right, above or below.

        Args:
            first: Index of a category.
            second: Index of another.

        Returns:
            One relation a picture.
        """
        apart = self.boxes[:, first, :2] - self.boxes[:, second, :2]
        # Pairs are drawn side by side or on top of each other: the larger distance tells which.
        across = apart[:, 0].abs() > apart[:, 1].abs()
        names = []
        for (dx, dy), sideways in zip(apart.tolist(), across.tolist(), strict=True):
            names.append(
                ("left" if dx < 0 else "right") if sideways else ("above" if dy < 0 else "below")
            )
        return names


class AttributeJudge(nn.Module):
    """A small convolutional network, trained on drawn pictures only.

    Args:
        size: Pixels a side of the pictures it sees.
        width: Features of its first level.
    """

    def __init__(self, size: int = 48, width: int = 24) -> None:
        super().__init__()
        self.size = size
        count = len(CATEGORIES)
        self.near = nn.Sequential(
            block(3, width, 2), block(width, 2 * width), block(2 * width, 2 * width, 2)
        )
        self.far = nn.Sequential(
            block(2 * width, 3 * width),
            block(3 * width, 3 * width, 2),
            block(3 * width, 3 * width),
            block(3 * width, 2 * width),
        )
        features = 2 * width * (size // 8) ** 2
        self.hidden = nn.Sequential(nn.Flatten(), nn.Linear(features, 192), nn.SiLU())
        self.present = nn.Linear(192, count)
        # Colours are read where the object is: one map of attention a category, one reader for all.
        self.where = nn.Conv2d(2 * width, count, 1)
        # Sunset, fog and light change colours; what the picture is like as a whole is read too.
        self.light = nn.Linear(192, 32)
        self.looks = nn.Sequential(
            nn.Linear(2 * width + 32, 64), nn.SiLU(), nn.Linear(64, len(LOOKS))
        )
        self.boxes = nn.Linear(192, count * 3)
        self.scene = nn.Linear(192, len(SCENES))
        self.style = nn.Linear(192, len(STYLES))

    def forward(self, pictures: Tensor) -> Verdict:
        """Judge pictures.

        Args:
            pictures: From -1 to 1, [n, 3, size, size].

        Returns:
            The verdict.
        """
        near = self.near(pictures)
        far = self.far(near)
        seen = self.hidden(far)
        shape = len(pictures), len(CATEGORIES), -1
        # `far` knows what stands where; `near` is twice as fine and closer to the colours.
        maps = nn.functional.interpolate(self.where(far), scale_factor=2.0, mode="bilinear")
        read = maps.flatten(2).softmax(2) @ near.flatten(2).transpose(1, 2)
        light = self.light(seen)[:, None].expand(-1, len(CATEGORIES), -1)
        return Verdict(
            present=self.present(seen),
            looks=self.looks(torch.cat([read, light], 2)),
            # Untrained, it says about the middle.
            boxes=0.5 + self.boxes(seen).view(*shape),
            scene=self.scene(seen),
            style=self.style(seen),
        )


@torch.no_grad()
def judge(model: AttributeJudge, pixels: Tensor, batch: int = 250) -> Verdict:
    """Judge pictures in batches.

    Args:
        model: The judge.
        pixels: Pictures, 0 to 255, [n, size, size, 3].
        batch: Pictures at a time.

    Returns:
        One verdict on all of them.
    """
    verdicts = [model(as_input(part)) for part in pixels.split(batch)]
    fields = ("present", "looks", "boxes", "scene", "style")
    return Verdict(*(torch.cat([getattr(v, field) for v in verdicts]) for field in fields))


def as_input(pixels: Tensor) -> Tensor:
    """Pictures from 0 to 255, [n, height, width, 3], as networks see them: -1 to 1, [n, 3, ...]."""
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1
