"""The one error of this recipe."""

from __future__ import annotations

import rankedit as rk


class ConceptsError(rk.RankeditError, ValueError):
    """A request, setting or edit of concepts that cannot be worked with; says what to do."""
