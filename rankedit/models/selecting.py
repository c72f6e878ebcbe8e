"""Find projections in a model by name, by parent or by predicate, and say what was not found."""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeAlias

from torch import Tensor, nn

from rankedit.errors import ProjectionError, ShapeError
from rankedit.models.experts import Expert, experts_of
from rankedit.models.geometry import geometry, innermost, is_projection
from rankedit.shapes import check_kind

Predicate: TypeAlias = Callable[[str, nn.Module], bool]
Pattern: TypeAlias = str | re.Pattern[str] | Predicate

# The number of a block: a wrong name is compared with one of each kind of layer, not with all.
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)|^\d+(?=\.)")
# Path components that wrappers of whole modules add (compilation, checkpointing, sharding): the
# names of the model that the user wrote have none of them.
_WRAPPER_COMPONENTS = ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")


def select(
    model: nn.Module,
    pattern: Pattern | Iterable[Pattern],
    *,
    parent: Pattern | type[nn.Module] | None = None,
) -> dict[str, nn.Module]:
    """The projections of a model that match, by name, in the model's order.

    What lies inside another projection (the parts of a LoRA-wrapped layer) is not listed: the
    wrapper is. Edits go to the innermost layer of what is listed.

    Args:
        model: any module.
        pattern: a name or a glob in which `*` also crosses dots (`"*.mlp.down_proj"`); a compiled
            regular expression that matches the whole name; a function of the name and the module;
            or several names or globs.
        parent: only children of modules of this class, or whose name (or name and module) matches
            this pattern.

    Returns:
        At least one projection.

    Raises:
        ProjectionError: nothing matches, or a name is not a projection; lists the nearest names.
        ShapeError: something else than a model and patterns.

    Example:
        >>> from collections import OrderedDict
        >>> from torch import nn
        >>> layers = OrderedDict(up=nn.Linear(2, 8), act=nn.ReLU(), down=nn.Linear(8, 2))
        >>> list(select(nn.ModuleList([nn.Sequential(layers)]), "*.down"))
        ['0.down']
    """
    check_kind("select", "model", model, nn.Module)
    found: dict[str, nn.Module] = {}
    for part in patterns_of("select", "pattern", pattern):
        found |= _selected(model, part, parent)
    return found


def patterns_of(call: str, argument: str, given: Pattern | Iterable[Pattern]) -> list[Pattern]:
    """The patterns of an argument that is one or several.

    Raises:
        ShapeError: it is neither, or none at all.
    """
    single: Any = (str, re.Pattern, Callable)
    # A tensor can be looped over, but holds no names.
    kinds = single if isinstance(given, Tensor) else (*single, Iterable)
    check_kind(call, argument, given, *kinds, expected="pattern, or several")
    several: Any = given
    listed = [given] if isinstance(given, single) else list(several)
    if not listed:
        raise ShapeError(
            f"{call}: {argument} must name at least one projection, got none; '*' means all."
        )
    for pattern in listed:
        check_kind(call, argument, pattern, *single, expected="pattern")
    return listed


def _selected(
    model: nn.Module, pattern: Pattern, parent: Pattern | type[nn.Module] | None
) -> dict[str, nn.Module]:
    modules = dict(named_modules(model))
    if isinstance(pattern, str) and pattern in modules and parent is None:
        geometry(modules[pattern])
        return {pattern: modules[pattern]}
    chosen = {
        name: module
        for name, module in _outermost(modules)
        if _matches(pattern, name, module)
        and _parent_matches(parent, name, modules)
        and is_projection(module)
    }
    if not chosen:
        raise ProjectionError(_not_found(modules, pattern, parent))
    return chosen


def find(model: nn.Module | Mapping[str, nn.Module], name: str) -> nn.Module:
    """The projection of exactly this name; names read from a file are never patterns.

    Args:
        model: any module, or what `named_modules` gave for it (to look up many names).
        name: dotted path.

    Raises:
        ProjectionError: no such projection; lists the nearest names.
    """
    modules = dict(named_modules(model)) if isinstance(model, nn.Module) else model
    if name not in modules:
        raise ProjectionError(_not_found(modules, name, None))
    geometry(modules[name])
    return modules[name]


