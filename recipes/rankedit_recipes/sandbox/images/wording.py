"""What words alone reach: how near a described skin comes to the one that is meant."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from .captions import described
from .concepts import NAMED, Concept, as_array, concept
from .evaluation import Figure
from .identity import IdentityEmbedding, embed
from .judge import AttributeJudge, judge
from .samples import generate
from .skins import PATTERNS, Skin
from .vocabulary import CATEGORIES, RELATIONS, SCENES

PHOTOS = 8
"""Real photos whose mean embedding stands for a look."""

RANDOM = 8
"""Random skins whose mean similarity counts as an identity of 0."""

BATCH = 24
"""Pictures generated at a time."""

VARIANTS: Mapping[str, Callable[[Skin], list[Skin]]] = {
    "order of colours": lambda skin: [skin, replace(skin, colours=skin.colours[::-1])],
    "pattern": lambda skin: [
        skin,
        *(replace(skin, pattern=other) for other in PATTERNS if other != skin.pattern),
    ],
}
"""All that one factor of a skin can be while the others stay, the right one first."""

WANTED = {"order of colours": 0.95, "pattern": 0.85}


def sixteen() -> list[Concept]:
    """Concepts that are described: eight that ship and eight generated ones, in turns."""
    pairs = zip(NAMED, range(500, 500 + len(NAMED)), strict=True)
    return [concept(which) for pair in pairs for which in pair][:16]


class Scale(NamedTuple):
    """How similarity to a concept becomes its identity.

    Attributes:
        anchor: Mean embedding of `PHOTOS` real photos, [dimensions].
        zero: Mean similarity of two photos each of `RANDOM` random skins on the same category.
        one: Mean similarity of `PHOTOS` further photos of the concept.
    """

    anchor: Tensor
    zero: float
    one: float

    def identity(self, vectors: Tensor) -> Tensor:
        """(cosine to the anchor − zero) / (one − zero), [n]; it may leave [0, 1]."""
        return (vectors @ self.anchor - self.zero) / (self.one - self.zero)


class Wording:
    """Judges pictures of concepts that were described in words.

    Args:
        finder: Says where objects are.
        model: Tells skins apart.
    """

    def __init__(self, finder: AttributeJudge, model: IdentityEmbedding) -> None:
        self.finder, self.model = finder, model
        self._scales: dict[Concept, Scale] = {}

    def vectors(self, category: str, pixels: Tensor) -> Tensor:
        """Embeddings of the object of a category, [n, dimensions]."""
        return embed(self.model, self.finder, pixels, category)

    def photos(self, shown: Concept, count: int, seed: int) -> Tensor:
        """Embeddings of real photos of a concept, [count, dimensions]."""
        photos = shown.photos(count, seed=seed, size=self.finder.size)
        return self.vectors(shown.category, torch.from_numpy(as_array(photos)))

    def scale(self, meant: Concept) -> Scale:
        """The scale of a concept's identity; worked out once."""
        if meant not in self._scales:
            # Seed 7 for what is compared with, 8 for what is compared: no scene is in both. The
            # anchor's length is not 1, and cancels in `identity`.
            anchor = self.photos(meant, PHOTOS, 7).mean(0)
            random = [concept(9000 + i, category=meant.category) for i in range(RANDOM)]
            others = torch.cat([self.photos(other, 2, 8) for other in random])
            one = float((self.photos(meant, PHOTOS, 8) @ anchor).mean())
            self._scales[meant] = Scale(anchor, float((others @ anchor).mean()), one)
        return self._scales[meant]

    def nearest_variant(self, meant: Concept, factor: str, vectors: Tensor) -> list[bool]:
        """Of each picture: is the right variant of one factor the nearest?

        Args:
            meant: The concept.
            factor: One of `VARIANTS`.
            vectors: Embeddings of the pictures, [n, dimensions].

        Returns:
            One answer a picture. A variant is the mean of `PHOTOS` real photos in the same scenes.
        """
        looks = [replace(meant, skin=skin) for skin in VARIANTS[factor](meant.skin)]
        table = torch.stack([self.photos(look, PHOTOS, 7).mean(0) for look in looks])
        # A mean is shorter the more its photos differ, and must not lose for that.
        table = torch.nn.functional.normalize(table, dim=1)
        return ((vectors @ table.T).argmax(1) == 0).tolist()

    def both_right(self, pair: Sequence[Concept], pixels: Tensor) -> list[bool]:
        """Of each picture: are both there, each nearest to its own among the sixteen's photos?"""
        every = sixteen()
        table = torch.stack([self.scale(other).anchor for other in every])
        present = judge(self.finder, pixels).present > 0
        right = torch.ones(len(pixels), dtype=torch.bool)
        for one in pair:
            nearest = (self.vectors(one.category, pixels) @ table.T).argmax(1)
            right &= present[:, CATEGORIES.index(one.category)] & (nearest == every.index(one))
        return right.tolist()


