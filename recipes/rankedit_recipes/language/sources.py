"""A corpus as a stream: texts one after the other, from a place that was noted before.

Files and lists are gone on with where they stopped; so is whatever has `state_dict` and
`load_state_dict` (streams of `datasets`, torchdata's loaders). A pipe cannot be: see `corpus`.
"""

from __future__ import annotations

import hashlib
import io
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from rankedit.collecting.remaining import Stateful
from rankedit_recipes.language.errors import LanguageError
from rankedit_recipes.language.texts import STDIN, Texts, checked_text, files_in, text_of_line

# The last tenth of a corpus is what convergence is judged by.
_TENTH = 10
LAST = 1 - 1 / _TENTH
"""Where it begins, as a part of the whole."""
# Bytes of a file that are looked at on either end, to tell it from others of its name and size.
_END = 4096


class Source(Protocol):
    """Texts from a place on."""

    def __iter__(self) -> Iterator[str]: ...

    def place(self) -> Any:  # noqa: ANN401  (whatever JSON can hold)
        """Behind the text that was given last."""
        ...

    def go_to(self, place: Any) -> bool:  # noqa: ANN401
        """Begin there when looped over next; False if that cannot be, and nothing was done."""
        ...

    def rewind(self) -> None:
        """Begin at the front when looped over next, after `go_to` led elsewhere than it should."""
        ...

    def mark(self) -> str:
        """What tells this source from others, without reading it."""
        ...

    def near_end(self, taken: int) -> bool | None:
        """Whether the last tenth begins now, after so many texts; None if nobody knows."""
        ...

    def share(self) -> float | None:
        """The part of all that was given, from 0 to 1; None if nobody knows."""
        ...


class LineTexts:
    """Texts of files, one after the other, each on its line.

    Args:
        files: their paths, in order; `-` for the standard input.
        jsonl: whether the lines of the standard input are JSON with a `text`.
    """

    def __init__(self, files: Sequence[Path], *, jsonl: bool = False) -> None:
        self._files, self._jsonl = list(files), jsonl
        self._at, self._offset, self._line = 0, 0, 0
        self._sizes = [_size(file) for file in self._files]

    def __iter__(self) -> Iterator[str]:
        while self._at < len(self._files):
            file = self._files[self._at]
            with _opened(file) as stream:
                if self._offset:
                    stream.seek(self._offset)
                yield from self._texts(stream, file)
            self._at, self._offset, self._line = self._at + 1, 0, 0

    def _texts(self, stream: BinaryIO, file: Path) -> Iterator[str]:
        # In bytes: the place in a text file, as Python tells it, costs more than a line.
        for line in stream:
            self._offset += len(line)
            self._line += 1
            text = text_of_line(line, file, self._line, jsonl=self._jsonl)
            if text is not None:
                yield text

    def place(self) -> list[int]:
        """Number of the file, bytes and lines of it that were read."""
        return [self._at, self._offset, self._line]

    def go_to(self, place: list[int]) -> bool:
        """Seek there: nothing in front of it is read."""
        if None in self._sizes:
            return False
        self._at, self._offset, self._line = place
        return True

    def rewind(self) -> None:
        """To the first file."""
        self._at, self._offset, self._line = 0, 0, 0

    def mark(self) -> str:
        """Names and sizes, and how each file begins and ends."""
        found = [(file.name, *_ends(file)) for file in self._files if str(file) != STDIN]
        return _digest(repr([found, self._sizes]).encode())

    def near_end(self, taken: int) -> bool | None:
        """By bytes."""
        known = self._bytes()
        return None if known is None else known[0] * _TENTH >= known[1] * (_TENTH - 1)

    def share(self) -> float | None:
        """By bytes."""
        known = self._bytes()
        return None if known is None else known[0] / max(known[1], 1)

    def _bytes(self) -> tuple[int, int] | None:
        """How many were given, and how many there are; None if nobody knows."""
        known = [size for size in self._sizes if size is not None]
        if len(known) < len(self._sizes):
            return None
        return sum(known[: self._at]) + self._offset, sum(known)


