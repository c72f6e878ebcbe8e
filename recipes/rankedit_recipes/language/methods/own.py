"""Methods of one's own: a function that solves, with the settings of a method around it.

    language.edit(model, tokenizer, requests, method=function, statistics=statistics)
    language.edit(..., method=method_of(function, base="rome"))
    language.edit(..., method="package.module:function")

The function is that of `rankedit.testing.check_solver`: `(layer, keys, values, metric) -> LowRank`.
Everything else (blocks, contexts, the search for values, the metric) is as the base has it.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeAlias, cast

from torch import Tensor

import rankedit as rk
from rankedit_recipes.language.errors import LanguageError
from rankedit_recipes.language.methods import METHODS
from rankedit_recipes.language.settings import Settings

Solver: TypeAlias = Callable[[object, Tensor, Tensor, rk.Metric], rk.LowRank]
Method: TypeAlias = str | Settings | Solver

_WANTED = "a function (layer, keys, values, metric) -> rankedit.LowRank"


@dataclass(frozen=True, kw_only=True)
class Own(Settings):
    """Settings whose `solve` is a function; see `method_of`.

    Attributes:
        function: what solves.
    """

    function: Solver

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.softness:
            raise LanguageError(
                f"Settings: softness {self.softness} would be ignored, because {self.method!r} "
                "solves by a function of its own; leave it out, and let the function decide."
            )

    def solve(self, layer: object, keys: Tensor, values: Tensor, metric: rk.Metric) -> rk.LowRank:
        """What the function returns."""
        return self.function(layer, keys, values, metric)

    @property
    def solver(self) -> str:
        """Where the function is, as `module:name`."""
        return qualified(self.function)

    def to_dict(self) -> dict[str, Any]:
        """For JSON, without the function: files name no code."""
        values = super().to_dict()
        del values["function"]
        return values


def method_of(function: Solver, base: str | Settings = "memit") -> Settings:
    """A method that solves by a function, and is as another one in everything else.

    Args:
        function: `(layer, keys, values, metric) -> LowRank`, as `rankedit.testing.check_solver`
            takes it. Called with all facts of an edit or a stream together.
        base: the method, or settings, whose blocks, contexts, metric and search for values it takes
            over; but not the softness, for that is the function's to decide.

    Returns:
        Settings that `dataclasses.replace` changes as any others. Their name is the function's
        qualified name, `module:name`, which `rankedit language edit --method` takes.

    Raises:
        LanguageError: not a function of four arguments, or an unknown base.

    Example:
        >>> method_of(rk.solve_edit, "rome").method
        'rankedit.closed_form:solve_edit'
    """
    check_signature(function)
    shape = named(base) if isinstance(base, str) else base
    if shape.solver or not shape.consistent:
        raise LanguageError(
            f"method_of: the base {shape.method!r} has a solve of its own that would be lost; give "
            f"{', '.join(METHODS)}, or settings made of one of them."
        )
    # By name, for a subclass may have settings that its solve alone knows.
    taken = {field.name: getattr(shape, field.name) for field in fields(Settings)}
    return Own(**{**taken, "softness": 0.0, "method": qualified(function)}, function=function)


def named(name: str) -> Settings:
    """The settings of a published method.

    Raises:
        LanguageError: no method of this name.
    """
    if name not in METHODS:
        raise LanguageError(
            f"language: unknown method {name!r}; known are {', '.join(METHODS)}, or give {_WANTED} "
            "as package.module:function."
        )
    return METHODS[name]


def imported(reference: str) -> Settings | Solver:
    """What `package.module:name` names, looked for in the current folder last.

    Raises:
        LanguageError: the module cannot be imported, or has nothing of this name.
    """
    module, _, name = reference.partition(":")
    # The script `rankedit` is started with its own folder on the path, not with the current one,
    # where a method that is being written lies. Last, so that no file there hides a package.
    here = str(Path.cwd())
    sys.path.append(here)
    try:
        found: Any = importlib.import_module(module)
    except Exception as error:  # whatever a module of somebody else's raises as it is run
        raise LanguageError(
            f"language: the method {reference!r} cannot be imported: {type(error).__name__}: "
            f"{error}; give package.module:function, of an installed package or of a file "
            f"'{module or 'module'}.py' in this folder."
        ) from error
    finally:
        sys.path.remove(here)
    # With dots for what a class holds, as `__qualname__` writes it.
    for part in name.split("."):
        if not hasattr(found, part):
            # Not what the module has imported, which would come first.
            there = [n for n, v in vars(found).items() if callable(v) and _made_in(module, v)]
            raise LanguageError(
                f"language: the method {reference!r} cannot be found: '{module}' has no "
                f"{part!r}; it has {', '.join(there[:8]) or 'no function'}."
            )
        found = getattr(found, part)
    return cast("Settings | Solver", found)  # what it is, is looked at where it is used


def _made_in(module: str, value: object) -> bool:
    value = value.func if isinstance(value, functools.partial) else value
    return getattr(value, "__module__", None) == module


def check_signature(function: object) -> None:
    """Refuse what cannot be called as a solver.

    Raises:
        LanguageError: not callable, or not with four arguments.
    """
    if not callable(function):
        raise LanguageError(
            f"language: a method must be a name, settings, or {_WANTED}, got {function!r:.80}."
        )
    try:
        signature = inspect.signature(function)
    except ValueError:  # some functions of C have none
        return
    try:
        signature.bind("layer", "keys", "values", "metric")
    except TypeError as error:
        raise LanguageError(
            f"language: the method {qualified(function)} must be {_WANTED}, but it takes "
            f"{signature}: {error}; bind other arguments with functools.partial."
        ) from error


def qualified(function: object) -> str:
    """`module:name` of a function; with what a partial one has bound.

    Example:
        >>> qualified(functools.partial(rk.solve_edit, softness=1.0))
        'rankedit.closed_form:solve_edit(softness=1.0)'
    """
    if isinstance(function, functools.partial):
        bound = [*map(repr, function.args), *(f"{k}={v!r}" for k, v in function.keywords.items())]
        return f"{qualified(function.func)}({', '.join(bound)})"
    named = function if hasattr(function, "__qualname__") else type(function)
    # What a notebook or a test runs may be in no module.
    return f"{named.__module__ or '__main__'}:{named.__qualname__}"
