"""Texts as tokens, with where the subject ends and where the target stands in them.

Positions come from the character offsets that a fast tokenizer gives for each token. Nothing is
guessed from the tokens of a word alone, which are others after a space, at the start of a text, or
before a comma.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rankedit_recipes.language.errors import LanguageError
from rankedit_recipes.language.requests import Request

Tokenizer = Any


@dataclass(frozen=True)
class Text:
    """A text in tokens.

    Attributes:
        ids: the tokens, special ones included.
        subject: position of the last token that has a character of the subject.
        target: positions of the tokens of what follows the prompt.
    """

    ids: tuple[int, ...]
    subject: int
    target: tuple[int, ...] = ()

    def up_to_subject(self) -> Text:
        """The text without what follows the subject, which its token cannot see."""
        return Text(self.ids[: self.subject + 1], self.subject)


def tokenised(
    tokenizer: Tokenizer, requests: Sequence[tuple[Request, str]], *, targets: bool
) -> list[Text]:
    """Prompts of requests, each after a prefix, in tokens.

    Args:
        tokenizer: a fast tokenizer of transformers.
        requests: each with what stands before its prompt.
        targets: whether the target follows the prompt.

    Raises:
        LanguageError: the tokenizer gives no offsets, or leaves the subject or the target out.
    """
    texts, places = [], []
    for request, prefix in requests:
        # In characters of the whole text: a token may begin before the subject and end in it.
        start = len(prefix) + request.prompt.index("{}")
        # Spaces around a subject are no part of it.
        start += len(request.subject) - len(request.subject.lstrip())
        end = start + len(request.subject.strip())
        prompt = prefix + request.text
        texts.append(prompt + request.continuation if targets else prompt)
        places.append((start, end, len(prompt)))
    return [
        _text(ids, offsets, place, text, targets=targets)
        for (ids, offsets), place, text in zip(
            _encoded(tokenizer, texts), places, texts, strict=True
        )
    ]


def _encoded(
    tokenizer: Tokenizer, texts: Sequence[str]
) -> Iterable[tuple[list[int], list[tuple[int, int]]]]:
    if not getattr(tokenizer, "is_fast", False):
        raise LanguageError(
            "language: subject positions need the character offsets of a fast tokenizer, got "
            f"{type(tokenizer).__name__}; load it with AutoTokenizer.from_pretrained(...)."
        )
    # No truncation: an edit of a prompt that was cut would be one of another fact.
    encoded = tokenizer(list(texts), return_offsets_mapping=True)
    return zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)


def _text(
    ids: list[int],
    offsets: list[tuple[int, int]],
    place: tuple[int, int, int],
    text: str,
    *,
    targets: bool,
) -> Text:
    start, end, prompt = place
    # Special tokens have no characters, and hence an empty span.
    inside = [i for i, (a, b) in enumerate(offsets) if max(a, start) < min(b, end)]
    following = [i for i, (a, b) in enumerate(offsets) if a < b and b > prompt] if targets else []
    if not inside or (targets and not following):
        what = "subject" if not inside else "target"
        raise LanguageError(
            f"language: the tokenizer leaves the {what} out of {text!r:.200}, which has "
            f"{len(ids)} tokens; shorten the prompt, or raise tokenizer.model_max_length."
        )
    return Text(tuple(ids), inside[-1], tuple(following))


@dataclass(frozen=True)
class Batch:
    """Rows of tokens of one length, the shorter ones padded behind.

    Attributes:
        ids: `[rows, length]`.
        mask: `[rows, length]`, 1 for tokens and 0 for padding.
        subjects: `[rows]`, the position of each subject.
    """

    ids: Tensor
    mask: Tensor
    subjects: Tensor

    @classmethod
    def of(cls, texts: Sequence[Text], device: torch.device | str = "cpu") -> Batch:
        """The texts as rows; padding behind needs no padding token, for it is never looked at."""
        length = max(len(text.ids) for text in texts)
        # Behind: positions count from the left, and causal attention never looks right.
        ids = torch.zeros(len(texts), length, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, text in enumerate(texts):
            ids[row, : len(text.ids)] = torch.tensor(text.ids)
            mask[row, : len(text.ids)] = 1
        subjects = torch.tensor([text.subject for text in texts])
        return cls(ids.to(device), mask.to(device), subjects.to(device))

    def chosen(self, rows: Tensor) -> Batch:
        """Some of the rows."""
        return Batch(self.ids[rows], self.mask[rows], self.subjects[rows])

    def arguments(self) -> dict[str, Any]:
        """What a causal model of transformers takes."""
        # A cache would hold keys and values of every row, for one pass that nothing follows.
        return {"input_ids": self.ids, "attention_mask": self.mask, "use_cache": False}
