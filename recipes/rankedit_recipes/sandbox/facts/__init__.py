"""The world of facts: texts, a small language model that knows them, and cases to edit it with.

Nothing is downloaded, and nothing heavy is imported before it is used.

Example:
    >>> from rankedit_recipes.sandbox import facts
    >>> case = facts.cases(1)[0]
    >>> sorted(case["requested_rewrite"])
    ['prompt', 'relation_id', 'subject', 'target_new', 'target_true']
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .counterfact import cases as cases
    from .knowledge import Fact as Fact
    from .knowledge import World as World
    from .knowledge import world as world
    from .loading import load_model as load_model
    from .loading import load_tokenizer as load_tokenizer
    from .writing import corpus as corpus

# Nothing is imported before it is used: docs/decisions/imports-on-demand.md.
_HOMES = {
    "Fact": ".knowledge",
    "World": ".knowledge",
    "cases": ".counterfact",
    "corpus": ".writing",
    "load_model": ".loading",
    "load_tokenizer": ".loading",
    "world": ".knowledge",
}

__all__ = ["Fact", "World", "cases", "corpus", "load_model", "load_tokenizer", "world"]


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
