"""The `rankedit` command: what a file holds, and whatever recipes plug in by entry point.

A recipe adds a sub-command by declaring a typer application in its package:

    [project.entry-points."rankedit.recipes"]
    mymethod = "mypackage.cli:app"

The library knows no recipe by name. The module of the application is imported to print any help:
it should import torch, and what needs it, inside its commands.
"""

from __future__ import annotations

import sys
import warnings
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import rankedit as rk

if TYPE_CHECKING:
    from typer import Typer


def application() -> Typer:
    """The command line as a typer application, with every installed recipe in it.

    A recipe that fails to import is left out and named on the standard error, so that one broken
    package does not take the others along.
    """
    import typer

    from rankedit.commands import GROUP, own_commands

    app = own_commands()
    for entry in entry_points(group=GROUP):
        try:
            app.add_typer(entry.load(), name=entry.name)
        except Exception as error:
            typer.echo(f"rankedit: recipe {entry.name!r} does not load: {error}", err=True)
    return app


def main() -> None:
    """Entry point of the `rankedit` command; the library's own errors end it with one line."""
    try:
        app = application()
    except ModuleNotFoundError as error:
        sys.exit(f"rankedit: {error}; the command needs typer: pip install 'rankedit[recipes]'")
    with warnings.catch_warnings():
        warnings.showwarning = _show_plainly
        try:
            app()
        except (rk.RankeditError, OSError) as error:
            sys.exit(f"rankedit: {error}")


# Of libraries, to those who write programs with them.
_FOR_PROGRAMMERS = (DeprecationWarning, PendingDeprecationWarning, FutureWarning)


def _show_plainly(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,  # noqa: ARG001 - the form of `warnings.showwarning`
    file: TextIO | None = None,  # noqa: ARG001
    line: str | None = None,  # noqa: ARG001
) -> None:
    """One line for each warning, without the line of code, which tells nothing at a terminal."""
    text = next(iter(str(message).splitlines()), "")
    if issubclass(category, rk.RankeditWarning):
        sys.stderr.write(f"rankedit: warning: {' '.join(str(message).split())}\n")
    elif sys.warnoptions or not issubclass(category, _FOR_PROGRAMMERS):
        # Whoever sets -W or PYTHONWARNINGS asks for all of them.
        sys.stderr.write(f"rankedit: warning of {_library(filename)}: {text}\n")


def _library(filename: str) -> str:
    parts = Path(filename).parts
    installed = [index for index, part in enumerate(parts[:-1]) if part == "site-packages"]
    return Path(parts[installed[-1] + 1]).stem if installed else Path(filename).stem
