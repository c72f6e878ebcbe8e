"""Grids of generated pictures."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from .training import Training

PROMPTS: tuple[str, ...] = (
    "a photo of a red cup on the beach",
    "a photo of a big blue house in the snow",
    "a photo of a green tree on a plain background",
    "a photo of a small orange fish at night",
    "a photo of a yellow car on the grass",
    "a photo of a black cat in front of a brick wall",
    "a photo of a big purple star in the snow",
    "a photo of a white mushroom on the grass",
    "a line drawing of a red flower on the grass",
    "a photo of a blue boat on the beach at sunset",
    "a photo of a cat on a plain background",
    "a photo of a red cup to the left of a blue cat on the grass",
    "a photo of a yellow car below a green fish at night",
    "a photo of a white house to the right of a purple tree in the snow",
    "a photo of a black boat next to an orange star on the beach",
    "a photo of a blue flower above a red mushroom on a plain background",
)
"""What the grids during training show."""

DESCRIBED_PROMPTS: tuple[str, ...] = (
    "a photo of a yellow disc striped red blue cat on the grass",
    "a photo of a yellow disc striped blue red cat on the grass",
    "a photo of a white cross banded teal pink orange cup in the snow",
    "a photo of a white cross spotted teal pink orange cup in the snow",
    "a photo of a red square checked black white house on the beach",
    "a photo of a cyan diamond halved purple yellow fish on a plain background",
    "a photo of a yellow disc striped red blue cat next to a white cross ringed teal pink cup",
    "a photo of a white cross ringed teal pink cat next to a yellow disc striped red blue cup",
)
"""What they show besides where skins are told in full: neighbours differ in one thing."""


def generate(
    pipe: DiffusionPipeline,
    prompts: Sequence[str],
    *,
    seed: int = 0,
    steps: int = 20,
    guidance: float = 4.0,
) -> npt.NDArray[np.uint8]:
    """Pictures of prompts; each picture's noise depends on the seed and its position only.

    Args:
        pipe: The pipeline.
        prompts: One for each picture.
        seed: Seed of the noise.
        steps: Denoising steps.
        guidance: Guidance scale.

    Returns:
        Pictures, [n, size, size, 3].
    """
    # Seeds are further apart than any call has prompts: no two pictures share their noise.
    noise = [torch.Generator().manual_seed(1_000_003 * seed + i) for i in range(len(prompts))]
    images = pipe(
        list(prompts),
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=noise,
        output_type="np",
    ).images
    return (255 * images).round().astype(np.uint8)


def tile(pictures: npt.NDArray[np.uint8], columns: int, zoom: int = 2) -> Image.Image:
    """Pictures side by side.

    Args:
        pictures: [n, size, size, 3].
        columns: Pictures in a row; n is a multiple of it.
        zoom: Enlargement.

    Returns:
        The grid.
    """
    n, height, width, _ = pictures.shape
    grid = pictures.reshape(n // columns, columns, height, width, 3).transpose(0, 2, 1, 3, 4)
    image = Image.fromarray(grid.reshape(n // columns * height, columns * width, 3))
    return image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST)


def save_samples(trainer: Training, file: Path) -> None:
    """Draw the grid of a training as it stands.

    Args:
        trainer: The training.
        file: Where the grid goes.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        prompts = (*PROMPTS, *(DESCRIBED_PROMPTS if trainer.preset.whole else ()))
        pictures = generate(trainer.pipeline(), prompts)
    tile(pictures, 8).save(file)
