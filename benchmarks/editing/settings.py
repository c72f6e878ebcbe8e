"""Settings that differ from the methods' own, because the model is so small.

They were found on other requests than those of the study; docs/language.md says why. ENCORE's stop
is its own, so that its values are searched for apart.
"""

from __future__ import annotations

from typing import Any

from rankedit_recipes.language.model.layers import TRACED

SEARCH: dict[str, Any] = {
    "layers": TRACED,
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
"""All methods share the block, where a causal trace finds facts, and the search for values."""

TUNED: dict[str, dict[str, Any]] = {
    "rome": SEARCH,
    "inconsistent": SEARCH,
    "emmet": SEARCH,
    "memit": {**SEARCH, "weight": 0.3},
    "encore": {**SEARCH, "weight": 0.3},
    "alphaedit": {**SEARCH, "weight": 0.03, "energy": 0.05},
}
"""By method."""
