"""Where the library ends and the command line begins: remedies become commands."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import typer
from typer.core import TyperGroup

import rankedit as rk
from rankedit_recipes.command_line.errors import CommandError

Remedies = Sequence[tuple[str, str]]
"""Regular expressions of what the library advises, each with what to type instead."""

# Of Ctrl-C, as shells have it.
_INTERRUPTED = 130


def application(help_: str, remedies: Remedies) -> typer.Typer:
    """An empty application of a recipe whose commands speak of commands.

    Args:
        help_: what the recipe does.
        remedies: of its library.
    """

    class Commands(TyperGroup):
        def invoke(self, ctx: Any) -> Any:  # noqa: ANN401  (click's own types)
            with in_commands(remedies):
                return super().invoke(ctx)

    return typer.Typer(cls=Commands, no_args_is_help=True, add_completion=False, help=help_)


@contextlib.contextmanager
def in_commands(remedies: Remedies) -> Iterator[None]:
    """Errors of the library in the words of the command line; all have one line.

    Raises:
        RankeditError: the library's own where its words fit, else a CommandError.
        Exit: Ctrl-C, after a line that says how to go on.
    """
    try:
        yield
    except rk.RankeditError as error:
        said = translated(str(error), remedies)
        # Where nothing had to be said otherwise, the library's own class tells more.
        if said == str(error):
            raise
        raise CommandError(said) from error
    except KeyboardInterrupt as interrupt:
        said = translated(str(interrupt), remedies) or "interrupted; nothing was written"
        typer.echo(f"rankedit: {said}", err=True)
        raise typer.Exit(_INTERRUPTED) from interrupt
    except RuntimeError as error:
        # torch's own class, by name: this module is imported before torch is.
        if type(error).__name__ != "OutOfMemoryError":
            raise
        raise CommandError(
            f"the memory of the device does not suffice: {one_line(error)}. Try --dtype bfloat16, "
            "--offload model, or a smaller --size or --set batch=1."
        ) from error


def translated(message: str, remedies: Remedies) -> str:
    """A message with its remedies as commands."""
    for pattern, instead in remedies:
        message = re.sub(pattern, instead, message)
    # One line for each error: terminals, logs and scripts read lines.
    return " ".join(message.split())


def one_line(error: BaseException, most: int = 300) -> str:
    """What another library said, short: its first sentence, without its lists and paths."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    text = first or type(error).__name__
    # transformers lists 200 classes that it knows where one is not among them.
    return text.rstrip(".") if len(text) <= most else text[:most].rstrip() + " ..."
