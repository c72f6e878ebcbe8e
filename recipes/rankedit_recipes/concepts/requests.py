"""What is asked for: concepts that are to go, to become others, or to stay as they are.

Or to show attributes in given shares, whose amounts are measured (`debiasing`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from rankedit_recipes.concepts.errors import ConceptsError

Kind = Literal["erase", "replace", "hold", "balance"]
About = Literal["thing", "attribute"]
_WHOLE = 1 + 1e-3


@dataclass(frozen=True)
class Request:
    """One concept, and what is to become of it. `erase`, `replace`, `hold`, `balance` make them.

    Attributes:
        kind: what is done.
        words: the concept's word or phrase, and synonyms.
        to: what it becomes: nothing if empty (`Settings.neighbours` says what that means); of
            several words the one that is nearest. Of what is to be balanced its attributes.
        about: whether it is a thing or an attribute (a colour, a pattern), which stands before a
            noun; chooses the contexts.
        contexts: templates with one `{}`, in place of the method's own.
        shares: of what is to be balanced: of pictures that are to show each attribute.
        amounts: how far it is moved along each attribute's direction; empty before `debias`.
        measured: shares that `debias` found in the end, of pictures that it did not steer by.
    """

    kind: Kind
    words: tuple[str, ...]
    to: tuple[str, ...] = ()
    about: About = "thing"
    contexts: tuple[str, ...] = ()
    shares: tuple[float, ...] = ()
    amounts: tuple[float, ...] = ()
    measured: tuple[float, ...] = ()

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
        if self.kind == "balance":
            _check_shares(self)

    @property
    def name(self) -> str:
        """Under which it is found in an edit: its first word."""
        return self.words[0]

    def __str__(self) -> str:
        if self.kind == "balance":
            return f"balance {', '.join(self.words)} to {_told(self)}"
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
                f"Request: expected {', '.join(f.name for f in fields(cls))}, got {sorted(values)}."
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


def balance(
    word: str | Sequence[str],
    shares: Mapping[str, float],
    *,
    amounts: Sequence[float] = (),
    contexts: Sequence[str] = (),
) -> Request:
    """Let pictures of a concept show attributes in given shares; see `debias`, which measures.

    Args:
        word: the concept's word or phrase, and synonyms.
        shares: by attribute, a word that can stand before the concept's, the share of all pictures
            that are to show it; what is left of 1 is free.
        amounts: how far the concept is moved along each attribute's direction, as `debias` found
            it; without them `debias` begins at 0.
        contexts: see `Request`.

    Example:
        >>> str(balance("car", {"red": 0.5, "blue": 0.5}))
        'balance car to red 50%, blue 50%'
    """
    return Request(
        "balance", _words(word), tuple(shares), "thing", tuple(contexts),
        tuple(shares.values()), tuple(amounts),
    )  # fmt: skip


def check_requests(requests: Sequence[Request]) -> None:
    """Refuse requests that contradict each other.

    Raises:
        ConceptsError: nothing to change, a word in two requests, or one that becomes an erased one.
    """
    foreign = [request for request in requests if not isinstance(request, Request)]
    if foreign:
        raise ConceptsError(
            f"edit: requests come from erase, replace, hold or balance, got {foreign[0]!r:.80}."
        )
    if all(request.kind == "hold" for request in requests):
        raise ConceptsError(
            "edit: nothing is to change; give at least one erase, replace or balance."
        )
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


def _check_shares(request: Request) -> None:
    shares = request.shares
    numbers = all(isinstance(s, int | float) and 0 <= s <= 1 for s in shares)
    # A little more than 1: thirds that were typed.
    if not request.to or len(shares) != len(request.to) or not numbers or sum(shares) > _WHOLE:
        raise ConceptsError(
            "balance: shares of attributes are expected, each from 0 to 1 and together at most 1, "
            f"such as {{'red': 0.5, 'blue': 0.5}}, got {shares} for {request.to}."
        )
    for name in ("amounts", "measured"):
        if len(getattr(request, name)) not in (0, len(shares)):
            raise ConceptsError(
                f"balance: {name} must be as many as the {len(shares)} attributes, got "
                f"{len(getattr(request, name))}."
            )


def _told(request: Request) -> str:
    asked = [f"{a} {s:.0%}" for a, s in zip(request.to, request.shares, strict=True)]
    if request.measured:
        asked = [f"{a} (measured {m:.0%})" for a, m in zip(asked, request.measured, strict=True)]
    return ", ".join(asked)


def _words(given: str | Sequence[str]) -> tuple[str, ...]:
    return (given,) * bool(given) if isinstance(given, str) else tuple(given)


def _spaced(word: str) -> bool:
    return word != " ".join(word.split())
