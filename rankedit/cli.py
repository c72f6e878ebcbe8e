"""The `rankedit` command: what a file holds, and whatever recipes plug in by entry point.

A recipe adds a sub-command by declaring a typer application in its package:

    [project.entry-points."rankedit.recipes"]
    mymethod = "mypackage.cli:app"

The library knows no recipe by name.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankedit.edits import LowRank
from rankedit.errors import RankeditError, RankeditWarning
from rankedit.files.storage import load
from rankedit.gated import GatedEdit
from rankedit.moments import SecondMoment

if TYPE_CHECKING:
    from typer import Typer

GROUP = "rankedit.recipes"


def application() -> Typer:
    """The command line as a typer application, with every installed recipe in it.

    A recipe that fails to import is left out and named on the standard error, so that one broken
    package does not take the others along.
    """
    import typer

    app = typer.Typer(
        no_args_is_help=True,
        add_completion=False,
        help="Closed-form and gated edits of linear projections in trained networks.",
    )

    @app.command()
    def info(file: Path) -> None:
        """Check an edit or statistics file completely, and print what it holds."""
        for line in described(file):
            typer.echo(line)

    @app.command()
    def recipes() -> None:
        """List the installed recipes."""
        for entry in entry_points(group=GROUP):
            typer.echo(f"{entry.name}\t{entry.value}")

    for entry in entry_points(group=GROUP):
        try:
            app.add_typer(entry.load(), name=entry.name)
        except Exception as error:
            typer.echo(f"rankedit: recipe {entry.name!r} does not load: {error}", err=True)
    return app


def described(file: Path) -> Iterator[str]:
    """Lines that say what a file holds: its size, its metadata, then one line for each item.

    Raises:
        EditFileError: the file is not one that `rankedit.load` accepts.
    """
    loaded = load(file)
    yield f"{file}: {file.stat().st_size:,} bytes, {len(loaded)} items"
    for key, value in loaded.metadata.items():
        yield f"  {key}: {value}"
    for name, item in loaded.items():
        base = f", base {loaded.base[name]}" if name in loaded.base else ""
        yield f"  {name or '(the model itself)'}: {_summary(item)}{base}"


def _summary(item: object) -> str:
    if isinstance(item, LowRank):
        return f"low-rank edit {item.in_features} to {item.out_features}, rank {item.rank}"
    if isinstance(item, GatedEdit):
        keys = f"{len(item.keys)} keys" if len(item.keys) > 1 else "1 key"
        return f"gated edit {item.in_features} to {item.out_features}, {keys}, {item.gate}"
    if isinstance(item, SecondMoment):
        return f"second moment, width {item.dim}, {item.count:,.0f} vectors of {item.dtype}"
    return f"tensor {list(getattr(item, 'shape', ()))}"


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
        except (RankeditError, OSError) as error:
            sys.exit(f"rankedit: {error}")


def _show_plainly(usual: Callable[..., None]) -> Callable[..., None]:
    def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:  # noqa: ANN401
        if issubclass(category, RankeditWarning):
            sys.stderr.write(f"rankedit: warning: {message}\n")
        else:
            usual(message, category, *place, **more)

    return show
