"""Facts in causal language models, edited in closed form: ROME, r-ROME, MEMIT, EMMET, AlphaEdit.

One engine on `rankedit`'s one solver; the methods are settings of it.
"""

from rankedit_recipes.language.errors import LanguageError
from rankedit_recipes.language.requests import (
    Case,
    Request,
    case_of,
    continued,
    read_cases,
    read_requests,
)

__all__ = [
    "Case",
    "LanguageError",
    "Request",
    "case_of",
    "continued",
    "read_cases",
    "read_requests",
]
