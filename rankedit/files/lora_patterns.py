r"""Names of layers as PEFT's patterns mean them, in a time that no pattern can stretch.

PEFT takes the keys of `rank_pattern` and `alpha_pattern` for regular expressions, of which the
first that matches the end of a layer's name wins: `re.match(rf"(.*\.)?({key})$", name)`. Python's
engine can be kept busy for years by a few of their characters. Here every piece of a pattern maps
the set of places where it may begin to the set where it may end, so that no place is visited twice
(docs/decisions/fields-by-name.md).
"""

from __future__ import annotations

import contextlib
import itertools
import math
import re
from collections.abc import Mapping

from rankedit.errors import EditFileError

# One character, or an end of the name, and how often it may come.
_PIECE = re.compile(r"(\\[.\-dw]|\[\^?[\w.\-]+\]|[\w\-/.^$])([?*+]?)")
_GROUP = re.compile(r"\(([^()]*)\)(\??)(?![?*+])")
_PLAIN = re.compile(r"\^?[\w\-/.]+")
_LONGEST, _MOST_OPTIONS = 256, 256
_Pieces = list[tuple[str, str]]


class NamePatterns:
    """Values by pattern.

    Args:
        values: by pattern, in the order in which they are tried.
        what: the field's name in error messages.

    Raises:
        EditFileError: a pattern that is more than literals, sets, `?`, `*`, `+` and groups of them
            that are neither nested nor repeated.
    """

    def __init__(self, values: Mapping[str, float], what: str) -> None:
        self._values = [(key, _options(key, what), v) for key, v in values.items()]
        # Work for each name, in plain comparisons: a walk costs about a hundred of them.
        self.cost = sum(100 * len(options) or 1 for _, options, _ in self._values)

    def first(self, name: str) -> float | None:
        """The value of the first pattern that matches the end of a name."""
        for key, options, value in self._values:
            if _ends(name, key) if not options else any(_reaches(name, o) for o in options):
                return value
        return None


def _ends(name: str, key: str) -> bool:
    """Most patterns are names: no other character than `.`, which means any, is special."""
    tail = key.removeprefix("^")
    start = len(name) - len(tail)
    begins = start == 0 or (start > 0 and tail == key and name[start - 1] == ".")
    return begins and all(a in (b, ".") for a, b in zip(tail, name[start:], strict=True))


def _options(key: str, what: str) -> list[_Pieces]:
    """Patterns without groups, one of which must match; none for a plain name."""
    if _PLAIN.fullmatch(key):
        return []
    # What is outside of groups, inside of one, and the mark behind it, in turn.
    parts = _GROUP.split(key if "(" in key else f"({key})")
    choices = [
        [part] if i % 3 == 0 else part.split("|") + [""] * (parts[i + 1] == "?")
        for i, part in enumerate(parts)
        if i % 3 < 2
    ]
    if len(key) <= _LONGEST and math.prod(map(len, choices)) <= _MOST_OPTIONS:
        texts = ["".join(choice) for choice in itertools.product(*choices)]
        options = [_PIECE.findall(text) for text in texts]
        whole = ["".join(map("".join, option)) for option in options] == texts
        with contextlib.suppress(re.error):  # a set from z to a
            re.compile(key)
            if whole:
                return options
    raise EditFileError(
        f"{what} has the key {key!r:.80}, a regular expression beyond literals, sets, '?', '*', "
        "'+' and plain groups of them; write out the names of the layers that it means"
    )


def _reaches(name: str, pieces: _Pieces) -> bool:
    """Whether the pieces, from the beginning or behind a dot, can end where the name does."""
    at = {0, *(i + 1 for i, mark in enumerate(name) if mark == ".")}
    for piece, mark in pieces:
        if piece in "^$":
            at &= {len(name) if piece == "$" else 0}
            continue
        one = re.compile(piece)
        skipped = at if mark in ("?", "*") else set()
        at = new = {i + 1 for i in at if one.fullmatch(name, i, i + 1)}
        while mark in ("*", "+") and new:
            new = {i + 1 for i in new if one.fullmatch(name, i, i + 1)} - at
            at = at | new
        at = at | skipped
    return len(name) in at
