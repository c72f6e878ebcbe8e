"""The one error of the kit."""

from __future__ import annotations

import rankedit as rk


class PipelineError(rk.RankeditError, ValueError):
    """A pipeline, prompt or word that recipes cannot work with; says what to do."""
