r"""Names of layers as PEFT's patterns mean them, in a time that no pattern can stretch.

PEFT takes the keys of `rank_pattern` and `alpha_pattern` for regular expressions and the first that
matches the end of a layer's name wins: `re.match(rf"(.*\.)?({key})$", name)`. Python's engine can
be kept busy for years by thirty characters from a file. Here a pattern maps the set of places where
it may begin to the set of places where it may end, so that no place is visited twice.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from rankedit.errors import EditFileError

_Ends = Callable[[str, frozenset[int]], frozenset[int]]
_LONGEST = 256
# What patterns of layer names are made of. Counted repetitions, look-arounds and back references
# have no place in it.
_TOKENS = re.compile(r"\\[.\-dw]|\[\^?[\w.\-]+\]|[\w\-/.()|?*+^$]")
_PLAIN = re.compile(r"\^?[\w\-/.]+")


class NamePatterns:
    """Values by pattern.

    Args:
        values: by pattern, in the order in which they are tried.
        what: the field's name in error messages.

    Raises:
        EditFileError: a pattern that is more than literals, sets, groups, `|`, `?`, `*` and `+`.
    """

    def __init__(self, values: Mapping[str, float], what: str) -> None:
        self._matchers = [(_matcher(key, what), value) for key, value in values.items()]
        # Work for each name, in plain comparisons: a walk costs about a hundred of them.
        self.cost = sum(1 if _PLAIN.fullmatch(key) else 100 for key in values)

    def first(self, name: str) -> float | None:
        """The value of the first pattern that matches the end of a name."""
        return next((value for matches, value in self._matchers if matches(name)), None)


def _matcher(key: str, what: str) -> Callable[[str], bool]:
    if _PLAIN.fullmatch(key):
        return _plain(key.removeprefix("^"), whole=key.startswith("^"))
    tokens = _TOKENS.findall(key)
    if "".join(tokens) == key and len(key) <= _LONGEST:
        try:
            pattern = _Parser(tokens).whole()
        except (LookupError, RecursionError, re.error):
            pass
        else:
            return lambda name: len(name) in pattern(name, _beginnings(name))
    raise EditFileError(
        f"{what} has the key {key!r:.80}, a regular expression beyond literals, sets, groups, "
        "'|', '?', '*' and '+'; write out the names of the layers that it means"
    )


def _plain(key: str, *, whole: bool) -> Callable[[str], bool]:
    """Most patterns are names: no other character than `.`, which means any, is special."""

    def matches(name: str) -> bool:
        start = len(name) - len(key)
        begins = start == 0 or (start > 0 and not whole and name[start - 1] == ".")
        return begins and all(a in (b, ".") for a, b in zip(key, name[start:], strict=True))

    return matches


def _beginnings(name: str) -> frozenset[int]:
    return frozenset({0, *(place + 1 for place, mark in enumerate(name) if mark == ".")})


class _Parser:
    """Recursive descent; what is not well-formed ends in a LookupError."""

    def __init__(self, tokens: list[str]) -> None:
        self._rest = [*reversed(tokens)]

    def whole(self) -> _Ends:
        pattern = self._alternatives()
        if self._rest:
            raise LookupError
        return pattern

    def _next_is(self, marks: str) -> bool:
        return bool(self._rest) and self._rest[-1] in marks

    def _alternatives(self) -> _Ends:
        options = [self._sequence()]
        while self._next_is("|"):
            self._rest.pop()
            options.append(self._sequence())
        return lambda name, at: frozenset().union(*(option(name, at) for option in options))

    def _sequence(self) -> _Ends:
        parts: list[_Ends] = []
        while self._rest and not self._next_is("|)"):
            parts.append(self._repeated())

        def ends(name: str, at: frozenset[int]) -> frozenset[int]:
            for part in parts:
                at = part(name, at)
            return at

        return ends

    def _repeated(self) -> _Ends:
        single = not self._next_is("(")
        part = self._part()
        if not self._next_is("?*+"):
            return part
        mark = self._rest.pop()
        # A repeated group could hold another one, whose rounds would multiply.
        if self._next_is("?*+") or not (single or mark == "?"):
            raise LookupError
        if mark == "?":
            return lambda name, at: at | part(name, at)
        return _many(part, least=0 if mark == "*" else 1)

    def _part(self) -> _Ends:
        token = self._rest.pop()
        if token == "(":
            inner = self._alternatives()
            if self._rest.pop() != ")":
                raise LookupError
            return inner
        if token in "^$":
            return lambda name, at: at & {len(name) if token == "$" else 0}
        if token in ")|?*+":
            raise LookupError
        one = re.compile(token).fullmatch
        return lambda name, at: frozenset(i + 1 for i in at if one(name[i : i + 1]))


def _many(part: _Ends, *, least: int) -> _Ends:
    def ends(name: str, at: frozenset[int]) -> frozenset[int]:
        found = at if least == 0 else frozenset()
        new = part(name, at)
        while new - found:
            found, new = found | new, part(name, new - found)
        return found

    return ends
