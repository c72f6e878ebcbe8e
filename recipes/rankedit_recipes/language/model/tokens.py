"""Texts as tokens, with where the subject ends and where the target stands in them.

Positions come from the character offsets that a fast tokenizer gives for each token. Nothing is
guessed from the tokens of a word alone, which are others after a space, at the start of a text, or
before a comma.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rankedit_recipes.language.errors import LanguageError
from rankedit_recipes.language.model.chatting import Template, check_words, template_of
from rankedit_recipes.language.requests import Request

Tokenizer = Any


@dataclass(frozen=True)
class Text:
    """A text in tokens.

    Attributes:
        ids: the tokens, with the special ones that the tokenizer puts before a text.
        subject: position of the last token that has a character of the subject.
        target: positions of the tokens of what follows the prompt.
        named: positions of all tokens that have a character of the subject.
    """

    ids: tuple[int, ...]
    subject: int
    target: tuple[int, ...] = ()
    named: tuple[int, ...] = field(default=(), compare=False)

    def up_to_subject(self) -> Text:
        """The text without what follows the subject, which its token cannot see."""
        return Text(self.ids[: self.subject + 1], self.subject)


class Place(NamedTuple):
    """A request's text, with where in its characters the subject begins and ends, and the prompt.

    The tokens are those of the whole text; `chat` tells that it has its special tokens in it.
    """

    text: str
    start: int
    end: int
    prompt: int
    chat: bool


class Encoded(NamedTuple):
    """Tokens of a text, and the characters that each is of."""

    ids: list[int]
    spans: list[tuple[int, int]]


def tokenised(
    tokenizer: Tokenizer, requests: Sequence[tuple[Request, str]], *, targets: bool
) -> list[Text]:
    """Prompts of requests, each after a prefix, in tokens.

    Args:
        tokenizer: a fast tokenizer of transformers.
        requests: each with what stands before its prompt. Where one asks for a chat, both are what
            the user says.
        targets: whether the target follows the prompt.

    Raises:
        LanguageError: the tokenizer gives no offsets, leaves the subject or the target out, or has
            one token for the end of the prompt and the beginning of the target; or there is no
            chat template.
    """
    template = template_of(tokenizer) if any(r.chat for r, _ in requests) else None
    places = [
        _place(tokenizer, request, prefix, template if request.chat else None, targets=targets)
        for request, prefix in requests
    ]
    # Marks of the template are in its text: the tokenizer must not add them once more.
    found = encoded(tokenizer, [p.text for p in places], special=[not p.chat for p in places])
    return [
        _text(tokenizer, each, place, targets=targets)
        for each, place in zip(found, places, strict=True)
    ]


def _place(
    tokenizer: Tokenizer, request: Request, prefix: str, template: Template | None, *, targets: bool
) -> Place:
    # In characters of the whole text: a token may begin before the subject and end in it.
    start = len(prefix) + request.prompt.index("{}")
    # Spaces around a subject are no part of it.
    start += len(request.subject) - len(request.subject.lstrip())
    text = _joined(tokenizer, prefix, request.text)
    follows = request.continuation
    if template is not None:
        check_words(tokenizer, template, text)
        start, text = start + len(template.before), template.around(text)
        follows = template.answer(request.target)
    end = start + len(request.subject.strip())
    return Place(text + follows * targets, start, end, len(text), template is not None)


def _joined(tokenizer: Tokenizer, prefix: str, prompt: str) -> str:
    """The prompt behind the prefix; a mark of the beginning that is written out stays in front."""
    mark = getattr(tokenizer, "bos_token", None) or ""
    own = mark if mark and prompt.startswith(mark) else ""
    return f"{own}{prefix}{prompt[len(own) :]}"


def encoded(
    tokenizer: Tokenizer, texts: Sequence[str], *, special: bool | Sequence[bool] = True
) -> list[Encoded]:
    """Tokens of texts as a model that goes on with them reads them.

    Tokens that a tokenizer puts behind a text (T5's end, `add_eos_token`) are left out, for the
    text goes on; a mark of the beginning that it adds before one that is written out stands once.

    Args:
        tokenizer: a fast tokenizer of transformers.
        texts: the texts.
        special: whether the tokenizer adds its special tokens, to all or to each.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise LanguageError(
            "language: subject positions need the character offsets of a fast tokenizer, got "
            f"{type(tokenizer).__name__}; load it with AutoTokenizer.from_pretrained(...)."
        )
    adds = [special] * len(texts) if isinstance(special, bool) else list(special)
    found: dict[int, Encoded] = {}
    for choice in sorted(set(adds)):
        rows = [i for i, add in enumerate(adds) if add is choice]
        # No truncation: an edit of a prompt that was cut would be one of another fact.
        got = tokenizer(
            [texts[i] for i in rows],
            add_special_tokens=choice,
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
        )
        columns = (got["input_ids"], got["offset_mapping"], got["special_tokens_mask"])
        found |= {i: _kept(tokenizer, *each) for i, *each in zip(rows, *columns, strict=True)}
    return [found[i] for i in range(len(texts))]


def _kept(
    tokenizer: Tokenizer,
    ids: Sequence[int],
    spans: Sequence[tuple[int, int]],
    special: Sequence[int],
) -> Encoded:
    # Tokens that were written out are of some characters; those that were added are of none.
    added = [bool(flag) and a >= b for flag, (a, b) in zip(special, spans, strict=True)]
    end = len(ids)
    while end > 1 and added[end - 1]:
        end -= 1
    mark = getattr(tokenizer, "bos_token_id", None)
    twice = end > 1 and added[0] and not added[1] and ids[0] == ids[1] == mark
    start = 1 if twice and mark is not None else 0
    return Encoded(list(ids[start:end]), [(a, b) for a, b in spans[start:end]])


def _text(tokenizer: Tokenizer, found: Encoded, place: Place, *, targets: bool) -> Text:
    # Special tokens have no characters, and hence an empty span.
    inside = [i for i, (a, b) in enumerate(found.spans) if max(a, place.start) < min(b, place.end)]
    behind = [i for i, (a, b) in enumerate(found.spans) if a < b and b > place.prompt]
    following = behind if targets else []
    if not inside or (targets and not following):
        what = "subject" if not inside else "target"
        raise LanguageError(
            f"language: the tokenizer leaves the {what} out of {place.text!r:.200}, which has "
            f"{len(found.ids)} tokens; shorten the prompt, or raise tokenizer.model_max_length."
        )
    if targets:
        _check_border(tokenizer, found, place, following[0])
    return Text(tuple(found.ids), inside[-1], tuple(following), tuple(inside))


def _check_border(tokenizer: Tokenizer, found: Encoded, place: Place, first: int) -> None:
    """Refuse a token of both prompt and target, which a model that reads the prompt cannot give."""
    shared = place.text[found.spans[first][0] : place.prompt]
    # Words of GPT-2's kind have their space in front, which may be the prompt's last character.
    if shared.strip():
        token = tokenizer.convert_ids_to_tokens([found.ids[first]])[0]
        raise LanguageError(
            f"language: the tokenizer writes the end of the prompt, {shared!r}, and the beginning "
            f"of the target as one token, {token!r}, in {place.text!r:.200}: a model that has read "
            f"the prompt goes on with another one; end the prompt before {shared!r} and begin the "
            "target with it, or put something between subject and target."
        )


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


def targets_of(texts: Sequence[Text]) -> tuple[Tensor, Tensor]:
    """Places `[rows, k]` whose next token counts, and which it is; -1 for none.

    A text without a target is one whose prediction behind the subject matters. Where there is
    none, the place is the row's first one again.
    """
    longest = max(1, *(len(text.target) for text in texts))
    places = torch.zeros(len(texts), longest, dtype=torch.long)
    labels = torch.full_like(places, -1)
    for row, text in enumerate(texts):
        if not text.target:
            places[row] = text.subject
            continue
        where = torch.tensor(text.target)
        # A token is predicted at the one before it.
        places[row] = where[0] - 1
        places[row, : len(where)] = where - 1
        labels[row, : len(where)] = torch.tensor(text.ids)[where]
    return places, labels
