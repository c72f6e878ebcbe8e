"""How prompts speak of a concept: by a word in place of its category's, or by one before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rankedit_recipes.diffusion.text import Texts
from rankedit_recipes.diffusion.words import check_known, check_trigger


@dataclass(frozen=True)
class Naming:
    """The words of a concept.

    Attributes:
        trigger: the new word.
        category: what kind of thing it is.
        adjective: empty, or the word whose place before the category the new word takes.

    Example:
        >>> Naming("<bean>", "cat").phrase, Naming("<bean>", "cat", "new").phrase
        ('<bean>', '<bean> cat')
        >>> Naming("<bean>", "cat", "new").slots(["a photo of a {}"])
        ['a photo of a {} cat']
    """

    trigger: str
    category: str
    adjective: str = ""

    @property
    def phrase(self) -> str:
        """What prompts say."""
        return f"{self.trigger} {self.category}" if self.adjective else self.trigger

    @property
    def origin(self) -> str:
        """The word whose place the new one takes: learning starts there, keys stay there."""
        # docs/decisions/coarse-key-lock.md says why an adjective may be better.
        return self.adjective or self.category

    def slots(self, templates: Sequence[str]) -> list[str]:
        """Templates for the phrase as templates for the new word alone."""
        after = f" {self.category}" if self.adjective else ""
        return [template.replace("{}", f"{{}}{after}") for template in templates]


def check_naming(texts: Texts, naming: Naming, vectors: int = 1) -> None:
    """Refuse words that nothing can be learned with.

    Args:
        texts: of the pipeline.
        naming: the words.
        vectors: how many the trigger has.

    Raises:
        PipelineError: the trigger is no new word, or the category or the adjective no known one.
    """
    check_trigger(texts, naming.trigger, vectors)
    check_known(texts, naming.category)
    if naming.adjective:
        check_known(texts, naming.adjective, "adjective")
