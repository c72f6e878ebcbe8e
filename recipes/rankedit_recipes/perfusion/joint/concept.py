"""A concept for joint attention, and the one small file that it is kept in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from os import PathLike

import torch
from torch import Tensor

import rankedit as rk
from rankedit_recipes.perfusion.errors import PerfusionError

FORMAT = "1"
KEY_STRENGTH = 0.5
"""How far learned keys act when pictures are made: 0 is the lock, 1 is free."""
_KINDS = ("values", "keys")


@dataclass(frozen=True, eq=False)
class JointConcept:
    """What was learned of a few photos, for a model whose text and picture attend together.

    Attributes:
        trigger: the word for it in prompts.
        category: what kind of thing it is, one word that the model knows.
        values: by projection what is added at the word's rows, `[knots, out]` over the time.
        keys: the same of key projections; empty where none were learned.
        base: fingerprint of the projections that it was learned on.
        notes: further provenance in words.
    """

    trigger: str
    category: str
    values: Mapping[str, Tensor]
    keys: Mapping[str, Tensor] = field(default_factory=dict)
    base: str = ""
    notes: Mapping[str, str] = field(default_factory=dict)

    @property
    def knots(self) -> int:
        """Times at which values and keys are given."""
        return len(next(iter(self.values.values())))

    def save(self, path: str | PathLike[str], *, dtype: torch.dtype = torch.float16) -> None:
        """Write one file: 295 KB for SD3-medium with four knots, twice that with keys.

        Args:
            path: the file; its folder must exist.
            dtype: how to store tensors.
        """
        items = {
            f"{kind}.{name}": tensor.to(dtype)
            for kind in _KINDS
            for name, tensor in getattr(self, kind).items()
        }
        texts = {
            "perfusion.joint": FORMAT,
            "trigger": self.trigger,
            "category": self.category,
            "base": self.base,
            **{f"note.{name}": text for name, text in self.notes.items()},
        }
        rk.save(items, path, metadata={name: text for name, text in texts.items() if text})

    @classmethod
    def load(cls, path: str | PathLike[str]) -> JointConcept:
        """Read a concept file.

        Raises:
            PerfusionError: a file of another kind.
            EditFileError: damaged or hostile; see `rankedit.load`.
        """
        loaded = rk.load(path)
        texts = loaded.metadata
        if texts.get("perfusion.joint") != FORMAT or not (
            texts.get("trigger") and texts.get("category")
        ):
            raise PerfusionError(
                f"JointConcept.load: '{path}' is no concept file for joint attention of version "
                f"{FORMAT}; `rankedit info {path}` says what it holds."
            )
        parts: dict[str, dict[str, Tensor]] = {kind: {} for kind in _KINDS}
        for name, item in loaded.items():
            kind, _, place = name.partition(".")
            if kind not in parts or not isinstance(item, Tensor) or item.ndim != 2:
                raise PerfusionError(
                    f"JointConcept.load: '{path}' holds {name!r}, which is neither values nor keys "
                    "[knots, out]; write it again with this version of rankedit."
                )
            parts[kind][place] = item.float()
        knots = {len(tensor) for part in parts.values() for tensor in part.values()}
        if not parts["values"] or len(knots) != 1:
            raise PerfusionError(
                f"JointConcept.load: '{path}' must hold values, all with as many knots, got "
                f"{len(parts['values'])} with {sorted(knots)}; write it again."
            )
        notes = {k.removeprefix("note."): v for k, v in texts.items() if k.startswith("note.")}
        base = texts.get("base", "")
        return cls(texts["trigger"], texts["category"], **parts, base=base, notes=notes)

    def renamed(self, trigger: str) -> JointConcept:
        """The same concept under another word."""
        return replace(self, trigger=trigger)
