"""Calls of a denoiser: their arguments as leaves, and what two calls differ in.

Arguments may be nested, and rows of a batch may be the rows of a tensor or the entries of a list.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Path = tuple[str | int, ...]


@dataclass(frozen=True)
class Call:
    """Arguments of one call of a denoiser.

    Attributes:
        args: by position.
        kwargs: by name.
        rows: of the batch that it was made for.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    rows: int

    @property
    def _tree(self) -> dict[str | int, Any]:
        tree: dict[str | int, Any] = dict(enumerate(self.args))
        tree.update(self.kwargs)
        return tree

    def leaves(self, lists: frozenset[Path] = frozenset()) -> dict[Path, Any]:
        """What it was given, by where it stands.

        Args:
            lists: that stay whole, for they have an entry for each row.
        """
        return dict(_leaves(self._tree, (), lists))

    def at(self, path: Path) -> Any:  # noqa: ANN401 - any leaf
        """What stands in one place."""
        value: Any = self._tree
        for part in path:
            value = value[part]
        return value

    def lists(self, other: Call) -> frozenset[Path]:
        """Lists that have an entry for each row in both calls."""
        return frozenset(_lists(self._tree, other._tree, (), (self.rows, other.rows)))

    def filled(self, leaves: Mapping[Path, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments by position and by name, with other leaves in some places."""
        args = tuple(_filled(v, (i,), leaves) for i, v in enumerate(self.args))
        return args, {n: _filled(v, (n,), leaves) for n, v in self.kwargs.items()}


def _inside(value: Any) -> list[tuple[str | int, Any]]:  # noqa: ANN401
    if isinstance(value, Mapping):
        return list(value.items())
    return list(enumerate(value)) if type(value) in (list, tuple) else []


def _leaves(value: Any, path: Path, lists: frozenset[Path]) -> Iterator[tuple[Path, Any]]:  # noqa: ANN401
    inside = [] if path in lists else _inside(value)
    for name, inner in inside:
        yield from _leaves(inner, (*path, name), lists)
    if not inside:
        yield path, value


def _lists(one: Any, other: Any, path: Path, rows: tuple[int, int]) -> Iterator[Path]:  # noqa: ANN401
    listed = type(one) in (list, tuple) and type(one) is type(other)
    if listed and (len(one), len(other)) == rows:
        yield path
        return
    there = dict(_inside(other))
    for name, inner in _inside(one):
        if name in there:
            yield from _lists(inner, there[name], (*path, name), rows)


def _filled(value: Any, path: Path, leaves: Mapping[Path, Any]) -> Any:  # noqa: ANN401
    if path in leaves:
        return leaves[path]
    if isinstance(value, Mapping):
        return {name: _filled(inner, (*path, name), leaves) for name, inner in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_filled(v, (*path, i), leaves) for i, v in enumerate(value))
    return value


def named(path: Path) -> str:
    """A path as messages write it."""
    return ".".join(str(part) for part in path)


def count(value: Any) -> int | None:  # noqa: ANN401 - any leaf
    """How many rows a leaf may have: those of a tensor, or the entries of a list."""
    if isinstance(value, Tensor):
        return len(value) if value.ndim else None
    return len(value) if type(value) in (list, tuple) else None


def rows_of(value: Any, index: Tensor) -> Any:  # noqa: ANN401 - any leaf
    """Some rows of a leaf; None stays None."""
    if value is None:
        return None
    if isinstance(value, Tensor):
        return value[index.to(value.device)]
    return type(value)(value[i] for i in index.tolist())


def repeated(value: Any, times: int) -> Any:  # noqa: ANN401 - any leaf
    """The first row of a leaf, as many times."""
    return rows_of(value, torch.zeros(times, dtype=torch.long))


def same(one: Any, other: Any) -> bool:  # noqa: ANN401 - any leaf
    """Whether two leaves are equal."""
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        both = isinstance(one, Tensor) and isinstance(other, Tensor)
        return both and one.shape == other.shape and torch.equal(one, other)
    if type(one) in (list, tuple):
        alike = type(one) is type(other) and len(one) == len(other)
        return alike and all(same(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other)


def kept(value: Any) -> Any:  # noqa: ANN401 - any argument
    """A copy of what a call was given: models write into their tensors."""
    return _mapped(value, lambda x: x.detach().clone())


def _mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:  # noqa: ANN401
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {name: _mapped(inner, change) for name, inner in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_mapped(inner, change) for inner in value)
    return value


def padded(value: Any) -> Tensor:  # noqa: ANN401 - a leaf
    """Embeddings `[batch, tokens, width]`, of lists with zeros behind the shorter ones."""
    if isinstance(value, Tensor):
        return value
    return torch.nn.utils.rnn.pad_sequence(list(value), batch_first=True)


def lengths(embeds: Any) -> Tensor | None:  # noqa: ANN401 - a leaf
    """Which rows of padded embeddings are tokens, where they were a list; None of a tensor."""
    if isinstance(embeds, Tensor):
        return None
    return padded([torch.ones(len(row), 1) for row in embeds])[..., 0]


def stacked(value: Any) -> Tensor:  # noqa: ANN401 - a leaf
    """Rows of one shape as one tensor."""
    return value if isinstance(value, Tensor) else torch.stack(list(value))


def shaped_as(latents: Tensor, recorded: Any) -> Any:  # noqa: ANN401 - a leaf
    """Latents `[batch, ...]` as a leaf of the recorded kind: a tensor, or a list of its rows."""
    if isinstance(recorded, Tensor):
        return latents.to(recorded.dtype)
    return type(recorded)(latents.to(recorded[0].dtype).unbind())
