"""Settings that are given one by one on a command line, each as `name=value`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import rankedit as rk


def parsed_pairs(pairs: Sequence[str], call: str, error: type[rk.RankeditError]) -> dict[str, Any]:
    """Values by name: what JSON makes of a text, or the text itself. Later ones win.

    Args:
        pairs: texts such as `"steps=40"`, `"lock=global"` or `"contexts=[3, 4]"`.
        call: the call or command, for the message.
        error: what to raise.

    Raises:
        RankeditError: of the class given: a text without `=`.
    """
    values: dict[str, Any] = {}
    for pair in pairs:
        # At the first sign only: a value may have further ones.
        name, found, text = pair.partition("=")
        if not found:
            raise error(f"{call}: --set takes name=value, got {pair!r}; for example steps=40.")
        try:
            values[name.strip()] = json.loads(text)
        except json.JSONDecodeError:
            # Words need no quotes of their own, which a shell would take away.
            values[name.strip()] = text.strip()
    return values
