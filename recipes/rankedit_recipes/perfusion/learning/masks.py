"""Soft masks of the object in a photo, from the category's word."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from rankedit_recipes.perfusion.learning.photos import Photo

Masker = Callable[[Image.Image, str], Image.Image]


class ClipSegMasks:
    """Probability maps of CLIPSeg, as the paper uses them: soft, without a threshold.

    Args:
        model: a `CLIPSegForImageSegmentation` of transformers.
        processor: its `CLIPSegProcessor`.
    """

    def __init__(self, model: Any, processor: Any) -> None:  # noqa: ANN401
        self._model, self._processor = model.eval(), processor

    @torch.no_grad()
    def __call__(self, image: Image.Image, words: str) -> Image.Image:
        """The mask of what the words name, 8-bit grey, of the picture's size."""
        inputs = self._processor(text=[words], images=[image], return_tensors="pt", padding=True)
        logits = self._model(**inputs.to(self._model.device)).logits.squeeze()
        # Rounded, for a conversion to integers cuts off.
        grey = (torch.sigmoid(logits.float()) * 255).round().to(torch.uint8).cpu().numpy()
        mask = Image.fromarray(np.ascontiguousarray(grey))
        # CLIPSeg gives 352 pixels for any picture; between them the map is smooth.
        return mask.resize(image.size, Image.Resampling.BILINEAR)


def masked(photos: Sequence[Photo], category: str, masker: Masker) -> list[Photo]:
    """Photos with masks: their own where they have one, else the masker's.

    Args:
        photos: the photos.
        category: what to look for in them.
        masker: such as `ClipSegMasks`.
    """
    return [
        photo if photo.mask is not None else replace(photo, mask=masker(photo.image, category))
        for photo in photos
    ]
