"""A file of drawn pictures, made once by several processes and then mapped into memory."""

import multiprocessing
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

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


def _draw(task: tuple[int, int, int, int, int, int, float]) -> Drawn:
    seed, start, stop, singles, size, patch, skinned = task
    pixels, objects = [], []
    cells = size // patch
    for index in range(start, stop):
        picture = render(scene_of(seed, index, singles, skinned), size)
        cover = picture.masks.any(0).reshape(cells, patch, cells, patch).mean((1, 3))
        pixels.append(picture.pixels)
        objects.append((255 * cover).astype(np.uint8))
    return Drawn(np.stack(pixels), np.stack(objects))


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
    stem = f"pictures-{seed}-{count}-{singles}-{size}-{patch}-{skinned}"
    files = folder / f"{stem}.npy", folder / f"{stem}-objects.npy"
    if not all(file.exists() for file in files):
        folder.mkdir(parents=True, exist_ok=True)
        tasks = [
            (seed, start, min(start + CHUNK, count), singles, size, patch, skinned)
            for start in range(0, count, CHUNK)
        ]
        with multiprocessing.get_context("spawn").Pool(workers) as pool:
            chunks = pool.map(_draw, tasks, chunksize=1)
        for file, parts in zip(files, zip(*chunks, strict=True), strict=True):
            _write(file, np.concatenate(parts))
    return Drawn(*(np.load(file, mmap_mode="r") for file in files))


def _write(file: Path, array: npt.NDArray[np.uint8]) -> None:
    scratch = file.with_suffix(f".{os.getpid()}.tmp.npy")
    np.save(scratch, array)
    scratch.replace(file)
