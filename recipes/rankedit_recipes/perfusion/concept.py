"""A learned concept, and the one small file that it is kept in."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass, field, replace
from os import PathLike
from typing import get_args

import torch
from torch import Tensor

import rankedit as rk
from rankedit_recipes.perfusion.errors import PerfusionError
from rankedit_recipes.perfusion.locks import PRESETS, Lock
from rankedit_recipes.perfusion.naming import Naming
from rankedit_recipes.perfusion.prompts import TEMPLATES

FORMAT = "1"
# Of words of several vectors, which readers of version 1 would refuse as several concepts.
_SEVERAL = "2"
_EMBEDDING = "embedding"


@dataclass(frozen=True, eq=False)
class Concept:
    """What was learned of a few photos.

    Attributes:
        trigger: the word for it in prompts.
        category: what kind of thing it is, in words that the model knows.
        key: `i* [in]`: the encoding at which the gate opens. Of a word of several vectors here and
            below one row for each, `[vectors, in]`.
        image: `i* A [in]`: its image under the metric of the statistics.
        targets: by name of a projection the learned output `[out]`. What is locked is made of the
            word that the trigger stands for when the concept is applied.
        embeddings: of the word, one `[width]` for each text encoder.
        adjective: empty, or the word whose place before the category the trigger takes.
        lock: how keys are made.
        bias: the gate's, when generating.
        temperature: the gate's, when generating.
        floor: the dead zone's, when generating: tokens whose similarity is below it are left
            exactly as they are. None for no dead zone.
        templates: prompts in which the category is read.
        statistics: fingerprint of the metric; concepts of different statistics cannot be merged.
        base: fingerprint of the projections that it was learned on.
        sketch: `rk.Sketch` of them in letters, which tells their weights in another precision from
            other weights; empty where it is not known.
        notes: further provenance in words.
        preview: a small picture file, or nothing.
    """

    trigger: str
    category: str
    key: Tensor
    image: Tensor
    targets: Mapping[str, Tensor]
    embeddings: Sequence[Tensor]
    adjective: str = ""
    lock: Lock = "local"
    bias: float = PRESETS["local"].bias
    temperature: float = PRESETS["local"].temperature
    floor: float | None = PRESETS["local"].floor
    templates: tuple[str, ...] = TEMPLATES
    statistics: str = ""
    base: str = ""
    sketch: str = ""
    notes: Mapping[str, str] = field(default_factory=dict)
    preview: bytes = b""

    def save(self, path: str | PathLike[str], *, dtype: torch.dtype = torch.float16) -> None:
        """Write one file: 29 KB for Stable Diffusion 1.5, 185 KB for XL, for each vector.

        Args:
            path: the file; its folder must exist.
            dtype: how to store tensors. Half precision has a relative error of 3e-4.
        """
        gate = rk.Sigmoid(self.bias, self.temperature)
        items: dict[str, rk.GatedEdit | Tensor] = {
            name: rk.GatedEdit.from_images(
                self.keys,
                torch.atleast_2d(target),
                # i* under the metric is kept, and no metric: 768² numbers of it would be 2.4 MB.
                torch.atleast_2d(self.image),
                gate,
                floor=self.floor,
                statistics=self.statistics,
            )
            for name, target in self.targets.items()
        }
        for index, row in enumerate(self.embeddings):
            items[f"{_EMBEDDING}.{index}"] = row.to(dtype)
        rk.save(items, path, metadata=self._metadata(), dtype=dtype)

    def _metadata(self) -> dict[str, str]:
        texts = {
            "perfusion": FORMAT if self.vectors == 1 else _SEVERAL,
            "vectors": "" if self.vectors == 1 else str(self.vectors),
            "trigger": self.trigger,
            "category": self.category,
            "adjective": self.adjective,
            "lock": self.lock,
            "base": self.base,
            "sketch": self.sketch,
            **{f"note.{name}": text for name, text in self.notes.items()},
        }
        if self.templates != TEMPLATES:
            # Only where they differ from the usual ones: files are small, and most have these.
            texts["templates"] = "|".join(self.templates)
        if self.preview:
            texts["preview"] = base64.b64encode(self.preview).decode()
        # An empty text is as good as none, and `load` reads both alike.
        return {name: text for name, text in texts.items() if text}

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Concept:
        """Read a concept file.

        Raises:
            PerfusionError: a file of another kind.
            EditFileError: damaged or hostile; see `rankedit.load`.
        """
        loaded = rk.load(path)
        texts = loaded.metadata
        edits = {name: item for name, item in loaded.items() if isinstance(item, rk.GatedEdit)}
        _check_kind(path, texts, edits)
        # Key, image and gate are the same in all projections: any edit has them.
        first = next(iter(edits.values()))
        if not isinstance(first.gate, rk.Sigmoid):
            raise PerfusionError(f"Concept.load: '{path}' has a gate that is no sigmoid.")
        count = _check_vectors(path, texts, edits)
        # Notes have a prefix of their own, so that none can stand for a field.
        notes = {k.removeprefix("note."): v for k, v in texts.items() if k.startswith("note.")}
        templates = texts.get("templates")
        return cls(
            trigger=texts["trigger"],
            category=texts["category"],
            key=unstacked(first.keys),
            image=unstacked(first.images),
            targets={name: unstacked(edit.targets) for name, edit in edits.items()},
            embeddings=_embeddings(path, loaded, count),
            adjective=texts.get("adjective", ""),
            lock=_lock(path, texts["lock"]),
            bias=float(first.gate.bias),
            temperature=float(first.gate.temperature),
            floor=first.floor,
            templates=tuple(templates.split("|")) if templates else TEMPLATES,
            statistics=first.statistics,
            base=texts.get("base", ""),
            sketch=_sketch(path, texts.get("sketch", "")),
            notes=notes,
            preview=_preview(path, texts.get("preview", "")),
        )

    @property
    def vectors(self) -> int:
        """How many vectors its word has."""
        return len(self.keys)

    @property
    def keys(self) -> Tensor:
        """`i* [vectors, in]` of each of them."""
        return torch.atleast_2d(self.key)

    @property
    def naming(self) -> Naming:
        """Its words."""
        return Naming(self.trigger, self.category, self.adjective)

    @property
    def phrase(self) -> str:
        """What prompts say to have it: the trigger, and the category after an adjective."""
        return self.naming.phrase

    @property
    def gate(self) -> str:
        """Its settings of the gate, in words."""
        floor = "none" if self.floor is None else f"{self.floor:g}"
        return f"bias {self.bias:g}, temperature {self.temperature:g}, dead zone {floor}"

    def renamed(self, trigger: str) -> Concept:
        """The same concept under another word."""
        return replace(self, trigger=trigger)


def _check_kind(path: str | PathLike[str], texts: Mapping[str, str], edits: Sized) -> None:
    # Whatever else is empty is not written.
    lacking = [name for name in ("trigger", "category", "lock") if not texts.get(name)]
    version = texts.get("perfusion")
    if version is None:
        raise PerfusionError(
            f"Concept.load: '{path}' is no concept file; `rankedit info {path}` says what it holds."
        )
    if version not in (FORMAT, _SEVERAL) or lacking or not edits:
        raise PerfusionError(
            f"Concept.load: '{path}' is no concept file of version {_SEVERAL} or version {FORMAT}: "
            f"its version is "
            f"{version!r}, it lacks {lacking or 'nothing'} and has {len(edits)} targets; write it "
            "again with this version of rankedit."
        )


def _check_vectors(
    path: str | PathLike[str], texts: Mapping[str, str], edits: Mapping[str, rk.GatedEdit]
) -> int:
    """How many vectors the word has; all projections must have a key for each."""
    several = texts.get("vectors", "") if texts["perfusion"] == _SEVERAL else "1"
    counts = {len(edit.keys) for edit in edits.values()}
    if counts != {int(several) if several.isdecimal() else 0}:
        # Locked keys are made of the model's own weights, so that concepts are joined where they
        # are applied and never in a file.
        raise PerfusionError(
            f"Concept.load: '{path}' has {max(counts)} keys for one projection and a word of "
            f"{several or 'unknown'} vectors, but a concept file holds one concept; give each "
            "concept's own file, and apply them together."
        )
    return counts.pop()


def unstacked(rows: Tensor) -> Tensor:
    """A row for each vector; of a single one the vector itself."""
    return rows[0] if len(rows) == 1 else rows


def _sketch(path: str | PathLike[str], text: str) -> str:
    try:
        # Read now, so that a damaged one is refused here and not when it is compared.
        return rk.Sketch.parse(text).text() if text else ""
    except ValueError as error:
        raise PerfusionError(f"Concept.load: '{path}' has a damaged sketch: {error}") from error


def _embeddings(
    path: str | PathLike[str], items: Mapping[str, object], count: int
) -> tuple[Tensor, ...]:
    rows: list[Tensor] = []
    while isinstance(row := items.get(f"{_EMBEDDING}.{len(rows)}"), Tensor):
        if row.ndim != (1 if count == 1 else 2) or (count > 1 and len(row) != count):
            raise PerfusionError(
                f"Concept.load: '{path}': embeddings must be "
                f"{'vectors' if count == 1 else f'{count} rows'}, got {list(row.shape)}."
            )
        # The text encoder's table decides the precision when the word is put in.
        rows.append(row.float())
    return tuple(rows)


def _lock(path: str | PathLike[str], name: str) -> Lock:
    for lock in get_args(Lock):
        if name == lock:
            return lock
    raise PerfusionError(f"Concept.load: '{path}': unknown lock {name!r}.")


def _preview(path: str | PathLike[str], text: str) -> bytes:
    try:
        # Without `validate` Python skips whatever is no letter of base64.
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise PerfusionError(f"Concept.load: '{path}': the preview is damaged.") from error
