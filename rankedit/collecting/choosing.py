"""What `collect` was asked for: the right kind, and nothing left out without a word."""

from __future__ import annotations

import fnmatch
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from types import NoneType
from typing import Any, TypeAlias

from torch import nn

from rankedit.errors import RankeditWarning
from rankedit.models.experts import stack_of
from rankedit.models.projections import Projection
from rankedit.models.selecting import Pattern, clean_name, patterns_of, select
from rankedit.provenance import Provenance
from rankedit.shapes import check_kind

Which: TypeAlias = Pattern | Iterable[str] | Mapping[str, nn.Module | Projection]


_KINDS: dict[str, tuple[str, tuple[Any, ...]]] = {
    "model": ("torch.nn.Module", (nn.Module,)),
    "batches": ("iterable of batches", (Iterable,)),
    "call": ("function", (Callable, NoneType)),
    "mask": ("key of the batches or a function", (str, Callable, NoneType)),
    "provenance": ("Provenance", (Provenance, NoneType)),
    "shard": ("bool", (bool,)),
    "progress": ("bool", (bool,)),
}


def check_arguments(**given: object) -> None:
    """Refuse arguments of another kind, by name.

    Raises:
        ShapeError: the first that is.
    """
    for name, value in given.items():
        expected, kinds = _KINDS[name]
        check_kind("collect", name, value, *kinds, expected=expected)


def targets_of(model: nn.Module, which: Which) -> dict[str, nn.Module]:
    """The projections that were asked for, by name.

    Raises:
        ProjectionError: nothing matches, or a name is not a projection.
        ShapeError: a mapping has something else than modules and projections.

    Warns:
        RankeditWarning: weights of fused experts match too, for which no layer can stand.
    """
    if isinstance(which, Mapping) and which:
        for name, item in which.items():
            check_kind("collect", f"which[{name!r}]", item, nn.Module, Projection)
        return {n: m.module if isinstance(m, Projection) else m for n, m in which.items()}
    # Listed once: an iterator of names would be empty for whoever looks at them next.
    patterns = patterns_of("collect", "which", which)
    chosen = select(model, patterns)
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
        and stack_of(module) is None
        and not isinstance(module, nn.modules.conv._ConvNd)
    }
    left = [name for name in stacks for pattern in patterns if _matches(pattern, name)]
    if left:
        warnings.warn(
            f"collect: {left[0]!r} {list(stacks[left[0]])} and {len(left) - 1} others match too "
            "and are left out: each is one parameter with the matrices of many experts, quantised, "
            "offloaded or of a layout that is not known, so that what they read cannot be seen. "
            "Name what is meant to be without them.",
            RankeditWarning,
            stacklevel=4,
        )


def _matches(pattern: Pattern, name: str) -> bool:
    if isinstance(pattern, str):
        return fnmatch.fnmatchcase(name, pattern)
    return isinstance(pattern, re.Pattern) and pattern.fullmatch(name) is not None
