"""Judges: of the attribute that a picture shows, and of whether it shows a thing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from rankedit_recipes.concepts.errors import ConceptsError
from rankedit_recipes.concepts.requests import Request
from rankedit_recipes.diffusion.captions import listed_texts
from rankedit_recipes.diffusion.scoring import ClipScorer

if TYPE_CHECKING:
    from rankedit_recipes.sandbox.images.judge import AttributeJudge, Verdict


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
        from rankedit_recipes.sandbox.images.vocabulary import COLOURS

        check_sandbox(request)
        place = _categories().index(request.name)
        seen = _seen(self._model, pictures)
        there, colours = seen.present[:, place] > 0, list(COLOURS)
        said = [colours[i] for i in seen.colour(place).tolist()]
        return [name if shown else "" for name, shown in zip(said, there.tolist(), strict=True)]


class ClipPresence:
    """Whether a picture shows a word rather than others, by CLIP.

    A cosine by itself says nothing, and neither does one beside that of a sentence without the
    word: on the sandbox that one takes cups for cars.

    Args:
        scorer: a CLIP model.
        among: other words that a picture may show instead.
        sentence: with `{}` for the word.

    Raises:
        ConceptsError: there is nothing else that a picture may show.
    """

    def __init__(
        self, scorer: ClipScorer, among: Sequence[str], sentence: str = "a photo of a {}"
    ) -> None:
        self._scorer, self._sentence = scorer, sentence
        self._among = listed_texts("ClipPresence", "among", among)

    def __call__(self, pictures: Sequence[Image.Image], word: str) -> list[float]:
        """For each picture 1 where the word is the nearest of all, else 0."""
        others = [other for other in self._among if other != word]
        if not others:
            raise ConceptsError(
                f"probe: CLIP tells {word!r} from other words that a picture may show, and none "
                "was given; give ClipPresence(scorer, among=['a dog', ...])."
            )
        texts = self._scorer.texts([self._sentence.format(w) for w in (word, *others)])
        nearest = (self._scorer.pictures(pictures) @ texts.T).argmax(1)
        return (nearest == 0).float().tolist()


class SandboxPresence:
    """Whether a picture of the sandbox shows a thing, or anything in a colour, by its judge."""

    def __init__(self) -> None:
        from rankedit_recipes import sandbox

        self._model = sandbox.attribute_judge()

    def __call__(self, pictures: Sequence[Image.Image], word: str) -> list[float]:
        """For each picture 0 or 1.

        Raises:
            ConceptsError: neither a thing nor a colour of the sandbox.
        """
        from rankedit_recipes.sandbox.images.vocabulary import COLOURS

        check_word(word)
        seen = _seen(self._model, pictures)
        if word in _categories():
            return (seen.present[:, _categories().index(word)] > 0).float().tolist()
        best = seen.present.argmax(1)
        worn = seen.looks[torch.arange(len(best)), best, : len(COLOURS)].argmax(1)
        return (worn == list(COLOURS).index(word)).float().tolist()


def check_word(word: str) -> None:
    """Refuse a word that the sandbox's judge has no name for.

    Raises:
        ConceptsError: names it, and what it knows.
    """
    from rankedit_recipes.sandbox.images.vocabulary import COLOURS

    if word not in (*_categories(), *COLOURS):
        raise ConceptsError(
            f"probe: the sandbox's judge tells its things ({', '.join(_categories())}) and their "
            f"colours ({', '.join(COLOURS)}), and not {word!r}; give a judge of your own."
        )


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


def _seen(model: AttributeJudge, pictures: Sequence[Image.Image]) -> Verdict:
    from rankedit_recipes.sandbox.images.judge import judge

    # The sandbox's own pictures have that size.
    edges = (model.size, model.size)
    pixels = np.stack([np.array(p.convert("RGB").resize(edges)) for p in pictures])
    return judge(model, torch.from_numpy(pixels))


def _categories() -> tuple[str, ...]:
    from rankedit_recipes.sandbox.images.vocabulary import CATEGORIES

    return CATEGORIES
