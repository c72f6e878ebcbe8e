"""What a command refuses by itself."""

from __future__ import annotations

import rankedit as rk


class CommandError(rk.RankeditError, ValueError):
    """Something that was typed cannot be done; says what to type instead."""
