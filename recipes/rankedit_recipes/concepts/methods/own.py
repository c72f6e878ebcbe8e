"""Methods of one's own: a function that solves, with the settings of a method around it.

    concepts.edit(pipe, requests, method=function)
    concepts.edit(pipe, requests, method=method_of(function, base="covariance"))

The function is that of `rankedit.testing.check_solver`: `(layer, keys, values, metric) -> LowRank`.
Its layer is the identity of encodings, and what it returns the map that all projections share.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

from torch import Tensor

import rankedit as rk
from rankedit_recipes.concepts.errors import ConceptsError
from rankedit_recipes.concepts.methods import METHODS
from rankedit_recipes.concepts.settings import Settings

Solver: TypeAlias = Callable[[object, Tensor, Tensor, rk.Metric], rk.LowRank]
Method: TypeAlias = str | Settings | Solver


@dataclass(frozen=True, kw_only=True)
class Own(Settings):
    """Settings whose `solve` is a function; see `method_of`.

    Attributes:
        function: what solves.
    """

    function: Solver

    @property
    def reducible(self) -> bool:
        """No: what the function makes of single keys is its own to decide."""
        return False

    def solve(
        self,
        layer: object,
        keys: Tensor,
        values: Tensor,
        metric: rk.Metric,
        *,
        softness: float | Tensor | None = None,
        held: Tensor | None = None,
    ) -> rk.LowRank:
        """What the function returns; softness is its own to decide."""
        return self.function(layer, keys, values, metric)

    def to_dict(self) -> dict[str, Any]:
        """For JSON, without the function: files name no code."""
        return {f.name: getattr(self, f.name) for f in fields(Settings)}


def method_of(function: Solver, base: str | Settings = "uce") -> Settings:
    """A method that solves by a function, and is as another one in everything else.

    Args:
        function: `(layer, keys, values, metric) -> LowRank`.
        base: the method, or settings, whose keys, contexts and metric it takes over.

    Raises:
        ConceptsError: not a function of four arguments, or a base that holds concepts exactly,
            which the function could not be told.
    """
    try:
        inspect.signature(function).bind("layer", "keys", "values", "metric")
    except (TypeError, ValueError) as error:
        raise ConceptsError(
            "concepts: a method is a name, settings, or a function (layer, keys, values, metric) "
            f"-> rankedit.LowRank, got {function!r:.80} ({error})."
        ) from error
    shape = named(base) if isinstance(base, str) else base
    if shape.keep == "hard" or shape.anchored:
        raise ConceptsError(
            f"method_of: the base {shape.method!r} holds keys exactly, of which a function is not "
            "told; give 'uce' or 'time', or settings with keep='soft' and anchored=False."
        )
    taken = {field.name: getattr(shape, field.name) for field in fields(Settings)}
    module = getattr(function, "__module__", "__main__")
    name = f"{module}:{getattr(function, '__qualname__', type(function).__name__)}"
    return Own(**{**taken, "balanced": False, "method": name}, function=function)


def named(name: str) -> Settings:
    """The settings of a method by its name.

    Raises:
        ConceptsError: no method of this name.
    """
    if name not in METHODS:
        raise ConceptsError(
            f"concepts: unknown method {name!r}; known are {', '.join(METHODS)}, or give a "
            "function (layer, keys, values, metric) -> rankedit.LowRank."
        )
    return METHODS[name]


def settings_of(method: Method) -> Settings:
    """The settings that were asked for, by name, as they are, or around a function."""
    if isinstance(method, Settings):
        return method
    return named(method) if isinstance(method, str) else method_of(method)
