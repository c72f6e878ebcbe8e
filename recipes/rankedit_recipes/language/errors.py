"""The one error of this recipe."""

from __future__ import annotations

import rankedit as rk


class LanguageError(rk.RankeditError, ValueError):
    """A request, model, tokenizer or setting that this recipe cannot work with; says what to do."""
