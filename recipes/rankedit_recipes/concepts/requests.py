"""What is asked for: concepts that are to go, to become others, or to stay as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from rankedit_recipes.concepts.errors import ConceptsError

Kind = Literal["erase", "replace", "hold"]
About = Literal["thing", "attribute"]


@dataclass(frozen=True)
class Request:
    """One concept, and what is to become of it. `erase`, `replace` and `hold` make them.

    Attributes:
        kind: what is done.
        words: the concept's word or phrase, and synonyms.
        to: what it becomes: nothing if empty; of several words the one that is nearest.
        about: whether it is a thing or an attribute (a colour, a pattern), which stands before a
            noun; chooses the contexts.
        contexts: templates with one `{}`, in place of the method's own.
    """

    kind: Kind
    words: tuple[str, ...]
    to: tuple[str, ...] = ()
    about: About = "thing"
    contexts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind) or self.about not in get_args(About):
            raise ConceptsError(
                f"{self.kind}: about must be one of {', '.join(get_args(About))}, got "
                f"{self.about!r}."
            )
        wrong = [word for word in (*self.words, *self.to) if not (isinstance(word, str) and word)]
        spaced = [word for word in (*self.words, *self.to) if word not in wrong and _spaced(word)]
        if not self.words or wrong or spaced:
            raise ConceptsError(
                f"{self.kind}: words or phrases of the model's language are expected, such as "
                f"'cat', got {[*wrong, *spaced] or 'none'}."
            )
        if set(self.words) & set(self.to):
            raise ConceptsError(
                f"{self.kind}: {self.words[0]!r} cannot become itself; give another word."
            )
        for template in self.contexts:
            if template.count("{}") != 1:
                raise ConceptsError(
                    f"{self.kind}: a context has one {{}} where the word stands, such as 'a photo "
                    f"of a {{}}', got {template!r}."
                )

    @property
    def name(self) -> str:
        """Under which it is found in an edit: its first word."""
        return self.words[0]

    def __str__(self) -> str:
        goal = "" if self.kind == "hold" else f" to {' or '.join(self.to) or 'nothing'}"
        return f"{self.kind} {', '.join(self.words)}{goal}"

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Request:
        """What `to_dict` gave.

        Raises:
            ConceptsError: an unknown field, or one that is missing.
        """
        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        if unknown or not {"kind", "words"} <= set(values):
            raise ConceptsError(
                f"Request: expected kind, words, to, about and contexts, got {sorted(values)}."
            )
        taken: dict[str, Any] = {
            n: tuple(v) if isinstance(v, list) else v for n, v in values.items()
        }
        return cls(**taken)


def erase(
    *words: str,
    to: str | Sequence[str] = (),
    about: About = "thing",
    contexts: Sequence[str] = (),
) -> Request:
    """Take a concept out of what the model makes.

    Args:
        words: its word or phrase, and synonyms, all of which go.
        to: what is made instead: by default nothing; a word; or several, of which the nearest one
            by its encoding is taken (a neighbour).
        about: `"thing"` or `"attribute"`.
        contexts: see `Request`.

    Example:
        >>> str(erase("cat", "kitten", to="dog"))
        'erase cat, kitten to dog'
    """
    return Request("erase", words, _words(to), about, tuple(contexts))


def replace(
    word: str | Sequence[str], by: str, *, about: About = "thing", contexts: Sequence[str] = ()
) -> Request:
    """Let a word mean another one.

    Example:
        >>> str(replace("blue", "red", about="attribute"))
        'replace blue to red'
    """
    if not by:
        raise ConceptsError("replace: by must be a word; to take a concept out use erase(...).")
    return Request("replace", _words(word), (by,), about, tuple(contexts))


def hold(*words: str, about: About = "thing", contexts: Sequence[str] = ()) -> Request:
    """Keep concepts as they are, whatever becomes of others.

    Example:
        >>> hold("dog", "tree").words
        ('dog', 'tree')
    """
    return Request("hold", words, (), about, tuple(contexts))


def check_requests(requests: Sequence[Request]) -> None:
    """Refuse requests that contradict each other.

    Raises:
        ConceptsError: nothing to change, a word in two requests, or one that becomes an erased one.
    """
    foreign = [request for request in requests if not isinstance(request, Request)]
    if foreign:
        raise ConceptsError(
            f"edit: requests come from erase, replace or hold, got {foreign[0]!r:.80}."
        )
    if all(request.kind == "hold" for request in requests):
        raise ConceptsError("edit: nothing is to change; give at least one erase or replace.")
    seen: dict[str, Request] = {}
    for request in requests:
        for word in request.words:
            if word in seen:
                raise ConceptsError(
                    f"edit: {word!r} is in two requests ({seen[word]}; {request}), and one would "
                    "undo the other; leave one out."
                )
            seen[word] = request
    _check_goals(requests, {word for word, r in seen.items() if r.kind == "erase"})


def _check_goals(requests: Sequence[Request], gone: set[str]) -> None:
    for request in requests:
        for word in request.to:
            if word in gone:
                raise ConceptsError(
                    f"edit: {request.name!r} is to become {word!r}, which is to be erased; choose "
                    "another word."
                )


def _words(given: str | Sequence[str]) -> tuple[str, ...]:
    return (given,) * bool(given) if isinstance(given, str) else tuple(given)


def _spaced(word: str) -> bool:
    return word != " ".join(word.split())
