"""How much worse a denoiser gets when its caption is wrong: what it makes of each kind of word.

A model that ignores the order of colours loses nothing when it is told the wrong order. So the
growth of the error measures what was learned, long before pictures are good enough to be judged.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from .batches import Batch
from .captions import described
from .renderer import render
from .scenes import Scene, draw_pair, draw_single, rng_of
from .skins import MARKS, PALETTE, PATTERNS, Skin
from .vocabulary import RELATIONS, SCENES

TIME = 800
"""Where it is measured, of 1,000: in much noise, where layout and colours come from the words."""

SEED = 8_000_000
"""Seed of the pictures: of none that is trained on or evaluated."""

CHUNK = 16
"""Pictures at a time."""


class Denoiser(Protocol):
    """What is probed: a training of either kind."""

    tokenizer: PreTrainedTokenizerFast
    channels: int

    def errors(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Squared errors, [n, channels, cells, cells], and the text features."""

    def on_device(self, batch: Batch) -> Batch:
        """A batch where the denoiser is."""


def wrong(skin: Skin, group: str, seed: object) -> Skin:
    """A skin that differs in everything that one group of words says.

    Args:
        skin: The right one.
        group: "pattern", "order", "colours" or "badge".
        seed: Chooses among the wrong ones.

    Returns:
        The wrong one. "order" turns the row of colours round.

    Raises:
        ValueError: If the group is another one.
    """
    rng = rng_of("wrong", group, seed)
    # A colour that the skin has would not be wrong everywhere.
    unused = [i for i in range(len(PALETTE)) if i not in (*skin.colours, skin.mark_colour)]
    if group == "pattern":
        return replace(skin, pattern=rng.choice([p for p in PATTERNS if p != skin.pattern]))
    if group == "order":
        return replace(skin, colours=skin.colours[::-1])
    if group == "colours":
        return replace(skin, colours=tuple(rng.sample(unused, len(skin.colours))))
    if group == "badge":
        mark = rng.choice([m for m in MARKS if m != skin.mark])
        return replace(skin, mark=mark, mark_colour=rng.choice(unused))
    raise ValueError(f"wrong: expected pattern, order, colours or badge, got {group!r}")


GROUPS = ("pattern", "order", "colours", "badge")
"""Words that are made wrong, of one object alone."""


class Probe:
    """Held-out pictures with captions that are right, and wrong in one way each.

    Args:
        size: Pixels a side.
        patch: Pixels a side of one latent cell.
        count: Pictures of one object; there are half as many of two.
    """

    def __init__(self, size: int, patch: int, count: int = 64) -> None:
        self.size, self.patch = size, patch
        self.one = [draw_single(rng_of("one", SEED, i), skinned=1.0) for i in range(count)]
        self.two = [draw_pair(rng_of("two", SEED, i), skinned=1.0) for i in range(count // 2)]
        self.one, self.two = (
            [replace(scene, style="photo") for scene in scenes] for scenes in (self.one, self.two)
        )

    def growth(self, denoiser: Denoiser) -> dict[str, float]:
        """Growth of the mean squared error on objects, for each group of words.

        Args:
            denoiser: What is probed, holding the weights that are meant.

        Returns:
            Error with the wrong words / error with the right ones − 1, by group. "which" gives each
            of two objects the description of the other. "right" is the error of one object itself.
        """
        one = {"right": [_told(scene, [_skins(scene)[0]]) for scene in self.one]}
        for group in GROUPS:
            one[group] = [
                _told(scene, [wrong(_skins(scene)[0], group, i)])
                for i, scene in enumerate(self.one)
            ]
        two = {
            "right": [_told(scene, _skins(scene)) for scene in self.two],
            "which": [_told(scene, _skins(scene)[::-1]) for scene in self.two],
        }
        alone, pairs = (
            self._errors(denoiser, *given) for given in ((self.one, one), (self.two, two))
        )
        found = {group: alone[group] / alone["right"] - 1 for group in GROUPS}
        return found | {"which": pairs["which"] / pairs["right"] - 1, "right": alone["right"]}

    @torch.no_grad()
    def _errors(
        self, denoiser: Denoiser, scenes: Sequence[Scene], texts: Mapping[str, Sequence[str]]
    ) -> dict[str, float]:
        """Mean squared error on objects, by group."""
        sums, covered, cells = dict.fromkeys(texts, 0.0), 0.0, self.size // self.patch
        for start in range(0, len(scenes), CHUNK):
            pictures = [render(scene, self.size) for scene in scenes[start : start + CHUNK]]
            pixels = torch.from_numpy(np.stack([picture.pixels for picture in pictures]))
            cover = np.stack([picture.masks.any(0) for picture in pictures])
            cover = cover.reshape(-1, 1, cells, self.patch, cells, self.patch).mean((3, 5))
            generator = torch.Generator().manual_seed(SEED + start)
            # The same noise for all groups, so that they differ by the words alone.
            noise = torch.randn(len(pixels), denoiser.channels, cells, cells, generator=generator)
            batch = Batch(
                pixels.permute(0, 3, 1, 2) / 127.5 - 1,
                # Objects alone: unlike in training, the background has no weight.
                torch.from_numpy(cover).float(),
                torch.empty(0),
                torch.full((len(pixels),), TIME),
                noise,
            )
            covered += float(batch.weight.sum()) * denoiser.channels
            for group, every in texts.items():
                told = list(every[start : start + CHUNK])
                tokens = denoiser.tokenizer(told, padding="max_length", return_tensors="pt")
                asked = denoiser.on_device(batch._replace(tokens=tokens["input_ids"]))
                errors, _ = denoiser.errors(asked)
                # Sums, divided once: the last chunk may be shorter, and covers differ.
                sums[group] += float((asked.weight * errors).sum())
        return {group: total / covered for group, total in sums.items()}


def _skins(scene: Scene) -> list[Skin]:
    return [thing.skin for thing in scene.things if thing.skin is not None]


def _told(scene: Scene, skins: Sequence[Skin]) -> str:
    """A caption that gives the objects these skins."""
    things = [f"a {described(t.category, s)}" for t, s in zip(scene.things, skins, strict=True)]
    # Always the first phrase for all but skins: groups differ by the words for these alone.
    words = f" {RELATIONS[scene.relation][0]} ".join(things) if scene.relation else things[0]
    return f"a photo of {words} {SCENES[scene.background][0]}"