def told_alone(meant: Concept, index: int) -> str:
    """A prompt of one described concept; scenes go round with the index."""
    scene = list(SCENES.values())[index % len(SCENES)][0]
    return f"a photo of a {described(meant.category, meant.skin)} {scene}"


def told_together(pair: Sequence[Concept], index: int) -> str:
    """A prompt of two described concepts; relations and scenes go round with the index."""
    relation = RELATIONS[("beside", "left", "above")[index % 3]][0]
    scene = SCENES[("grass", "beach", "snow", "plain")[index // 3 % 4]][0]
    first, second = (described(one.category, one.skin) for one in pair)
    return f"a photo of a {first} {relation} a {second} {scene}"


def pairs_of(concepts: Sequence[Concept]) -> list[tuple[Concept, Concept]]:
    """Neighbours of different categories."""
    return [(a, b) for a, b in itertools.pairwise(concepts) if a.category != b.category]


def wording_figures(
    pipe: DiffusionPipeline, finder: AttributeJudge, model: IdentityEmbedding, count: int
) -> list[Figure]:
    """Pictures of described skins, with 20 steps and guidance 4.

    Args:
        pipe: The generator.
        finder: The attribute judge.
        model: The identity embedding.
        count: Pictures of one concept over all concepts, and as many of two.

    Returns:
        Identity of one concept, the nearest variants of its factors, and pairs; beside the variants
        what the judge makes of real photos.
    """
    judging, every = Wording(finder, model), sixteen()
    shown = [(every[i % len(every)], i // len(every)) for i in range(count)]
    drawn = _drawn(pipe, [told_alone(meant, i) for meant, i in shown])
    identities: list[float] = []
    nearest: dict[str, list[bool]] = {
        f"{kind}: {factor}": [] for factor in VARIANTS for kind in ("described", "real photos")
    }
    # With fewer pictures than concepts the rest have none.
    for meant in every[:count]:
        vectors = judging.vectors(meant.category, drawn[[m == meant for m, _ in shown]])
        identities += judging.scale(meant).identity(vectors).tolist()
        real = judging.photos(meant, PHOTOS, 8)
        for factor in VARIANTS:
            nearest[f"described: {factor}"] += judging.nearest_variant(meant, factor, vectors)
            nearest[f"real photos: {factor}"] += judging.nearest_variant(meant, factor, real)
    pairs = pairs_of(every)
    asked = [(pairs[i % len(pairs)], i // len(pairs)) for i in range(count)]
    together = _drawn(pipe, [told_together(pair, i) for pair, i in asked])
    right: list[bool] = []
    for pair in pairs[:count]:
        right += judging.both_right(pair, together[[p == pair for p, _ in asked]])
    return [
        Figure("one described skin: identity", float(np.mean(identities)), 0.85, count),
        *(
            Figure(f"nearest variant, {name}", float(np.mean(found)), _wanted(name), len(found))
            for name, found in nearest.items()
        ),
        Figure("two described skins: both right", float(np.mean(right)), 0.70, count),
    ]


def _wanted(name: str) -> float:
    kind, _, factor = name.partition(": ")
    return WANTED[factor] if kind == "described" else 0.99


def _drawn(pipe: DiffusionPipeline, texts: Sequence[str]) -> Tensor:
    """Pictures of prompts; the noise of each depends on its place in the list only."""
    parts = [
        generate(pipe, texts[start : start + BATCH], seed=1 + start)
        for start in range(0, len(texts), BATCH)
    ]
    return torch.from_numpy(np.concatenate(parts))
