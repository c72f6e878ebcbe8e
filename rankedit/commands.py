"""The commands that `rankedit` has without any recipe."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated

import typer

import rankedit as rk

GROUP = "rankedit.recipes"


def own_commands() -> typer.Typer:
    """A new application with them."""
    app = typer.Typer(no_args_is_help=True, add_completion=False)
    app.callback()(_root)
    app.command("info")(_info)
    app.command("recipes")(_recipes)
    return app


def _show_version(asked: bool) -> None:  # noqa: FBT001  (the form of a callback)
    if asked:
        typer.echo(f"rankedit {rk.__version__}")
        raise typer.Exit


def _root(
    *,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Print the version; stop."
        ),
    ] = False,
) -> None:
    """Closed-form and gated edits of linear projections in trained networks."""


def _info(file: Annotated[Path, typer.Argument(help="A file of edits or statistics.")]) -> None:
    """Check an edit or statistics file completely, and print what it holds."""
    for line in described(file):
        typer.echo(line)


def _recipes() -> None:
    """List the installed recipes."""
    for entry in entry_points(group=GROUP):
        typer.echo(f"{entry.name}\t{entry.value}")


def described(file: Path) -> Iterator[str]:
    """Lines that say what a file holds: its size, its metadata, then one line for each item.

    Raises:
        EditFileError: the file is not one that `rankedit.load` accepts.
    """
    loaded = rk.load(file)
    items = "1 item" if len(loaded) == 1 else f"{len(loaded)} items"
    yield f"{file}: {file.stat().st_size:,} bytes, {items}"
    for key, value in loaded.metadata.items():
        yield f"  {key}: {value}"
    for name, item in loaded.items():
        base = f", base {loaded.base[name]}" if name in loaded.base else ""
        yield f"  {name or '(the model itself)'}: {_summary(item)}{base}"


def _summary(item: object) -> str:
    if isinstance(item, rk.LowRank):
        return f"low-rank edit {item.in_features} to {item.out_features}, rank {item.rank}"
    if isinstance(item, rk.GatedEdit):
        keys = f"{len(item.keys)} keys" if len(item.keys) > 1 else "1 key"
        return f"gated edit {item.in_features} to {item.out_features}, {keys}, {item.gate}"
    if isinstance(item, rk.SecondMoment):
        apart = f", {item.extremes.count:,.0f} extreme ones apart" if item.extremes else ""
        return f"second moment, width {item.dim}, {item.count:,.0f} vectors of {item.dtype}{apart}"
    return f"tensor {list(getattr(item, 'shape', ()))}"
