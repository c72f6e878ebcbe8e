"""Personal concepts: one skin on one category, with as many photos as one likes."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from .captions import caption
from .renderer import render
from .scenes import Scene, draw_pair, draw_single, rng_of
from .skins import Skin, draw_skin
from .vocabulary import CATEGORIES, SCENES

FOLDER = Path(__file__).parent / "concepts"
"""Where the named concepts lie as a user would have them: photos and masks."""

NAMED: Mapping[str, tuple[str, int]] = {
    "bean": ("cat", 101),
    "mug": ("cup", 102),
    "cottage": ("house", 103),
    "bubbles": ("fish", 104),
    "racer": ("car", 105),
    "twinkle": ("star", 106),
    "toadstool": ("mushroom", 107),
    "daisy": ("flower", 108),
    "dinghy": ("boat", 109),
    "oak": ("tree", 110),
    "whiskers": ("cat", 111),
    "teacup": ("cup", 112),
}
"""The twelve concepts that ship: name to category and seed of the skin."""

PHOTOS = 5
"""Photos of each shipped concept."""


@dataclass(frozen=True)
class Photo:
    """One photo of a concept.

    Attributes:
        image: The picture.
        mask: Where the concept is, white on black.
        caption: What the picture shows, as captions of the world put it.
        scene: What was drawn, or None for a photo read from a file.
    """

    image: Image.Image
    mask: Image.Image
    caption: str = ""
    scene: Scene | None = None


@dataclass(frozen=True)
class Concept:
    """A personal object.

    Attributes:
        name: Its name.
        category: What kind of object it is.
        skin: Its look, of which captions can name the pattern, the colours and the badge.
    """

    name: str
    category: str
    skin: Skin

    def photos(self, count: int = PHOTOS, *, seed: int = 0, size: int = 48) -> list[Photo]:
        """Photos of the object alone, each in another scene as long as there are enough.

        Args:
            count: How many.
            seed: Another seed, other photos.
            size: Pixels a side.

        Returns:
            The photos.
        """
        # Not of the skin: variants of a concept are seen in the same scenes (`nearest_variant`).
        rng = rng_of("photos", self.name, self.category, seed)
        order = rng.sample(list(SCENES), len(SCENES))
        photos = []
        for index in range(count):
            scene = draw_single(rng)
            thing = replace(scene.things[0], category=self.category, colour=None, skin=self.skin)
            scene = replace(
                scene, things=(thing,), background=order[index % len(order)], style="photo"
            )
            photos.append(_shoot(scene, rng, size))
        return photos

    def save(self, folder: Path, count: int = PHOTOS, *, seed: int = 0, size: int = 48) -> None:
        """Write photos and masks as PNG files.

        Args:
            folder: Where they go; made if missing.
            count: How many photos.
            seed: Seed of the photos.
            size: Pixels a side.
        """
        folder.mkdir(parents=True, exist_ok=True)
        for index, photo in enumerate(self.photos(count, seed=seed, size=size)):
            photo.image.save(folder / f"photo-{index}.png")
            photo.mask.save(folder / f"mask-{index}.png")

    @property
    def folder(self) -> Path:
        """The shipped folder of a named concept.

        Raises:
            LookupError: If the concept does not ship.
        """
        if self.name not in NAMED:
            raise LookupError(
                f"Concept.folder: {self.name!r} does not ship as files; expected one of "
                f"{', '.join(NAMED)}. Write the files with concept.save(folder)"
            )
        return FOLDER / self.name


def concept(which: int | str, *, category: str | None = None) -> Concept:
    """A personal concept, by seed or by name.

    Args:
        which: A seed, or one of the names in `NAMED`.
        category: Category for a seed; drawn if not given.

    Returns:
        The concept; the same argument always gives the same one.

    Raises:
        LookupError: If the name or the category is unknown; the message lists the known ones.

    Example:
        >>> concept("bean").category
        'cat'
    """
    if isinstance(which, str):
        if which not in NAMED:
            raise LookupError(
                f"concept: unknown name {which!r}; expected a seed or one of {', '.join(NAMED)}"
            )
        named, seed = NAMED[which]
        return Concept(which, named, draw_skin(rng_of("concept", seed)))
    rng = rng_of("concept", which)
    # Before the category: the seed's skin is the same on all of them.
    skin = draw_skin(rng)
    chosen = category or rng.choice(CATEGORIES)
    if chosen not in CATEGORIES:
        raise LookupError(
            f"concept: unknown category {chosen!r}; expected one of {', '.join(CATEGORIES)}"
        )
    return Concept(f"concept-{which}", chosen, skin)


def together(
    first: Concept, second: Concept, count: int = PHOTOS, *, seed: int = 0, size: int = 48
) -> list[Photo]:
    """Pictures of two concepts side by side: the truth that merged edits are compared with.

    Args:
        first: A concept; the masks show it.
        second: Another.
        count: How many pictures.
        seed: Another seed, other pictures.
        size: Pixels a side.

    Returns:
        The pictures.
    """
    rng = rng_of("together", first.name, second.name, seed)
    looks = (first.category, None, first.skin), (second.category, None, second.skin)
    return [_shoot(replace(draw_pair(rng, looks), style="photo"), rng, size) for _ in range(count)]


def read_photos(folder: Path) -> list[Photo]:
    """Read the photos and masks of a folder as `Concept.save` writes them.

    Args:
        folder: The folder.

    Returns:
        The photos in the order of their numbers.

    Raises:
        FileNotFoundError: If there is no photo, or a photo without its mask.
    """
    # By number: as text, photo-10 comes before photo-2.
    files = sorted(folder.glob("photo-*.png"), key=lambda file: int(file.stem.split("-")[1]))
    if not files:
        raise FileNotFoundError(f"read_photos: no photo-*.png in {folder}")
    photos = []
    for file in files:
        mask = file.with_name(file.name.replace("photo", "mask"))
        if not mask.exists():
            raise FileNotFoundError(f"read_photos: {file} has no mask; expected {mask}")
        photos.append(Photo(Image.open(file).convert("RGB"), Image.open(mask).convert("L")))
    return photos


def as_array(photos: Sequence[Photo]) -> npt.NDArray[np.uint8]:
    """Pixels of photos, [n, size, size, 3]."""
    return np.stack([np.asarray(photo.image) for photo in photos])


def _shoot(scene: Scene, rng: random.Random, size: int) -> Photo:
    picture = render(scene, size)
    # The concept is the first thing; what else is there has a mask of its own.
    mask = Image.fromarray((255 * picture.masks[0]).astype(np.uint8))
    return Photo(Image.fromarray(picture.pixels), mask, caption(scene, rng), scene)
