"""CounterFact's reference score: does what a model writes read like texts of what is now true?"""

from __future__ import annotations

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TypeAlias

from rankedit_recipes.language.errors import LanguageError

References: TypeAlias = Mapping[tuple[str, str], Sequence[str]]
"""Texts by the relation's and the target's identity, such as `("P103", "Q1860")`."""

# scikit-learn's own pattern for words.
_WORD = re.compile(r"\b\w\w+\b")


class TfIdf:
    """Weights of words: how often in a text, times how few of the reference texts have them.

    `ln((1 + n)/(1 + n_w)) + 1` for a word that n_w of n references have, words of two letters and
    more in lower case, as scikit-learn's vectoriser has it, which CounterFact's authors used. Words
    that no reference has do not count.

    Args:
        references: the texts that the frequencies are of.
    """

    def __init__(self, references: Iterable[str]) -> None:
        texts = [set(_words(text)) for text in references]
        having = Counter(word for words in texts for word in words)
        self._weights = {w: math.log((1 + len(texts)) / (1 + n)) + 1 for w, n in having.items()}

    def similarity(self, one: str, other: str) -> float:
        """Cosine of the vectors of two texts; 0 where one has no word of the references.

        Example:
            >>> weights = TfIdf(["red wine", "red tea"])
            >>> weights.similarity("red red", "Red!"), weights.similarity("wine", "tea")
            (1.0, 0.0)
        """
        first, second = self._vector(one), self._vector(other)
        lengths = math.hypot(*first.values()) * math.hypot(*second.values())
        common = sum(weight * second.get(word, 0.0) for word, weight in first.items())
        # Rounding may put the cosine of a text with itself above 1.
        return min(1.0, common / lengths) if lengths else 0.0

    def _vector(self, text: str) -> dict[str, float]:
        counts = Counter(word for word in _words(text) if word in self._weights)
        return {word: count * self._weights[word] for word, count in counts.items()}


def read_references(path: str | PathLike[str]) -> dict[tuple[str, str], list[str]]:
    """CounterFact's `attribute_snippets.json`: texts about things that have an attribute.

    Its records have a `relation_id`, a `target_id` and `samples`, each with a `text`.

    Raises:
        LanguageError: no such file, or one of something else.
    """
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    try:
        for record in json.loads(Path(path).read_text(encoding="utf-8")):
            key = (str(record["relation_id"]), str(record["target_id"]))
            found[key] += [str(sample["text"]) for sample in record["samples"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise LanguageError(
            f"read_references: '{path}' is no file of CounterFact's reference texts "
            f"({type(error).__name__}: {error}); give its attribute_snippets.json."
        ) from error
    return dict(found)


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())
