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
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

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
        # Without the file and line, which mean nothing to who typed a command.
        warnings.showwarning = _show_plainly(warnings.showwarning)
        try:
            app()
        except (rk.RankeditError, OSError) as error:
            sys.exit(f"rankedit: {error}")


def _show_plainly(usual: Callable[..., None]) -> Callable[..., None]:
    def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:  # noqa: ANN401
        if issubclass(category, rk.RankeditWarning):
            sys.stderr.write(f"rankedit: warning: {message}\n")
        else:
            usual(message, category, *place, **more)

    return show
