"""Methods of one's own in the study: their settings, and what their rows depend on."""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rankedit_recipes.language import Settings
from rankedit_recipes.language.editing import settings_of
from rankedit_recipes.language.methods.own import Own


def own_settings(reference: str, tuned: Mapping[str, Any]) -> Settings:
    """The settings of `package.module:name` as it is studied.

    Args:
        reference: a function that solves, or settings.
        tuned: settings of the search that all methods of the study share; of a function's. Settings
            that somebody made are taken as they are.
    """
    settings = settings_of(reference)
    if not isinstance(settings, Own):
        return settings
    return replace(settings, **{n: v for n, v in tuned.items() if n != "layers"})


def described(settings: Settings) -> dict[str, Any]:
    """What a row depends on: settings, and for a method of one's own its module's text too.

    Functions that the solve calls may be anywhere in the module: all of its text counts.
    """
    values = settings.to_dict()
    if not settings.solver:
        return values
    module = sys.modules[settings.solver.partition(":")[0]]
    text = inspect.getsource(module)
    return {**values, "solver": settings.solver, "text": hashlib.sha256(text.encode()).hexdigest()}
