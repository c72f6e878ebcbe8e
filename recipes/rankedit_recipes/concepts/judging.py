"""Judges that name the attribute a picture shows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from rankedit_recipes.concepts.errors import ConceptsError
from rankedit_recipes.concepts.requests import Request
from rankedit_recipes.diffusion.scoring import ClipScorer


class ClipJudge:
    """The attribute whose sentence is the nearest to a picture by CLIP, as in UCE's code.

    Every picture is given one, whatever it shows.

    Args:
        scorer: a CLIP model.
        sentence: with `{}` for attribute and concept.
    """

    def __init__(self, scorer: ClipScorer, sentence: str = "a photo of a {}") -> None:
        self._scorer, self._sentence = scorer, sentence

    def __call__(self, pictures: Sequence[Image.Image], request: Request) -> list[str]:
        """Names of `request.to`."""
        sentences = [self._sentence.format(f"{a} {request.name}") for a in request.to]
        nearest = (self._scorer.pictures(pictures) @ self._scorer.texts(sentences).T).argmax(1)
        return [request.to[i] for i in nearest.tolist()]


class SandboxJudge:
    """The colour of a category's object, by the sandbox's judge; '' where there is no such object.

    Raises:
        ConceptsError: another concept than a category, or attributes that are no colours.
    """

    def __init__(self) -> None:
        from rankedit_recipes import sandbox

        self._model = sandbox.attribute_judge()

    def __call__(self, pictures: Sequence[Image.Image], request: Request) -> list[str]:
        """Names of colours."""
        from rankedit_recipes.sandbox.images.judge import judge
        from rankedit_recipes.sandbox.images.vocabulary import COLOURS

        check_sandbox(request)
        pixels = torch.from_numpy(np.stack([np.array(p.convert("RGB")) for p in pictures]))
        place = _categories().index(request.name)
        seen = judge(self._model, pixels)
        there, colours = seen.present[:, place] > 0, list(COLOURS)
        said = [colours[i] for i in seen.colour(place).tolist()]
        return [name if shown else "" for name, shown in zip(said, there.tolist(), strict=True)]


def check_sandbox(request: Request) -> None:
    """Refuse what the sandbox's judge has no name for.

    Raises:
        ConceptsError: names it, and what it knows.
    """
    from rankedit_recipes.sandbox.images.vocabulary import COLOURS

    if request.name not in _categories() or set(request.to) - set(COLOURS):
        raise ConceptsError(
            f"debias: the sandbox's judge tells the colours ({', '.join(COLOURS)}) of its things "
            f"({', '.join(_categories())}), and not {', '.join(request.to)} of {request.name!r}; "
            "give a judge of your own."
        )


def _categories() -> tuple[str, ...]:
    from rankedit_recipes.sandbox.images.vocabulary import CATEGORIES

    return CATEGORIES
