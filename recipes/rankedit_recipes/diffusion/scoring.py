"""How good pictures of a concept are: like its photos, and like their prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor


@dataclass(frozen=True)
class Scores:
    """Two similarities, both better the higher.

    Attributes:
        picture: of the pictures to the photos (CLIP-I, or an identity score).
        text: of the pictures to their prompts (CLIP-T).
    """

    picture: float
    text: float

    @property
    def balance(self) -> float:
        """Harmonic mean, by which checkpoints are chosen; 0 if one of the two is not positive."""
        # Cosines may be negative, and a harmonic mean is one of positive numbers.
        if min(self.picture, self.text) <= 0:
            return 0.0
        return 2 * self.picture * self.text / (self.picture + self.text)


class Scorer(Protocol):
    """Anything that scores pictures of a concept."""

    def __call__(
        self, pictures: Sequence[Image.Image], prompts: Sequence[str], photos: Sequence[Image.Image]
    ) -> Scores:
        """Scores of pictures.

        Args:
            pictures: what was generated.
            prompts: for each its prompt, with the category in place of the concept's word.
            photos: of the concept.
        """


class ClipScorer:
    """CLIP-I and CLIP-T by a `CLIPModel` of transformers.

    Args:
        model: the model.
        processor: prepares pictures, such as a `CLIPImageProcessorPil`.
        tokenizer: of the model.
    """

    def __init__(self, model: Any, processor: Any, tokenizer: Any) -> None:  # noqa: ANN401
        self._model, self._processor, self._tokenizer = model.eval(), processor, tokenizer

    @torch.no_grad()
    def __call__(
        self, pictures: Sequence[Image.Image], prompts: Sequence[str], photos: Sequence[Image.Image]
    ) -> Scores:
        """Mean cosines of pictures to photos, and of each picture to its prompt."""
        made, given = self.pictures(pictures), self.pictures(photos)
        text = (made * self.texts(prompts)).sum(-1).mean()
        return Scores(float((made @ given.T).mean()), float(text))

    def pictures(self, images: Sequence[Image.Image]) -> Tensor:
        """Unit embeddings `[n, width]` of pictures."""
        pixels = self._processor(images=list(images), return_tensors="pt").pixel_values
        return _unit(self._model.get_image_features(pixel_values=pixels.to(self._model.device)))

    def texts(self, prompts: Sequence[str]) -> Tensor:
        """Unit embeddings `[n, width]` of prompts."""
        tokens = self._tokenizer(
            list(prompts), padding=True, truncation=True, return_tensors="pt"
        ).to(self._model.device)
        return _unit(self._model.get_text_features(**tokens))


def _unit(features: Any) -> Tensor:  # noqa: ANN401 - a tensor, or since transformers 5 an object
    tensor: Tensor = features if isinstance(features, Tensor) else features.pooler_output
    return tensor / tensor.norm(dim=-1, keepdim=True)
