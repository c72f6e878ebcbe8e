"""A file of drawn pictures, made once by several processes and then mapped into memory."""

import multiprocessing
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from rankedit.atomic import sync_folder

from .renderer import render
from .scenes import Scene, draw_scene, rng_of

CHUNK = 500
"""Pictures drawn per task."""

SKINNED = 0.5
"""How often an object wears a skin by default: a skin takes longer to learn than a colour."""


class Drawn(NamedTuple):
    """Pictures of a stream and where their objects are.

    Attributes:
        pixels: [pictures, size, size, 3].
        objects: How far objects fill each patch, 0 to 255, [pictures, patches, patches].
    """

    pixels: npt.NDArray[np.uint8]
    objects: npt.NDArray[np.uint8]


def scene_of(seed: int, index: int, singles: int, skinned: float = SKINNED) -> Scene:
    """The scene number `index` of a stream: one object below `singles`, two from there on.

    Args:
        seed: Seed of the stream.
        index: Number of the picture.
        singles: How many pictures of one object come first.
        skinned: How often an object wears a skin.

    Returns:
        The scene.
    """
    pairs = 0.0 if index < singles else 1.0
    return draw_scene(rng_of("scene", seed, index), pairs=pairs, skinned=skinned)


class _Part(NamedTuple):
    """Consecutive pictures of a stream, and the folder that keeps them until all are there."""

    folder: Path
    seed: int
    start: int
    stop: int
    singles: int
    size: int
    patch: int
    skinned: float

    @property
    def files(self) -> tuple[Path, Path]:
        """Of the pixels and of the objects; there is a part once the last one is there."""
        stem = f"{self.start:08d}"
        return self.folder / f"{stem}.npy", self.folder / f"{stem}-objects.npy"


def _draw(part: _Part) -> None:
    """Draw a part and write it, unless a killed run did."""
    if part.files[-1].exists():
        return
    pixels, objects = [], []
    cells = part.size // part.patch
    for index in range(part.start, part.stop):
        picture = render(scene_of(part.seed, index, part.singles, part.skinned), part.size)
        cover = picture.masks.any(0).reshape(cells, part.patch, cells, part.patch).mean((1, 3))
        pixels.append(picture.pixels)
        objects.append((255 * cover).astype(np.uint8))
    for file, arrays in zip(part.files, (pixels, objects), strict=True):
        _write(file, [np.stack(arrays)], part.stop - part.start)


def drawn_pictures(
    folder: Path,
    *,
    seed: int,
    count: int,
    singles: int,
    size: int,
    patch: int,
    workers: int = 2,
    skinned: float = SKINNED,
) -> Drawn:
    """Pictures of a stream, drawn now or read from an earlier run's file.

    A drawing that was killed goes on from the parts of `CHUNK` pictures that it wrote.

    Args:
        folder: Where the files lie.
        seed: Seed of the stream.
        count: How many pictures.
        singles: How many of them show one object; they come first.
        size: Pixels a side.
        patch: Pixels a side of one latent cell.
        workers: Processes that draw.
        skinned: How often an object wears a skin.

    Returns:
        The pictures, mapped into memory.
    """
    # All that decides the pictures is in the name, so that no setting reads those of another.
    stem = f"pictures-{seed}-{count}-{singles}-{size}-{patch}-{skinned}"
    files = folder / f"{stem}.npy", folder / f"{stem}-objects.npy"
    if not all(file.exists() for file in files):
        scratch = folder / f"{stem}.parts"
        scratch.mkdir(parents=True, exist_ok=True)
        parts = [
            _Part(scratch, seed, start, min(start + CHUNK, count), singles, size, patch, skinned)
            for start in range(0, count, CHUNK)
        ]
        with multiprocessing.get_context("spawn").Pool(workers) as pool:
            pool.map(_draw, parts, chunksize=1)
        written = zip(*(part.files for part in parts), strict=True)
        for file, kept in zip(files, written, strict=True):
            _write(file, (np.load(one) for one in kept), count)
        sync_folder(folder)  # the new names too, before what they were made of goes
        shutil.rmtree(scratch)
    return Drawn(*(np.load(file, mmap_mode="r") for file in files))


def _write(file: Path, arrays: Iterable[npt.NDArray[np.uint8]], count: int) -> None:
    """Write arrays behind one another: aside, synced, renamed; only one is in memory at a time."""
    scratch, at = file.with_suffix(f".{os.getpid()}.tmp.npy"), 0
    for array in arrays:
        if at == 0:
            shape = (count, *array.shape[1:])
            whole = np.lib.format.open_memmap(scratch, "w+", np.uint8, shape)
        whole[at : at + len(array)] = array
        at += len(array)
    whole.flush()
    with scratch.open("rb+") as stream:
        os.fsync(stream.fileno())
    scratch.replace(file)
