"""New words in a tokenizer, each of one vector or of several: `<bean>`, `<bean>_1`, `<bean>_2`.

diffusers names the vectors of a textual inversion so, and in pipelines that load such ones replaces
the first name by all of them in every prompt (`maybe_convert_prompt`, 0.42). Others hand prompts
to the tokenizer as they are, so that it does the same.
"""

from __future__ import annotations

import copy
import functools
import itertools
import re
from collections.abc import Container, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from tokenizers import AddedToken

from rankedit_recipes.diffusion.errors import PipelineError
from rankedit_recipes.diffusion.text import Tokenizer


def vector_names(trigger: str, count: int) -> list[str]:
    """The names of a word's vectors.

    Example:
        >>> vector_names("<bean>", 3)
        ['<bean>', '<bean>_1', '<bean>_2']
    """
    return [trigger, *(f"{trigger}_{index}" for index in range(1, count))]


def in_place_of(
    words: Mapping[str, str], prompt: str, vectors: Mapping[str, int] = MappingProxyType({})
) -> str:
    """The prompt with other words where the tokenizer finds the new ones.

    Args:
        words: by new word what takes its place.
        prompt: the prompt.
        vectors: how many vectors the new words have, if more than one; those that are written out
            belong to their word.

    Example:
        >>> in_place_of({"zz": "cat", "zz-a": "cup"}, "a zz-a and a zz")
        'a cup and a cat'
        >>> in_place_of({"<bean>": "cat"}, "a <bean> <bean>_1", {"<bean>": 2})
        'a cat'
    """
    # As tokenizers search: the longest word that begins at a place, and where that one is a part of
    # another word, none there.
    longest = sorted(words, key=len, reverse=True)
    texts = [_written_out(word, vectors.get(word, 1)) for word in longest]

    def other(found: re.Match[str]) -> str:
        word = longest[(found.lastindex or 1) - 1]
        before, after = prompt[: found.start()], prompt[found.end() :]
        inside = re.search(r"\w\Z", before) or re.match(r"\w", after)
        return found[0] if inside and _is_whole(word) else words[word]

    return re.sub("|".join(f"({text})" for text in texts), other, prompt)


def _written_out(trigger: str, count: int) -> str:
    """Pattern of a word, with its further vectors if it has such."""
    word = re.escape(trigger)
    return rf"{word}(?!_\d)(?:\s*{word}_\d+)*" if count > 1 else word


def _is_whole(trigger: str) -> bool:
    """Whether a word is found between other words only: "cat1" must not match in "cat10"."""
    return trigger[0].isalnum() or trigger[-1].isalnum()


def extended_tokenizer(tokenizer: Tokenizer, words: Mapping[str, int]) -> Tokenizer:
    """A copy of a tokenizer that knows new words, a token for each of their vectors.

    Args:
        tokenizer: the tokenizer.
        words: by word how many vectors it has.

    Raises:
        PipelineError: a word does not come back from a text that it is put in, or pipelines would
            take it for a part of another word.
    """
    # A copy: a tokenizer that had a word added cannot forget it (transformers 5).
    extended = copy.deepcopy(tokenizer)
    for trigger, count in words.items():
        whole = _is_whole(trigger)
        extended.add_tokens(
            [
                AddedToken(name, single_word=whole, normalized=False, special=False)
                for name in vector_names(trigger, count)
            ]
        )
    numbers = {word: _numbers(extended, word, count) for word, count in words.items()}
    # A number below the old length is an old word: a normaliser changed the new one into it.
    new = {word: min(own) >= len(tokenizer) for word, own in numbers.items()}
    if all(new.values()):
        _write_out(extended, {word: own for word, own in numbers.items() if words[word] > 1})
    for trigger, own in numbers.items():
        ids = list(extended(f"a {trigger} a").input_ids)
        if not new[trigger] or _runs(ids, own) != 1 or ids.count(own[0]) != 1:
            raise PipelineError(
                f"diffusion: the tokenizer does not give {trigger!r} back as {_tokens(own)}, but "
                f"as {extended.convert_ids_to_tokens(ids)}; choose another word, lower case with "
                "brackets, such as '<bean>'."
            )
    return extended


def _numbers(tokenizer: Tokenizer, trigger: str, count: int) -> list[int]:
    vocabulary = tokenizer.get_vocab()
    return [vocabulary.get(name, -1) for name in vector_names(trigger, count)]


def _tokens(numbers: Sequence[int]) -> str:
    return "one token" if len(numbers) == 1 else f"{len(numbers)} tokens"