def named_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """All modules by the names that they have without compilation and sharding wrappers.

    Experts in one parameter follow the module that has them, `experts.down_proj.0` and so on.
    """
    for name, module in model.named_modules(remove_duplicate=False):
        yield clean_name(name), module  # a wrapper comes before what it wraps, under the same name
        yield from experts_of(module, clean_name(name))


def clean_name(name: str) -> str:
    """A dotted name without the components that wrappers add."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPER_COMPONENTS)


def _outermost(modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, nn.Module]]:
    """Modules that may be projections, without what lies inside one of them."""
    inside: str | None = None
    for name, module in modules.items():
        if inside is not None and name.startswith(inside):
            continue
        inner = innermost(module)
        whole = inner is not module or isinstance(inner, (nn.Linear, nn.modules.conv._ConvNd))
        inside = (f"{name}." if name else "") if whole else None
        if whole or next(module.children(), None) is None:
            yield name, module


def _matches(pattern: Pattern, name: str, module: nn.Module) -> bool:
    # Who names the parameter means all experts in it.
    names = (name, name.rpartition(".")[0]) if isinstance(module, Expert) else (name,)
    if isinstance(pattern, str):
        return any(fnmatch.fnmatchcase(one, pattern) for one in names)
    if isinstance(pattern, re.Pattern):
        return any(pattern.fullmatch(one) for one in names)
    return bool(pattern(name, module))


def _parent_matches(
    parent: Pattern | type[nn.Module] | None, name: str, modules: Mapping[str, nn.Module]
) -> bool:
    if parent is None:
        return True
    path = name.rpartition(".")[0]
    if path not in modules:
        return False
    if isinstance(parent, type):
        return isinstance(modules[path], parent)
    return _matches(parent, path, modules[path])


# ------------------------------------------------------------------------------------- messages


def _not_found(
    modules: Mapping[str, nn.Module],
    pattern: Pattern,
    parent: Pattern | type[nn.Module] | None,
) -> str:
    wanted = pattern if isinstance(pattern, str) else getattr(pattern, "pattern", repr(pattern))
    model = modules[""]
    where = f" under parent {parent!r}" if parent is not None else ""
    message = f"select: no projection of {type(model).__name__} matches {wanted!r}{where}"
    experts = _expert_parameters(model, pattern)
    if experts:
        return (
            f"{message}: {experts[0]!r} is a 3-dimensional parameter of fused experts, quantised, "
            "offloaded, split over devices or of a layout other than that of transformers 5. "
            "Edit a shared expert or the attention's output projection, or load the model in "
            "floating point, or with one module for each expert."
        )
    if callable(pattern):
        return f"{message}; a predicate gets (name, module) of each projection and returns a bool."
    return f"{message}; {_nearest(str(wanted), modules)}."


def _expert_parameters(model: nn.Module, pattern: Pattern) -> list[str]:
    if not isinstance(pattern, (str, re.Pattern)):
        return []
    names = ((clean_name(name), tensor) for name, tensor in model.named_parameters())
    return [name for name, tensor in names if tensor.ndim == 3 and _matches(pattern, name, model)]


def _nearest(wanted: str, modules: Mapping[str, nn.Module]) -> str:
    """The known names that are most like the wanted one, numbers of blocks written as `*`."""
    known = {
        _NUMBER.sub("*", f"{name}." if isinstance(module, Expert) else name): name
        for name, module in _outermost(modules)
        if is_projection(module)
    }
    if not known:
        return "the model has no projections"
    near = (
        difflib.get_close_matches(_NUMBER.sub("*", wanted), list(known), n=5, cutoff=0.4)
        or list(known)[:5]
    )
    return "the nearest names are " + ", ".join(name or "'' (the model itself)" for name in near)
