"""Rows of the study: each is computed once, kept, and found again after an interruption."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rankedit_recipes.language.evaluating.scores import Scores

from rankedit.atomic import atomic_write


@dataclass(frozen=True)
class Row:
    """One row of results.

    Attributes:
        key: unique; also the name of its file.
        scores: by the number of edits, or by another label.
        numbers: anything else that was measured.
        settings: what it was computed with.
    """

    key: str
    scores: Mapping[str, Scores] = field(default_factory=dict)
    numbers: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def last(self) -> Scores:
        """The scores of the last label."""
        return list(self.scores.values())[-1]

    def as_json(self) -> dict[str, Any]:
        """Everything, as JSON can hold it."""
        return {
            "key": self.key,
            "scores": {label: found.as_json() for label, found in self.scores.items()},
            "numbers": dict(self.numbers),
            "settings": dict(self.settings),
        }

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Row:
        """What `as_json` gave."""
        scores = {label: Scores.from_json(part) for label, part in found["scores"].items()}
        return cls(found["key"], scores, found["numbers"], found["settings"])


class Rows:
    """The rows that were computed, in a folder.

    Args:
        folder: for a file of each row.
        digest: of what all rows depend on; a row of another one is computed again.
        only: beginnings of the keys to compute; the others are taken if they are there.
    """

    def __init__(self, folder: Path, digest: str, only: tuple[str, ...] = ()) -> None:
        self._folder, self._digest, self._only = folder, digest, only
        self.found: dict[str, Row] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def __call__(
        self, key: str, compute: Callable[[], Row], settings: Mapping[str, Any] | None = None,
        *, needed: bool = False,
    ) -> Row | None:  # fmt: skip
        """The row of a key: from its file, or computed now and kept; None if it is not asked for.

        Args:
            key: of the row.
            compute: makes the row.
            settings: what it depends on, beside the digest.
            needed: whether other rows depend on it, so that it is computed unasked.
        """
        text = json.dumps([self._digest, settings or {}], sort_keys=True, default=str)
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        file = self._folder / f"{key}.json"
        if file.exists():
            kept = json.loads(file.read_text(encoding="utf-8"))
            if kept["digest"] == digest:
                self.found[key] = Row.from_json(kept)
                return self.found[key]
        if self._only and not needed and not key.startswith(self._only):
            return None
        print(f"{key} ...", flush=True)
        start = time.perf_counter()
        row = compute()
        seconds = time.perf_counter() - start
        row = Row(key, row.scores, {**row.numbers, "seconds": seconds}, settings or {})
        with atomic_write(file) as temporary:
            temporary.write_text(json.dumps({"digest": digest, **row.as_json()}), encoding="utf-8")
        print(f"{key}: {seconds:.0f} s{_said(row)}", flush=True)
        self.found[key] = row
        return row


def _said(row: Row) -> str:
    names = ("efficacy", "paraphrase", "neighbourhood", "locality")
    return "".join(
        f"\n  {label}: " + ", ".join(f"{n} {s[n]:.1f}" for n in names if n in s.figures)
        for label, s in row.scores.items()
    )
