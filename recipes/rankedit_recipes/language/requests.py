"""What is to be edited: requests, and cases with what to evaluate them on."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

from rankedit_recipes.language.errors import LanguageError


@dataclass(frozen=True)
class Request:
    """One fact that the model is to hold afterwards.

    Attributes:
        prompt: a text that ends where the target begins, with exactly one `{}` for the subject.
        subject: what the fact is about; its last token is where the model is edited.
        target: what the model is to continue with.
        relation: what relates the two; with the subject it tells which requests contradict each
            other. The prompt if empty.
        name: how a stream of edits calls it; made of subject and relation if empty.
        space: whether a space comes before the target where the texts bring none; None for what
            `continued` says of the prompt. In a chat the template decides.
        chat: whether prompt and target are two turns of a chat: the prompt is what the user says,
            and the assistant begins with the target. None to leave it to who edits.

    Raises:
        LanguageError: no `{}` or several, an empty subject or target, or a value of another type.

    Example:
        >>> request = Request("{} plays the", "Miles Davis", "piano")
        >>> request.text, request.continuation
        ('Miles Davis plays the', ' piano')
    """

    prompt: str
    subject: str
    target: str
    relation: str = ""
    name: str = ""
    space: bool | None = None
    chat: bool | None = None

    def __post_init__(self) -> None:
        # Records of files come here as they are; a number as target would fail far away.
        for field in ("prompt", "subject", "target", "relation", "name"):
            if not isinstance(getattr(self, field), str):
                raise LanguageError(
                    f"Request: {field} must be a text, got {getattr(self, field)!r:.80}."
                )
        for field in ("space", "chat"):
            # By identity: 0 and 1 equal False and True, and would be other settings on disk.
            if not any(getattr(self, field) is choice for choice in (None, True, False)):
                raise LanguageError(
                    f"Request: {field} must be True, False or None, got "
                    f"{getattr(self, field)!r:.80}."
                )
        if self.prompt.count("{}") != 1:
            raise LanguageError(
                "Request: prompt must hold exactly one {} where the subject goes, got "
                f"{self.prompt!r:.200}."
            )
        for field in ("subject", "target"):
            if not getattr(self, field).strip():
                raise LanguageError(
                    f"Request: {field} must not be empty, in the request with the prompt "
                    f"{self.prompt!r:.200}."
                )

    @property
    def text(self) -> str:
        """The prompt with the subject in it."""
        # Not `format`, which would read braces in the subject and in the rest of the prompt.
        return self.prompt.replace("{}", self.subject)

    @property
    def continuation(self) -> str:
        """The target as it follows the prompt; see `continued`."""
        return continued(self.target, self.text, space=self.space)

    @property
    def key(self) -> tuple[str, str]:
        """Subject and relation: requests with the same ones contradict or repeat each other."""
        return (self.subject, self.relation or self.prompt)

    # Kept: a stream of many facts asks each of them at each change.
    @cached_property
    def label(self) -> str:
        """The name, or one made of subject and relation."""
        return self.name or " | ".join(self.key)

    def settled(self, *, space: bool | None = None, chat: bool | None = None) -> Request:
        """The request with what it leaves open: its own word comes first."""
        return replace(
            self,
            space=space if self.space is None else self.space,
            chat=chat if self.chat is None else self.chat,
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON: the texts, and of the rest what is not left open."""
        # What earlier versions did not know is not written where nobody asked for it.
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class Case:
    """A request, and texts that tell whether an edit did what it should and nothing else.

    Attributes:
        request: what to edit.
        true_target: what the model said before.
        paraphrases: other texts, complete, which the target is to follow too.
        inverted: the same, where what is asked for is told before the subject.
        neighbours: texts about other subjects, which the true target is to follow still.
        neighbour_answers: what is to follow each of them instead, where that is not the true
            target: empty, or one answer for each neighbour.
        attribute_prompts: texts about subjects of which the new target is true (CounterFact's
            `attribute_prompts`, the source of its reference texts).
        generation_prompts: texts for the model to go on with, to see whether it still writes.
        locality: unrelated texts, each with the answer that is to stay (zsRE).
        references: texts about things of which the new target is true, which what the model writes
            from `generation_prompts` is to be like.

    Raises:
        LanguageError: another number of neighbour_answers than of neighbours, or an empty one.
    """

    request: Request
    true_target: str = ""
    paraphrases: tuple[str, ...] = ()
    neighbours: tuple[str, ...] = ()
    attribute_prompts: tuple[str, ...] = ()
    generation_prompts: tuple[str, ...] = ()
    locality: tuple[tuple[str, str], ...] = ()
    inverted: tuple[str, ...] = ()
    references: tuple[str, ...] = ()
    neighbour_answers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        answers, neighbours = len(self.neighbour_answers), len(self.neighbours)
        # Pairs of unlike lists would be cut to the shorter one, and a neighbour not asked.
        if answers and answers != neighbours:
            raise LanguageError(
                "Case: neighbour_answers must be empty or have one answer for each of the "
                f"{neighbours} neighbours, got {answers}."
            )
        if not all(answer.strip() for answer in self.neighbour_answers):
            raise LanguageError("Case: no answer of neighbour_answers must be empty, got one.")

    @property
    def answered(self) -> tuple[tuple[str, str], ...]:
        """Each neighbour with what is to follow it; none where nobody told the true target."""
        if self.neighbour_answers:
            return tuple(zip(self.neighbours, self.neighbour_answers, strict=True))
        return tuple((text, self.true_target) for text in self.neighbours if self.true_target)


def continued(target: str, after: str = "", *, space: bool | None = None) -> str:
    """The target as it follows a text: after one space, unless there is whitespace already.

    Args:
        target: what follows.
        after: the text.
        space: whether there is to be a space; None for one, but behind letters and marks of a
            script that has none between words (Chinese, Japanese, Thai, Lao, Khmer, Burmese,
            Tibetan).

    Example:
        >>> continued("piano"), continued(" piano"), continued("piano", "plays the ")
        (' piano', ' piano', 'piano')
        >>> continued("巴黎", "法国的首都是"), continued("s", "it", space=False)
        ('巴黎', 's')
    """
    if target[:1].isspace() or after[-1:].isspace():
        return target
    # BPE words of GPT-2's kind have their space in front: without it the target is another token.
    wanted = not is_unspaced(after) if space is None else space
    return f" {target}" if wanted else target


def is_unspaced(text: str) -> bool:
    """Whether a text ends in a script that has no spaces between words."""
    if not text:
        return False
    name = unicodedata.name(text[-1], "")
    wide = unicodedata.east_asian_width(text[-1]) in "WF" and unicodedata.category(text[-1]) != "So"
    # Hangul is wide, too, and its words have spaces; so are pictures, which are in any text.
    return (wide or name.split(" ")[0] in _UNSPACED) and "HANGUL" not in name


# Not wide, and yet without spaces between words; as the names of their characters begin.
_UNSPACED = {"HALFWIDTH", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN"}
