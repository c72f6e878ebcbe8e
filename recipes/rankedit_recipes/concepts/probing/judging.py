"""Who says what a picture shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from PIL import Image


class Judge(Protocol):
    """Anything that says which pictures show something."""

    def __call__(self, pictures: Sequence[Image.Image], word: str) -> Sequence[float]:
        """For each picture how far it shows what the word says, 0 to 1."""
