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
    statistics = typer.Typer(no_args_is_help=True, help="Statistics, whatever they are of.")
    statistics.command("merge")(_merge)
    # A callback, for typer leaves out the name of an application's only command.
    statistics.callback()(lambda: None)
    app.add_typer(statistics, name="stats")
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


def _merge(
    files: Annotated[
        list[Path], typer.Argument(help="Files of shards, in any order.", exists=True)
    ],
    *,
    out: Annotated[Path, typer.Option(help="Where the sum goes.")],
    partial: Annotated[
        bool, typer.Option("--partial", help="Accept that shards are missing.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a result that is there already.")
    ] = False,
) -> None:
    """Add the statistics of all shards of a corpus, collected by --shard, each exactly once."""
    if out.exists() and not overwrite:
        raise rk.StatisticsError(
            f"stats merge: '{out}' is there already; add --overwrite to replace it, or give "
            "another --out."
        )
    if not out.parent.is_dir():
        raise rk.StatisticsError(
            f"stats merge: there is no folder '{out.parent}' for --out; make it, or give another."
        )
    try:
        merged = rk.merge_shards(files, partial=partial)
    except rk.StatisticsError as error:
        said = str(error).replace("pass partial=True to do without", "add --partial to go without")
        raise rk.StatisticsError(said.replace("merge_shards:", "stats merge:")) from error
    rk.save_merged(merged, out)
    for line in described(out):
        typer.echo(line)


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
