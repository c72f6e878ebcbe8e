"""The one error of this recipe."""

from __future__ import annotations

import rankedit as rk


class PerfusionError(rk.RankeditError, ValueError):
    """A pipeline, photo, word or concept that this recipe cannot work with; says what to do."""
