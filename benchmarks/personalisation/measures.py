"""What is measured of pictures, each figure with its definition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
import torch
from PIL import Image
from rankedit_recipes import sandbox
from rankedit_recipes.perfusion.commands.opening import open_scorer
from rankedit_recipes.sandbox.images.identity import embed
from rankedit_recipes.sandbox.images.judge import Verdict, judge
from rankedit_recipes.sandbox.images.vocabulary import CATEGORIES, COLOURS, SCENES
from torch import Tensor

from personalisation.prompts import Prompt

Marks = dict[str, list[float | None]]
"""By figure one number for each picture; None where the prompt does not ask for it."""

ASKED = ("scene", "other", "colour", "relation")

DEFINITIONS: Mapping[str, str] = {
    "identity": "concept fidelity: cosine of the sandbox's identity embedding to the mean of 8 "
    "real photos that nothing was learned from, scaled so that 0 is the mean of 16 photos of 8 "
    "random skins on the same category and 1 the mean of 8 further photos of the concept; may "
    "leave [0, 1]",
    "text": "text fidelity: for each picture the share of what its prompt asks for besides the "
    "concept that is obeyed (scene; and in two of three prompts second object, its colour, and how "
    "the two lie to each other); mean over pictures",
    "clip_i": "CLIP-I: mean cosine of the picture to the concept's training photos, by the "
    "sandbox's own CLIP",
    "clip_t": "CLIP-T: cosine of the picture to its prompt with the category's word in place of "
    "the concept, by the sandbox's own CLIP",
    "category": "the judge finds an object of the concept's category",
    "scene": "the judge's likeliest background is the one asked for",
    "other": "the judge finds the second object's category",
    "colour": "the second object is found and has the colour asked for",
    "relation": "both objects are found and lie to each other as asked",
    "diversity": "1 − mean CLIP cosine between pictures of one prompt under different seeds",
    "off_kept": "with the concept loaded, prompts without it about other categories: share of "
    "category, colour and scene obeyed",
    "off_changed": "with the concept loaded, prompts without it: mean absolute change of a pixel "
    "against the base model, divided by the change that another seed makes in the base model",
    "leak": "with the concept loaded, prompts with the category's plain word: identity as above "
    "(0: no trace of the concept); the base model's own is in its row",
    "kilobytes": "size of the file in 16 bit, in 1,000 bytes",
    "train_seconds": "processor time of the training on one thread, regularisation pictures "
    "included, at the steps of the setting shown",
    "train_megabytes": "largest resident memory during training above that of the loaded pipeline",
    "overhead": "time of a picture with the concept loaded over that without, median of pairs in "
    "turns",
    "both_right": "two concepts: both are found, and each is nearest to its own real photos among "
    "those of all concepts of the study",
    "both_present": "two concepts: objects of both categories are found",
    "worse_identity": "two concepts: the lower of the two identities",
    "taken": "attention of a pixel that the concept's word takes, mean over pixels, layers, heads "
    "and steps",
    "inside": "the part of that attention that falls into the box of the concept's object",
    "hypervolume": "area that a method's points dominate in the plane of text and concept "
    "fidelity, all points on the same pictures, above what the two trivial methods reach (photos "
    "whatever the prompt, the category's plain word) or above (0, 0)",
    "harmonic mean": "of identity and text, each the mean over concepts",
    "identity gained": "identity above that of the recipe as it is, or of the method's usual "
    "training at its best, picture by picture",
}


class Judges:
    """The sandbox's judges, and for each concept the scale of its identity."""

    def __init__(self) -> None:
        self.finder, self._identity = sandbox.attribute_judge(), sandbox.identity_embedding()
        self._scales: dict[str, tuple[Tensor, float, float]] = {}
        self._photos: dict[tuple[str, int], Tensor] = {}

    @cached_property
    def clip(self):
        """The recipe's scorer around the sandbox's CLIP."""
        return open_scorer("sandbox")

    # ------------------------------------------------------------------ identity

    def vectors(self, category: str, pixels: Tensor) -> Tensor:
        """Identity embeddings of the object of a category."""
        return embed(self._identity, self.finder, pixels, category)

    def scale(self, concept: sandbox.Concept) -> tuple[Tensor, float, float]:
        """The concept's anchor, and the similarities to it that count as 0 and as 1."""
        if concept.name not in self._scales:
            category = concept.category
            anchor = self.vectors(category, real_photos(concept, 8, seed=7)).mean(0)
            one = float((self.vectors(category, real_photos(concept, 8, seed=8)) @ anchor).mean())
            random = [sandbox.concept(9000 + i, category=category) for i in range(8)]
            others = [self.vectors(category, real_photos(c, 2, seed=8)) @ anchor for c in random]
            self._scales[concept.name] = (anchor, float(torch.cat(others).mean()), one)
        return self._scales[concept.name]

    def identity(self, concept: sandbox.Concept, pixels: Tensor) -> list[float]:
        """Scaled similarity to the concept, for each picture."""
        anchor, zero, one = self.scale(concept)
        similar = self.vectors(concept.category, pixels) @ anchor
        return ((similar - zero) / (one - zero)).tolist()

    # ------------------------------------------------------------------ pictures

    def marks(self, concept: sandbox.Concept, pixels: Tensor, prompts: Sequence[Prompt]) -> Marks:
        """All figures of pictures of a concept."""
        says = judge(self.finder, pixels)
        own = CATEGORIES.index(concept.category)
        found: Marks = {
            "identity": list(self.identity(concept, pixels)),
            "category": (says.present[:, own] > 0).float().tolist(),
            **obeyed(says, prompts, own),
        }
        found["text"] = [_share(found, index) for index in range(len(prompts))]
        embedded = self.clip.pictures(images_of(pixels))
        words = self.clip.texts([p.text.format(concept.category) for p in prompts])
        found["clip_t"] = (embedded * words).sum(-1).tolist()
        photos = self.training_pictures(concept)
        found["clip_i"] = (embedded @ photos.T).mean(1).tolist()
        return found

    def training_pictures(self, concept: sandbox.Concept, count: int = 5) -> Tensor:
        """CLIP embeddings of the photos that the concept is learned from."""
        key = (concept.name, count)
        if key not in self._photos:
            images = [photo.image for photo in concept.photos(count)]
            self._photos[key] = self.clip.pictures(images)
        return self._photos[key]

    def diversity(self, pixels: Tensor, seeds: int) -> list[float]:
        """For each prompt, 1 − mean cosine between its pictures; pictures prompt by prompt.

        Raises:
            ValueError: pictures do not come in groups of that many seeds, or of one only.
        """
        if seeds < 2 or len(pixels) % seeds:
            raise ValueError(
                f"diversity: {len(pixels)} pictures are not groups of {seeds} seeds, two or more."
            )
        embedded = self.clip.pictures(images_of(pixels))
        groups = embedded.reshape(-1, seeds, embedded.shape[-1])
        cosines = groups @ groups.transpose(1, 2)
        apart = (cosines.sum((1, 2)) - seeds) / (seeds * (seeds - 1))
        return (1 - apart).tolist()

    def kept(self, pixels: Tensor, prompts: Sequence[Prompt]) -> list[float]:
        """Share of category, colour and scene obeyed in pictures without any concept."""
        says = judge(self.finder, pixels)
        found = obeyed(says, prompts, None)
        return [_share(found, index) or 0.0 for index in range(len(prompts))]

    def nearest(
        self, concepts: Sequence[sandbox.Concept], among: Sequence[sandbox.Concept], pixels: Tensor
    ) -> dict[str, list[float]]:
        """For pictures that should show some concepts: are all present, and each the right one?

        Args:
            concepts: that should be there, of different categories.
            among: candidates whose real photos each is compared with.
            pixels: the pictures.
        """
        present = judge(self.finder, pixels).present
        table = torch.stack([self.scale(concept)[0] for concept in among])
        names = [concept.name for concept in among]
        both = torch.ones(len(pixels), dtype=torch.bool)
        right = torch.ones(len(pixels), dtype=torch.bool)
        for concept in concepts:
            both &= present[:, CATEGORIES.index(concept.category)] > 0
            closest = (self.vectors(concept.category, pixels) @ table.T).argmax(1)
            right &= closest == names.index(concept.name)
        each = torch.tensor([self.identity(concept, pixels) for concept in concepts])
        return {
            "both_right": (both & right).float().tolist(),
            "both_present": both.float().tolist(),
            "identity": each.mean(0).tolist(),
            "worse_identity": each.amin(0).tolist(),
        }


