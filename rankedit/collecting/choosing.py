"""What `collect` was asked for: the right kind, and nothing left out without a word."""

from __future__ import annotations

import fnmatch
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

from torch import Tensor, nn

from rankedit.errors import RankeditWarning, ShapeError
from rankedit.models.projections import Projection
from rankedit.models.selecting import Pattern, clean_name, select
from rankedit.provenance import Provenance
from rankedit.shapes import check_kind

Which: TypeAlias = Pattern | Iterable[str] | Mapping[str, nn.Module | Projection]


def check_arguments(**given: object) -> None:
    """Refuse arguments of another kind, by name.

    Raises:
        ShapeError: the first that is.
    """
    kinds: dict[str, tuple[str, tuple[Any, ...], bool]] = {
        "model": ("torch.nn.Module", (nn.Module,), False),
        "which": ("pattern, names or a mapping", (str, re.Pattern, Callable, Iterable), False),
        "shard": ("bool", (bool,), False),
        "progress": ("bool", (bool,), False),
        "batches": ("iterable of batches", (Iterable,), False),
        "call": ("function", (Callable,), True),
        "mask": ("key of the batches or a function", (str, Callable), True),
        "provenance": ("Provenance", (Provenance,), True),
    }
    for name, (expected, types, optional) in kinds.items():
        value = given[name]
        # These can be looped over, or say that they can, but hold no batches and no names.
        odd = isinstance(value, Tensor) and (name == "which" or value.ndim == 0)
        kinds_of = () if odd or (name == "batches" and isinstance(value, str)) else types
        check_kind("collect", name, value, *kinds_of, expected=expected, optional=optional)


def targets_of(model: nn.Module, which: Which) -> dict[str, nn.Module]:
    """The projections that were asked for, by name.

    Raises:
        ProjectionError: nothing matches, or a name is not a projection.
        ShapeError: a mapping has something else than modules and projections.

    Warns:
        RankeditWarning: weights of fused experts match too, which cannot be watched.
    """
    if isinstance(which, Mapping):
        for name, item in which.items():
            check_kind("collect", f"which[{name!r}]", item, nn.Module, Projection)
        return {n: m.module if isinstance(m, Projection) else m for n, m in which.items()}
    single = isinstance(which, (str, re.Pattern)) or callable(which)
    several: Any = which
    patterns: list[Any] = [which] if single else list(several)
    if not patterns:
        raise ShapeError("collect: which must name at least one projection, got none.")
    for pattern in patterns:
        check_kind("collect", "which", pattern, str, re.Pattern, Callable, expected="pattern")
    chosen = select(model, patterns[0] if single else patterns)
    _warn_of_experts(model, patterns)
    return chosen


def _warn_of_experts(model: nn.Module, patterns: Iterable[Pattern]) -> None:
    """A pattern that matches some experts and a stack of others would look as if it had all."""
    stacks = {
        clean_name(f"{prefix}.{name}".strip(".")): tuple(tensor.shape)
        for prefix, module in model.named_modules()
        for name, tensor in module.named_parameters(recurse=False)
        # Kernels of convolutions and tables with one row for all examples are no stacks.
        if tensor.ndim == 3
        and tensor.shape[0] > 1
        and not isinstance(module, nn.modules.conv._ConvNd)
    }
    left = [name for name in stacks for pattern in patterns if _matches(pattern, name)]
    if left:
        warnings.warn(
            f"collect: {left[0]!r} {list(stacks[left[0]])} and {len(left) - 1} others match too "
            "and are left out: each is one parameter with the matrices of many experts, of which "
            "no module is called, so that what they read cannot be seen. Name what is meant to be "
            "without them.",
            RankeditWarning,
            stacklevel=4,
        )


def _matches(pattern: Pattern, name: str) -> bool:
    if isinstance(pattern, str):
        return fnmatch.fnmatchcase(name, pattern)
    return isinstance(pattern, re.Pattern) and pattern.fullmatch(name) is not None


def never_called(names: list[str], when: str) -> str:
    """What to say of projections that were not called."""
    shown = ", ".join(repr(name) for name in names[:5]) + (", ..." if len(names) > 5 else "")
    return (
        f"collect: {len(names)} projections were not called {when}: {shown}. They are fused into "
        "another layer, used without being called, or not reached by call(batch); select what is "
        "called (rankedit.probe lists it)."
    )
