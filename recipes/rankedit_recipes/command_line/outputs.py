"""Where results go: looked at before a model is loaded, and never replaced unasked."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from os import PathLike
from pathlib import Path

from rankedit.atomic import sync, sync_folder
from rankedit_recipes.command_line.errors import CommandError

Paths = Mapping[str, Path | None]


def prepare_outputs(
    command: str,
    *,
    files: Paths | None = None,
    folders: Paths | None = None,
    growing: Paths | None = None,
    overwrite: bool = False,
) -> None:
    """Check all outputs of a command, then make the folders that they need.

    A model takes minutes to load and a training hours: what cannot be written is refused first, and
    nothing is made if one of them is refused.

    Args:
        command: for the message, such as `"learn"`.
        files: by option a file that is written; None where it was not given.
        folders: likewise folders that are written whole, such as a model's.
        growing: likewise folders with rules of their own about what is in them, such as a training
            that is gone on with: only whether they can be written to is asked.
        overwrite: whether what is there may be replaced.

    Raises:
        CommandError: an output is there already, is not of its kind, cannot be written, or two are
            the same; names the option and what to type.
    """
    whole = _given(folders)
    kept = _given(growing)
    single = _given(files)
    for option, path in single.items():
        if path.is_dir():
            raise CommandError(
                f"{command}: {option} must be a file, but '{path}' is a folder; add a file name, "
                f"such as {option} {path / 'result'}{path.suffix}."
            )
    for option, path in {**whole, **kept}.items():
        if path.exists() and not path.is_dir():
            raise CommandError(
                f"{command}: {option} must be a folder, but '{path}' is a file; give another name."
            )
    _check_different(command, {**single, **whole, **kept})
    if not overwrite:
        _check_free(command, single, whole)
    needed = [*(path.parent for path in (*single.values(), *whole.values())), *kept.values()]
    for folder in needed:
        _check_writable(command, folder)
    for folder in needed:
        folder.mkdir(parents=True, exist_ok=True)


def _given(paths: Paths | None) -> dict[str, Path]:
    return {option: path for option, path in (paths or {}).items() if path is not None}


def _check_different(command: str, paths: Mapping[str, Path]) -> None:
    options = list(paths)
    for index, option in enumerate(options):
        for other in options[:index]:
            # Resolved, for `a/../b` and a link may be the same file as `b`.
            if paths[option].resolve() == paths[other].resolve():
                raise CommandError(
                    f"{command}: {other} and {option} are both '{paths[option]}', and one would "
                    "replace the other; give them different names."
                )


def _check_free(command: str, files: Mapping[str, Path], folders: Mapping[str, Path]) -> None:
    taken = [(option, path) for option, path in files.items() if path.exists()]
    # An empty folder holds nothing that could be lost.
    taken += [(o, p) for o, p in folders.items() if p.exists() and any(p.iterdir())]
    for option, path in taken:
        raise CommandError(
            f"{command}: '{path}' is there already; add --overwrite to replace it, or give another "
            f"{option}."
        )


def _check_writable(command: str, folder: Path) -> None:
    """The folder, or the nearest one above it that is there, takes new files."""
    # Asked and not tried: nothing is to be left behind by a command that is refused.
    above = next(path for path in (folder, *folder.parents) if path.exists())
    if not above.is_dir():
        raise CommandError(
            f"{command}: '{folder}' cannot be made, for '{above}' is a file; give another place."
        )
    if not os.access(above, os.W_OK | os.X_OK):
        raise CommandError(
            f"{command}: there is no permission to write in '{above}'; give another place."
        )


@contextlib.contextmanager
def folder_aside(path: str | PathLike[str]) -> Iterator[Path]:
    """An empty folder beside `path`; when the block ends well it takes the name and the place.

    The counterpart of `rankedit.atomic.atomic_write`: what was there stays whole until the new one
    is, and comes back if the name cannot be given.
    """
    target = Path(path)
    # Beside it, for only within one file system is renaming one step.
    mark = f"{os.getpid()}-{secrets.token_hex(4)}.rankedit-tmp"
    aside = target.with_name(f".{target.name}.{mark}")
    old = target.with_name(f".{target.name}.old-{mark}")
    aside.mkdir(parents=True)
    try:
        yield aside
        for file in aside.rglob("*"):
            if file.is_file() and not file.is_symlink():
                sync(file)
        # A folder that is not empty cannot be replaced in one step: two renames, which are undone.
        if target.exists():
            target.rename(old)
        aside.rename(target)
        sync_folder(target.parent)
    finally:
        # Whatever came between the two, Ctrl-C too: what was there goes only when its successor has
        # the name.
        if old.exists() and not target.exists():
            old.rename(target)
        for leftover in (aside, old):
            shutil.rmtree(leftover, ignore_errors=True)


def picture_files(folder: Path, prompts: int, seeds: Iterable[int]) -> list[Path]:
    """Names of pictures, by prompt and seed: known before they are made."""
    chosen = list(seeds)
    # Numbers and not the prompts, which may be long and have any letter.
    return [folder / f"{i:02}-seed{seed}.png" for i in range(prompts) for seed in chosen]