def obeyed(says: Verdict, prompts: Sequence[Prompt], own: int | None) -> Marks:
    """What the judge finds of what prompts ask for.

    Args:
        says: the judge.
        prompts: one for each picture.
        own: index of the concept's category, for relations.
    """
    found: Marks = {name: [] for name in ASKED}
    scenes, colours = list(SCENES), list(COLOURS)
    likeliest = says.scene.argmax(1)
    for row, prompt in enumerate(prompts):
        found["scene"].append(float(scenes[int(likeliest[row])] == prompt.scene))
        other = CATEGORIES.index(prompt.other) if prompt.other else None
        there = other is not None and bool(says.present[row, other] > 0)
        found["other"].append(None if other is None else float(there))
        coloured = there and colours[int(says.colour(other)[row])] == prompt.colour
        found["colour"].append(float(coloured) if prompt.colour else None)
        if not prompt.relation or own is None:
            found["relation"].append(None)
            continue
        both = there and bool(says.present[row, own] > 0)
        found["relation"].append(float(both and says.relation(own, other)[row] == prompt.relation))
    return found


def _share(found: Marks, index: int) -> float | None:
    asked = [found[name][index] for name in ASKED]
    told = [mark for mark in asked if mark is not None]
    return sum(told) / len(told) if told else None


def real_photos(concept: sandbox.Concept, count: int, *, seed: int) -> Tensor:
    """Real pictures of a concept [n, 48, 48, 3]; seed 0 gives those that it is learned from."""
    images = [np.asarray(photo.image) for photo in concept.photos(count, seed=seed)]
    return torch.from_numpy(np.stack(images))


def images_of(pixels: Tensor) -> list[Image.Image]:
    """Pictures [n, height, width, 3] as Pillow has them."""
    return [Image.fromarray(picture.numpy()) for picture in pixels]


def pixels_of(images: Sequence[Image.Image]) -> Tensor:
    """Pillow's pictures as [n, height, width, 3]."""
    return torch.from_numpy(np.stack([np.asarray(image.convert("RGB")) for image in images]))
