"""The user's own text, from a file, a folder, or anything that gives texts one after the other."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

from rankedit_recipes.language.errors import LanguageError

Texts: TypeAlias = str | PathLike[str] | Iterable[str] | Iterable[Mapping[str, Any]]

STDIN = "-"
"""The standard input, in the place of a path."""

_KINDS = (".txt", ".jsonl")


def read_texts(texts: Texts) -> Iterator[str]:
    """Each text.

    Args:
        texts: the path of a `.txt` file with one text on each line, or of a `.jsonl` file with a
            `text` on each, or of a folder with such files, in the order of their names; or an
            iterable of texts or of rows with a `text` (`datasets`).

    Raises:
        LanguageError: no such file, a file of another kind, or a row without a text.
    """
    if isinstance(texts, (str, PathLike)):
        for file in files_in(Path(texts)):
            yield from _lines(file)
        return
    for number, item in enumerate(texts):
        yield checked_text(item, f"item {number}")


def files_in(path: Path) -> list[Path]:
    """A file, or the files of text in a folder, in the order of their names.

    Raises:
        LanguageError: neither.
    """
    if path.is_dir():
        # In one order on every file system: the digest of the corpus depends on it.
        files = sorted(file for file in path.rglob("*") if file.suffix in _KINDS)
    else:
        files = [path] if path.is_file() else []
    if not files:
        raise LanguageError(
            f"read_texts: '{path}' must be a file, or a folder with {' or '.join(_KINDS)} files, "
            "got neither. (A single text is passed in a list.)"
        )
    return files


def _lines(file: Path) -> Iterator[str]:
    # In bytes, as `LineTexts` reads them: a line ends in the same places whoever reads it.
    with file.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            text = text_of_line(line, file, number)
            if text is not None:
                yield text


def text_of_line(line: bytes, file: Path, number: int, *, jsonl: bool = False) -> str | None:
    """The text on a line of a file; None if it is blank.

    Args:
        line: with its end.
        file: its name says what is on its lines.
        number: of the line, from 1.
        jsonl: whether it is JSON with a `text` whatever the name.

    Raises:
        LanguageError: no UTF-8, or no text.
    """
    try:
        said = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise LanguageError(
            f"read_texts: '{file}' is not UTF-8 text: line {number}: {error}."
        ) from error
    if not said.strip():
        return None
    if jsonl or file.suffix == ".jsonl":
        return checked_text(_row(said), f"'{file}', line {number}")
    # Only the end of the line: spaces at a text's ends are tokens, too.
    return said.removesuffix("\n").removesuffix("\r")


def _row(line: str) -> object:
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        # Refused with the line's number by `checked_text`, as any other row without a text.
        return None


def checked_text(item: object, where: str) -> str:
    """A text, or the `text` of a row.

    Raises:
        LanguageError: neither.
    """
    if isinstance(item, Mapping):
        item = item.get("text")
    if not isinstance(item, str):
        raise LanguageError(
            f"read_texts: {where} must be a text, or have one under 'text', got {item!r:.80}."
        )
    return item
