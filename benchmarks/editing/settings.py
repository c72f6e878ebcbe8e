"""Settings that differ from the methods' own, because the model is so small.

They were found on other requests than those of the study; docs/language.md says why.
"""

from __future__ import annotations

from typing import Any

SEARCH: dict[str, Any] = {
    "layers": 0,
    "anchor": "stream",
    "learning_rate": 0.2,
    "clamp": 2.0,
    "contexts": (5, 10),
    "steps": 30,
    "decay": 0.01,
    "stop_below": 0.05,
    "ridge": 0.01,
    "through": False,
}
"""The block, and the search for values: all methods share it."""

TUNED: dict[str, dict[str, Any]] = {
    "rome": SEARCH,
    "inconsistent": SEARCH,
    "emmet": SEARCH,
    "memit": {**SEARCH, "weight": 1.0},
    "alphaedit": {**SEARCH, "weight": 0.03},
}
"""By method."""
