"""The one error of this recipe."""

from __future__ import annotations

import rankedit as rk


class PerfusionError(rk.RankeditError, ValueError):
    """A photo, setting or concept that Perfusion cannot work with; says what to do."""