class ListTexts:
    """Texts that are in memory, or that are looked up by number."""

    def __init__(self, texts: Sequence[object]) -> None:
        self._texts, self._at = texts, 0

    def __iter__(self) -> Iterator[str]:
        while self._at < len(self._texts):
            self._at += 1
            yield checked_text(self._texts[self._at - 1], f"item {self._at - 1}")

    def place(self) -> int:
        """How many were given."""
        return self._at

    def go_to(self, place: int) -> bool:
        """Go on with that one."""
        self._at = place
        return True

    def rewind(self) -> None:
        """To the first one."""
        self._at = 0

    def mark(self) -> str:
        """Of all of a list; of a table the number of rows, the first and the last one."""
        texts = self._texts
        seen = texts if isinstance(texts, (list, tuple)) else [texts[n] for n in (0, -1) if texts]
        return _digest(repr([len(texts), list(seen)]).encode("utf-8", "surrogatepass"))

    def near_end(self, taken: int) -> bool | None:
        """By number; at least one text is in the last tenth."""
        return self._at >= before_last(len(self._texts))

    def share(self) -> float | None:
        """By number."""
        return self._at / max(len(self._texts), 1)


class StreamedTexts:
    """Texts of anything to loop over, which goes on from a place only if it says so itself."""

    def __init__(self, texts: Iterable[object]) -> None:
        self._texts, self._taken = texts, 0
        self._front: Any = None  # its state before it was sent to a place

    def __iter__(self) -> Iterator[str]:
        if not isinstance(self._texts, Stateful):
            self._taken = 0  # from the front again
        for item in self._texts:
            self._taken += 1
            yield checked_text(item, f"item {self._taken - 1}")

    def place(self) -> Any:  # noqa: ANN401
        """Its own, if it has one and has been begun."""
        own = self._taken and isinstance(self._texts, Stateful)
        return [self._taken, self._texts.state_dict() if own else None]  # type: ignore[attr-defined]

    def go_to(self, place: Any) -> bool:  # noqa: ANN401
        """By what the stream does itself."""
        taken, state = place
        if not taken:
            return True
        if state is None or not isinstance(self._texts, Stateful):
            return False
        if not self._taken:
            self._front = self._texts.state_dict()
        self._texts.load_state_dict(state)
        self._taken = taken
        return True

    def rewind(self) -> None:
        """By its state before it was sent anywhere; others begin anew with each loop."""
        if isinstance(self._texts, Stateful) and self._front is not None:
            self._texts.load_state_dict(self._front)
        self._taken = 0

    def mark(self) -> str:
        """Nothing is known."""
        return ""

    def near_end(self, taken: int) -> bool | None:
        """Nobody knows."""
        return None

    def share(self) -> float | None:
        """Nobody knows."""
        return None


def source_of(texts: Texts | Source | Sequence[Path], *, jsonl: bool = False) -> Source:
    """Where texts come from.

    Args:
        texts: as `read_texts` takes them; several paths; `-`, the standard input; or a source.
        jsonl: whether the lines of the standard input are JSON with a `text`.

    Raises:
        LanguageError: no such file.
    """
    if isinstance(texts, (LineTexts, ListTexts, StreamedTexts)):
        return texts
    if isinstance(texts, (str, PathLike)):
        texts = [Path(texts)]
    paths = [path for path in texts if isinstance(path, Path)] if isinstance(texts, list) else []
    if paths and len(paths) == len(texts):  # type: ignore[arg-type]
        found = [f for path in paths for f in ([path] if str(path) == STDIN else files_in(path))]
        return LineTexts(found, jsonl=jsonl)
    # By number: lists, and tables of `datasets`, which can be looked up but are no Sequence.
    if hasattr(texts, "__len__") and hasattr(texts, "__getitem__"):
        return ListTexts(texts)  # type: ignore[arg-type]
    if not isinstance(texts, Iterable):
        raise LanguageError(
            "language: texts must be a file, a folder, '-', or texts to loop over, got "
            f"{texts!r:.80}; put one text into a list."
        )
    # What can be read once only is kept: nothing else would know where its last tenth begins.
    return ListTexts(list(texts)) if isinstance(texts, Iterator) else StreamedTexts(texts)


def before_last(total: int) -> int:
    """How many texts come before the last tenth, which has at least one."""
    return total - max(1, total // _TENTH)


def _size(file: Path) -> int | None:
    if str(file) != STDIN:
        return file.stat().st_size
    # `stats - < file` can be sought in, a pipe cannot.
    try:
        return sys.stdin.buffer.seek(0, io.SEEK_END) if sys.stdin.buffer.seekable() else None
    finally:
        if sys.stdin.buffer.seekable():
            sys.stdin.buffer.seek(0)


def _opened(file: Path) -> AbstractContextManager[BinaryIO]:
    # The standard input stays open for whoever reads it next.
    return nullcontext(sys.stdin.buffer) if str(file) == STDIN else file.open("rb")


def _ends(file: Path) -> tuple[bytes, bytes]:
    with file.open("rb") as stream:
        first = stream.read(_END)
        stream.seek(max(0, file.stat().st_size - _END))
        return first, stream.read(_END)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
