"""Measures the world's models: judges on drawn pictures, the autoencoder, generated pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from .autoencoder import PatchAutoencoder
from .captions import caption
from .checks import OF_DRAWN, OF_ONE, OF_TWO, Check, relation_right
from .identity import IdentityEmbedding, crop
from .judge import AttributeJudge, as_input, judge
from .labels import largest_category_cosine
from .samples import generate
from .scenes import Scene, Thing, draw_pair, draw_scene, draw_single, rng_of
from .skins import draw_skin
from .views import dressed_scene, pixels_of
from .vocabulary import CATEGORIES

SEED = 9_000_000
"""Seed of the held-out pictures and prompts."""


@dataclass(frozen=True)
class Figure:
    """One line of the table.

    Attributes:
        name: What was measured.
        value: The figure.
        wanted: The least that is good enough, or with `below` the bound to stay under.
        count: Pictures it was measured on.
        below: Smaller is better.
    """

    name: str
    value: float
    wanted: float
    count: int
    below: bool = False

    @property
    def reached(self) -> bool:
        """Whether the figure is good enough."""
        return self.value < self.wanted if self.below else self.value >= self.wanted


def _mean(right: Sequence[bool]) -> float:
    return sum(right) / len(right)


def judge_figures(model: AttributeJudge, count: int) -> list[Figure]:
    """The attribute judge on drawn pictures it never saw.

    Args:
        model: The judge.
        count: Pictures.

    Returns:
        One figure an attribute.
    """
    scenes = [draw_scene(rng_of("judged", SEED, i)) for i in range(count)]
    pairs = [draw_pair(rng_of("judged pair", SEED, i)) for i in range(count)]
    says, says_pairs = (judge(model, pixels_of(s, model.size)) for s in (scenes, pairs))
    figures = [
        Figure(f"judge on drawn pictures: {name}", _mean(check(says, scenes)), 0.99, count)
        for name, check in OF_DRAWN.items()
    ]
    related = _mean(relation_right(says_pairs, pairs))
    return [*figures, Figure("judge on drawn pictures: relation", related, 0.99, count)]


def _boxes(things: Sequence[Thing]) -> Tensor:
    return torch.tensor([[thing.x, thing.y, thing.size] for thing in things])


def separation(same: Tensor, other: Tensor) -> float:
    """Area under the ROC curve: how often a similarity of the same exceeds one of others.

    Args:
        same: Similarities of pictures of one object.
        other: Similarities of pictures of different objects.

    Returns:
        Between 0 and 1; ties count half.

    Example:
        >>> separation(torch.tensor([0.9, 0.8]), torch.tensor([0.1, 0.85]))
        0.75
    """
    apart = same.flatten()[:, None] - other.flatten()[None, :]
    return float(((apart > 0).double() + 0.5 * (apart == 0).double()).mean())


@torch.no_grad()
def identity_figures(
    model: IdentityEmbedding, autoencoder: PatchAutoencoder, count: int, size: int
) -> list[Figure]:
    """The identity embedding and the autoencoder, on skins that neither ever saw.

    Args:
        model: The embedding.
        autoencoder: The autoencoder.
        count: Pictures, a tenth of them for each category.
        size: Pixels a side.

    Returns:
        Figures of both.
    """
    skins, areas, kept, errors = max(2, count // (2 * len(CATEGORIES))), [], [], []
    for category in CATEGORIES:
        rng = rng_of("identities", SEED, category)
        drawn = [draw_skin(rng) for _ in range(skins)]
        # Each skin in two scenes: the first half of the pictures is compared with the second.
        scenes, things = zip(*(dressed_scene(rng, category, s) for s in drawn * 2), strict=True)
        pictures = as_input(pixels_of(scenes, size))
        rebuilt = autoencoder.pictures(autoencoder.latents(pictures)).clamp(-1, 1)
        # At the true places: the figures are not to depend on what the attribute judge finds.
        seen, seen_rebuilt = (model(crop(p, _boxes(things))) for p in (pictures, rebuilt))
        scores = seen[:skins] @ seen[skins:].T
        mask = torch.eye(skins, dtype=torch.bool)
        areas.append(separation(scores[mask], scores[~mask]))
        # As a part of what two real photos of the skin have in common, so it may exceed 1.
        kept.append(float((seen * seen_rebuilt).sum(1).mean() / scores[mask].mean()))
        errors.append((rebuilt - pictures).square().mean((1, 2, 3)))
    # Pictures go from -1 to 1: the square of the peak is 4.
    signal = float((10 * torch.log10(4 / torch.cat(errors))).mean())
    n = 2 * skins * len(CATEGORIES)
    return [
        Figure("identity embedding: ROC AUC", float(np.mean(areas)), 0.99, n),
        Figure("autoencoder: PSNR, dB", signal, 30.0, n),
        Figure("autoencoder: identity kept", float(np.mean(kept)), 0.97, n),
    ]


def _generated(
    pipe: DiffusionPipeline,
    model: AttributeJudge,
    scenes: Sequence[Scene],
    checks: Mapping[str, tuple[Check, float]],
    title: str,
) -> list[Figure]:
    texts = [caption(scene, rng_of("prompt", SEED, i), full=True) for i, scene in enumerate(scenes)]
    parts = [
        generate(pipe, texts[start : start + 25], seed=SEED + start)
        for start in range(0, len(texts), 25)
    ]
    says = judge(model, torch.from_numpy(np.concatenate(parts)))
    return [
        Figure(f"{title}: {name}", _mean(check(says, scenes)), wanted, len(scenes))
        for name, (check, wanted) in checks.items()
    ]


def generator_figures(pipe: DiffusionPipeline, model: AttributeJudge, count: int) -> list[Figure]:
    """Pictures of held-out prompts, with 20 steps and guidance 4.

    Args:
        pipe: The generator.
        model: The attribute judge.
        count: Prompts of one object, and as many of two.

    Returns:
        Figures of both kinds and of the text encoder.
    """
    # Without skins, which have no colour that could be checked.
    single = [draw_single(rng_of("one", SEED, i), skinned=0.0) for i in range(count)]
    pairs = [draw_pair(rng_of("two", SEED, i), skinned=0.0) for i in range(count)]
    of_one = dict(zip(OF_ONE, zip(OF_ONE.values(), (0.95, 0.95, 0.97), strict=True), strict=True))
    of_two = dict(zip(OF_TWO, zip(OF_TWO.values(), (0.85, 0.75, 0.75), strict=True), strict=True))
    cosine = largest_category_cosine(pipe.text_encoder, pipe.tokenizer)
    return [
        *_generated(pipe, model, single, of_one, "one object"),
        *_generated(pipe, model, pairs, of_two, "two objects"),
        Figure("text encoder: largest cosine of two categories", cosine, 0.9, 10, below=True),
    ]
