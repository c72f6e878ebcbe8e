"""What is to be edited: requests, and cases with what to evaluate them on."""

from __future__ import annotations

from dataclasses import dataclass

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

    Raises:
        LanguageError: no `{}` or several, or an empty subject or target.

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

    def __post_init__(self) -> None:
        # Records of files come here as they are; a number as target would fail far away.
        for field in ("prompt", "subject", "target", "relation", "name"):
            if not isinstance(getattr(self, field), str):
                raise LanguageError(
                    f"Request: {field} must be a text, got {getattr(self, field)!r:.80}."
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
        return continued(self.target)

    @property
    def key(self) -> tuple[str, str]:
        """Subject and relation: requests with the same ones contradict or repeat each other."""
        return (self.subject, self.relation or self.prompt)

    @property
    def label(self) -> str:
        """The name, or one made of subject and relation."""
        return self.name or " | ".join(self.key)


@dataclass(frozen=True)
class Case:
    """A request, and texts that tell whether an edit did what it should and nothing else.

    Attributes:
        request: what to edit.
        true_target: what the model said before.
        paraphrases: other texts, complete, which the target is to follow too.
        inverted: the same, where what is asked for is told before the subject.
        neighbours: texts about other subjects, which the true target is to follow still.
        attribute_prompts: texts about subjects of which the new target is true (CounterFact's
            `attribute_prompts`, the source of its reference texts).
        generation_prompts: texts for the model to go on with, to see whether it still writes.
        locality: unrelated texts, each with the answer that is to stay (zsRE).
        references: texts about things of which the new target is true, which what the model writes
            from `generation_prompts` is to be like.
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


def continued(target: str) -> str:
    """The target as it follows a prompt: after a space, unless it begins with one or a line.

    Example:
        >>> continued("piano"), continued(" piano")
        (' piano', ' piano')
    """
    # BPE words of GPT-2's kind have their space in front: without it the target is another token.
    return target if target[:1].isspace() else f" {target}"
