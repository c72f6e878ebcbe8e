"""Keys and values of facts as the tensors of one file: a row for each fact."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

import rankedit as rk
from rankedit_recipes.language.errors import LanguageError
from rankedit_recipes.language.requests import Request
from rankedit_recipes.language.searching.spreading import Facts

Rows = Mapping[str, Tensor]


def tensors_of(facts: Facts, layers: Sequence[str]) -> dict[str, Tensor]:
    """What a file holds: by projection, in their order, keys and what is lacking."""
    named = list(enumerate(layers))
    tensors = {f"keys.{number}": facts.keys[name] for number, name in named}
    return tensors | {f"lacking.{number}": facts.lacking[name] for number, name in named}


def load_rows(file: Path, layers: int, call: str) -> tuple[Rows, str]:
    """The tensors of a file, and its SHA-256; `call` is for messages.

    Raises:
        LanguageError: it cannot be read, or holds something else.
    """
    try:
        loaded, digest = rk.load(file), digest_of(file)
    except (OSError, rk.EditFileError) as error:
        raise LanguageError(f"{call}: '{file}' cannot be read: {error}") from error
    expected = {f"{kind}.{i}" for kind in ("keys", "lacking") for i in range(layers)}
    rows = {n: t for n, t in loaded.items() if isinstance(t, Tensor) and t.ndim == 2}
    if rows.keys() != loaded.keys() or rows.keys() != expected:
        raise LanguageError(
            f"{call}: '{file}' must hold {sorted(expected)}, got {sorted(loaded)[:8]}."
        )
    return rows, digest


def digest_of(file: Path) -> str:
    """SHA-256 of a file's bytes."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def facts_in(
    rows: Rows, places: Sequence[tuple[int, Request]], layers: Sequence[str], call: str
) -> Facts:
    """Facts of one file by their rows; `call` is for messages.

    Raises:
        LanguageError: there is no such row.
    """
    count = min(len(tensor) for tensor in rows.values())
    for row, request in places:
        if row >= count:
            raise LanguageError(
                f"{call}: {request.label!r} is to be row {row} of a file that has {count}; "
                "take the folder from a copy."
            )
    chosen = [row for row, _ in places]
    keys, lacking = (
        {name: rows[f"{kind}.{i}"][chosen] for i, name in enumerate(layers)}
        for kind in ("keys", "lacking")
    )
    return Facts(tuple(request for _, request in places), keys, lacking, {})


def joined(facts: Sequence[Facts]) -> Facts:
    """Facts of several files as facts together: what enters them does so once."""
    named = facts[0].keys
    keys = {name: torch.cat([fact.keys[name] for fact in facts]) for name in named}
    lacking = {name: torch.cat([fact.lacking[name] for fact in facts]) for name in named}
    return Facts(tuple(r for fact in facts for r in fact.requests), keys, lacking, {})