def _runs(ids: Sequence[int], wanted: Sequence[int]) -> int:
    size = len(wanted)
    return sum(list(ids[i : i + size]) == list(wanted) for i in range(len(ids) - size + 1))


def check_vectors(tokenizer: Tokenizer, words: Mapping[str, int]) -> None:
    """Refuse words that look like the further vectors of another one.

    Args:
        tokenizer: without the words.
        words: by word how many vectors it has.

    Raises:
        PipelineError: names both.
    """
    known = {*tokenizer.get_added_vocab(), *words}
    for trigger, count in words.items():
        if count > 1 and count + 2 > tokenizer.model_max_length:
            raise PipelineError(
                f"diffusion: {trigger!r} cannot have {count} vectors: the tokenizer cuts prompts "
                f"at {tokenizer.model_max_length} tokens, of which two mark the ends; choose fewer."
            )
        stem, mark, number = trigger.rpartition("_")
        first = stem if mark and number.isdigit() and stem in known else ""
        # One more than it has, for pipelines go on counting.
        further = [f"{trigger}_{index}" for index in range(1, count + 1)]
        taken = [name for name in further if name in known or name in tokenizer.get_vocab()]
        if first or taken:
            raise PipelineError(
                f"diffusion: {trigger!r} and {first or taken[0]!r} cannot both be words: "
                "pipelines take the one for a further vector of the other and put both into the "
                f"prompt. Choose another word, such as '{_plainer(trigger, known)}'."
            )
        if count > 1 and _is_whole(trigger):
            # diffusers replaces letters and not tokens: "mush" also in "mushroom" (0.42).
            raise PipelineError(
                f"diffusion: {trigger!r} cannot have {count} vectors: pipelines put them in "
                f"wherever its letters stand, inside of other words too. Choose a word in "
                f"brackets, such as '{_plainer(trigger, known)}'."
            )


def _plainer(trigger: str, known: Container[str]) -> str:
    """A word of the same letters that is none of these."""
    letters = re.sub(r"[^a-zA-Z0-9]+", "-", trigger).strip("-")
    names = itertools.chain([letters], (f"{letters}-{number}" for number in itertools.count(2)))
    return next(f"<{name}>" for name in names if f"<{name}>" not in known)


# ------------------------------------------------------------------------ words of several vectors


class _Writing:
    """What comes before a tokenizer's own class: words of several vectors are written out."""

    _written: dict[str, list[int]]

    def __call__(self, text: Any = None, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        found = super().__call__(self._write(text), *args, **kwargs)  # type: ignore[misc]
        ids = found["input_ids"]
        rows = ids.tolist() if hasattr(ids, "tolist") else ids
        for row in [rows] if rows and isinstance(rows[0], int) else rows:
            self._check_whole(row)
        return found

    def _write(self, text: Any) -> Any:  # noqa: ANN401 - as tokenizers take it
        if isinstance(text, (list, tuple)):
            return [self._write(part) for part in text]
        if not isinstance(text, str):
            return text
        for trigger, numbers in self._written.items():
            # What a pipeline has written out already is not written out again. Without spaces,
            # which some tokenizers make tokens of.
            full = "".join(vector_names(trigger, len(numbers)))
            # A function's result is taken as it is, without a look for backslashes.
            once = functools.partial(_always, full)
            text = re.sub(_written_out(trigger, len(numbers)), once, text)
        return text

    def _check_whole(self, row: Sequence[int]) -> None:
        for trigger, numbers in self._written.items():
            own = [token for token in row if token in numbers]
            count, rest = divmod(len(own), len(numbers))
            if rest or own != numbers * count:
                raise PipelineError(
                    f"diffusion: {trigger!r} has {len(numbers)} vectors, but a prompt's "
                    f"{len(row)} tokens hold {rest or len(own)} of them alone: it was cut off in "
                    "their midst, or names one by itself. Say the word only, nearer to the "
                    "beginning, or in a shorter prompt."
                )


def _always(text: str, _: re.Match[str]) -> str:
    return text


def _write_out(tokenizer: Tokenizer, words: dict[str, list[int]]) -> None:
    """Let a tokenizer write words of several vectors out."""
    if not words:
        return
    base = type(tokenizer)
    # Under the name of its own class: pipelines note the classes of what they are given.
    kept = {"__module__": base.__module__, "__qualname__": base.__qualname__}
    tokenizer.__class__ = type(base.__name__, (_Writing, base), kept)
    tokenizer._written = words
