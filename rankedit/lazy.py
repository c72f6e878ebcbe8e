"""Packages whose public names are imported when they are first asked for.

A package writes its imports where type checkers, the documentation and import-linter read them, and
nothing is imported by them when the program runs:

    if TYPE_CHECKING:
        from mypackage.solving import solve
    else:
        __getattr__, __dir__ = lazy_names(__name__)

    __all__ = ["solve"]

`docs/decisions/imports-on-demand.md` says why.
"""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from types import ModuleType


def lazy_names(package: str) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` (PEP 562) of a package with its imports under `TYPE_CHECKING`.

    A name is looked up once and then is an ordinary attribute. Submodules are imported on demand
    as well: `import rankedit` used to bring them along, and code may rely on that.

    Args:
        package: its `__name__`, while it is being imported.

    Raises:
        ImportError: the package has no source to read the imports from, or a public name is that of
            the submodule it comes from.
    """
    module = sys.modules[package]
    homes = dict(_imports(_source(module)))
    # Importing a submodule makes it an attribute of the package, in place of the name.
    hidden = [name for name, home in homes.items() if home == f"{package}.{name}"]
    if hidden:
        raise ImportError(
            f"lazy_names: {package}.{hidden[0]} must not have the name of the module that it comes "
            "from, which takes its place when it is imported; rename the module."
        )

    def getattr_(name: str) -> object:
        found: object
        if name in homes:
            found = getattr(importlib.import_module(homes[name]), name)
        elif not name.startswith("_") and find_spec(f"{package}.{name}"):
            found = importlib.import_module(f"{package}.{name}")
        else:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        # Later uses, in a hot loop, cost what they cost with an ordinary import.
        module.__dict__[name] = found
        return found

    def dir_() -> list[str]:
        return sorted({*module.__dict__, *homes})

    return getattr_, dir_


def _source(module: ModuleType) -> str:
    # Of the loader and not of a file: a package may lie in an archive.
    loader = module.__spec__ and module.__spec__.loader
    source: str | None = getattr(loader, "get_source", lambda _: None)(module.__name__)
    if source is None:
        raise ImportError(
            f"lazy_names: {module.__name__!r} has no source, of which its public names are read; "
            "install it with its .py files."
        )
    return source


def _imports(source: str) -> Iterator[tuple[str, str]]:
    """Names that are imported under `if TYPE_CHECKING`, each with its module."""
    for block in ast.parse(source).body:
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING":
            for statement in block.body:
                if isinstance(statement, ast.ImportFrom) and statement.module:
                    yield from ((alias.name, statement.module) for alias in statement.names)
