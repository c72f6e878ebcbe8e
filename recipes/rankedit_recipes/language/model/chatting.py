"""A chat template, as texts before and behind what each side says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rankedit_recipes.language.errors import LanguageError

# From a private area of Unicode: they stand for what is said, and no template has them itself.
_USER, _ASSISTANT = "\ue0f0", "\ue0f1"


@dataclass(frozen=True)
class Template:
    """What a tokenizer's chat template puts around one turn of the user.

    Attributes:
        before: the user's words, from the start of the text; special tokens are in it.
        after: them, up to where the assistant begins.
        lead: what the assistant's words begin with, such as Llama 2's space.
    """

    before: str
    after: str
    lead: str

    def around(self, words: str) -> str:
        """The text that the assistant goes on with."""
        return f"{self.before}{words}{self.after}"

    def answer(self, target: str) -> str:
        """The target as the assistant begins with it."""
        # Whitespace is there already, from the target's own or at the end of the template.
        given = target[:1].isspace() or self.after[-1:].isspace()
        return target if given else f"{self.lead}{target}"


def template_of(tokenizer: Any) -> Template:  # noqa: ANN401 - a tokenizer of transformers
    """The chat template of a tokenizer.

    Raises:
        LanguageError: it has none, or one that cannot be told apart from what is said.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise LanguageError(
            f"language: chat=True needs a tokenizer with a chat template, got a "
            f"{type(tokenizer).__name__} without one; leave chat out, or set its chat_template."
        )
    asked = _rendered(tokenizer, (_USER,), begun=True)
    parts = asked.split(_USER)
    if len(parts) != 2:
        raise LanguageError(
            f"language: the chat template must have the user's words once, has them "
            f"{len(parts) - 1} times; set another one as tokenizer.chat_template."
        )
    whole = _rendered(tokenizer, (_USER, _ASSISTANT), begun=False)
    lead, found, _ = whole.removeprefix(asked).partition(_ASSISTANT)
    # Templates of models that think aloud put more there, which a model writes by itself.
    plain = whole.startswith(asked) and found and not lead.strip()
    return Template(parts[0], parts[1], lead if plain else "")


def check_words(tokenizer: Any, template: Template, words: str) -> None:  # noqa: ANN401
    """Refuse what the template does not take as it is, such as spaces at its ends.

    Raises:
        LanguageError: says how it comes out.
    """
    asked = _rendered(tokenizer, (words,), begun=True)
    if asked != template.around(words):
        raise LanguageError(
            f"language: the chat template changes what the user says: {words!r:.200} becomes "
            f"{asked!r:.400}; take out spaces at its ends, and marks that the template knows."
        )


def _rendered(tokenizer: Any, said: tuple[str, ...], *, begun: bool) -> str:  # noqa: ANN401
    """A conversation as text; `begun` with the beginning of the assistant's turn."""
    roles = ("user", "assistant")
    turns = [{"role": role, "content": words} for role, words in zip(roles, said, strict=False)]
    try:
        return str(
            tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=begun)
        )
    except Exception as error:  # whatever a template raises, jinja's own errors among it
        raise LanguageError(
            f"language: the chat template fails on a turn of the user: {error}; set another one "
            "as tokenizer.chat_template."
        ) from error
