"""Sums of the shards of one corpus, added up: in any order, each once, and none missing."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rankedit.convergence import relative_change
from rankedit.errors import EditFileError, StatisticsError
from rankedit.files.format import EditFile
from rankedit.files.header import parse_json
from rankedit.files.storage import PathLike, load, load_texts, write
from rankedit.moments import SecondMoment
from rankedit.shapes import check_kind, check_path
from rankedit.sharding import encoded_mark

# Metadata of files: which shards one holds, what each of a sum held, and how much edits still
# change (by item, commas between).
SHARD, MERGED, CHANGES = "shard", "merged", "edits_change"
# Share of the data that convergence is judged by.
_TENTH = 0.1


@dataclass(frozen=True)
class _Part:
    """A file, by its metadata."""

    path: PathLike
    shards: tuple[int, ...]
    count: int
    corpus: str
    settings: Mapping[str, Any]
    texts: Mapping[str, str]
    base: Mapping[str, str]


def merge_shards(paths: Sequence[PathLike], *, partial: bool = False) -> EditFile:
    """Add the statistics of shards that were collected apart.

    The result does not depend on the order of the files, to the bit: they are added by the numbers
    of their shards. Sums of some shards can be merged with those of others. All marks are compared
    before any sums are read; beside the result, one file at a time is in memory.

    How much the data still change edits (`relative_change`) is measured anew where the files say
    it: against the sums without the last tenth of the shards, at least one. Where that is another
    share q of the vectors than a tenth, what is kept is the change times `√((1 − q)/(9 q))`, after
    the law that `relative_change` names: what a tenth would be expected to change.

    Args:
        paths: files of shards, such as `rankedit language stats --shard 3/64` writes.
        partial: whether shards may be missing.

    Returns:
        The moments by name, with the metadata of all; `save_merged` writes them.

    Raises:
        StatisticsError: a shard is there twice or missing, or the files are of other models,
            corpora or settings, or of no shards.
        EditFileError: a file is damaged.
    """
    check_kind("merge_shards", "partial", partial, bool)
    whole = isinstance(paths, Sequence) and not isinstance(paths, (str, bytes)) and len(paths) > 0
    if not whole or not all(isinstance(path, (str, os.PathLike)) for path in paths):
        raise StatisticsError(f"merge_shards: paths must be a list of files, got {paths!r:.80}.")
    # By shard, so that sums are rounded alike whatever the order of the files.
    parts = sorted(map(_part, paths), key=lambda part: part.shards)
    _check_alike(parts)
    _check_each_once(parts, partial=partial)
    measured = all(CHANGES in part.texts for part in parts)
    total, changes, held = _summed(parts, measured=measured)
    first = parts[0]
    shards = sorted(number for part in parts for number in part.shards)
    texts = {
        **first.texts,
        SHARD: encoded_mark(shards, first.count, first.corpus, first.settings),
        MERGED: json.dumps(held, separators=(",", ":")),
    }
    if measured:
        texts[CHANGES] = ",".join(f"{changes[name]:.3g}" for name in total)
    return EditFile(total, texts, first.base)


def save_merged(merged: EditFile, path: PathLike) -> None:
    """Write what `merge_shards` gave, with the marks of the model that its files have."""
    check_kind("save_merged", "merged", merged, EditFile)
    check_path("save_merged", "path", path)
    write("save_merged", dict(merged), path, merged.metadata, merged.base)


# ------------------------------------------------------------------------ what files say


def _part(path: PathLike) -> _Part:
    texts, base = load_texts(path)
    if SHARD not in texts:
        raise StatisticsError(
            f"merge_shards: '{path}' must be of a shard, and says of itself that it is of none; "
            "collect with --shard 3/64, or add two moments of different data as a + b."
        )
    try:
        mark: Any = parse_json(texts[SHARD])
        shards, count = tuple(mark["shards"]), mark["count"]
        whole = all(type(number) is int and 1 <= number <= count for number in shards)
        if not whole or not shards or sorted(set(shards)) != list(shards):
            raise ValueError(f"shards {shards!r:.80} of {count!r:.40}")
        return _Part(path, shards, count, str(mark["corpus"]), dict(mark["settings"]), texts, base)
    except (ValueError, KeyError, TypeError) as error:
        raise EditFileError(
            f"merge_shards: what '{path}' says of its shard is damaged: {error}; collect it again."
        ) from error


def _check_alike(parts: Sequence[_Part]) -> None:
    first = parts[0]
    for part in parts[1:]:
        for name, what in (("count", "number of shards"), ("corpus", "corpus")):
            if getattr(part, name) != getattr(first, name):
                raise _another(what, first, part, getattr(first, name), getattr(part, name))
        for name in sorted({*first.settings, *part.settings}):
            mine, theirs = (each.settings.get(name) for each in (first, part))
            if mine != theirs:
                raise _another(name, first, part, mine, theirs)
        if first.base.keys() != part.base.keys():
            raise _another("projections", first, part, sorted(first.base), sorted(part.base))
        if first.base != part.base:
            raise _another("model", first, part, *(min(p.base.values()) for p in (first, part)))


def _another(what: str, first: _Part, part: _Part, mine: object, theirs: object) -> StatisticsError:
    return StatisticsError(
        f"merge_shards: all files must have the same {what}, got {mine!s:.160} in '{first.path}' "
        f"and {theirs!s:.160} in '{part.path}'; leave one out, or collect it again."
    )


def _check_each_once(parts: Sequence[_Part], *, partial: bool) -> None:
    owners: dict[int, PathLike] = {}
    for part in parts:
        for number in part.shards:
            other = owners.setdefault(number, part.path)
            if other is not part.path:
                raise StatisticsError(
                    f"merge_shards: shard {number}/{part.count} is in '{other}' and in "
                    f"'{part.path}', and would count twice; leave one out."
                )
    missing = [number for number in range(1, parts[0].count + 1) if number not in owners]
    if missing and not partial:
        shown = ", ".join(map(str, missing[:8])) + (", ..." if len(missing) > 8 else "")
        raise StatisticsError(
            f"merge_shards: {len(missing)} of {parts[0].count} shards are missing: {shown}; "
            "collect them, or pass partial=True to do without."
        )


def _held(part: _Part, moments: Mapping[str, SecondMoment]) -> list[Any]:
    """Which shards with how many tokens: of a file that was merged itself, as it says."""
    if MERGED in part.texts:
        said: Any = parse_json(part.texts[MERGED])
        return list(said)
    tokens = max((moment.provenance.tokens for moment in moments.values()), default=0)
    return [[number, tokens] for number in part.shards]


# ------------------------------------------------------------------------ sums


def _summed(
    parts: Sequence[_Part], *, measured: bool
) -> tuple[dict[str, SecondMoment], dict[str, float], list[Any]]:
    """The sums, what the last tenth changed, and what each part held."""
    held: list[Any] = []
    boundary = len(parts) - max(1, round(_TENTH * len(parts)))
    total: dict[str, SecondMoment] = {}
    before: dict[str, SecondMoment] = {}
    for number, part in enumerate(parts):
        if measured and number == boundary:
            before = {name: moment.clone() for name, moment in total.items()}
        loaded = load(part.path)
        moments = {n: m for n, m in loaded.items() if isinstance(m, SecondMoment)}
        if len(moments) < len(loaded) or (total and moments.keys() != total.keys()):
            raise StatisticsError(
                f"merge_shards: '{part.path}' must hold moments of {sorted(total)[:4]}, got "
                f"{sorted(loaded)[:4]}; leave it out, or collect it again."
            )
        held += _held(part, moments)
        for name, moment in moments.items():
            total[name] = total[name].merge_(moment) if name in total else moment
    # Of a sum of one file nothing can be left out: what it says of itself stands.
    if not before:
        own = parts[0].texts.get(CHANGES, "").split(",")
        return total, {n: _number(text) for n, text in zip(total, own, strict=False)}, held
    changes = {name: _change(before[name], moment) for name, moment in total.items()}
    return total, changes, held


def _change(before: SecondMoment, after: SecondMoment) -> float:
    share = 1 - before.seen / after.seen
    if not before.count or not 0 < share < 1:
        return float("nan")
    expected: float = ((1 - share) / (9 * share)) ** 0.5
    return expected * relative_change(before, after)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")
