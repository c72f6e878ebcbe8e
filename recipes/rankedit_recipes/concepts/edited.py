"""An edit of concepts: what was asked for, and the one map that does it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike

import torch
from torch import Tensor

import rankedit as rk
from rankedit_recipes.concepts.errors import ConceptsError
from rankedit_recipes.concepts.gating import Detectors, GatedMap
from rankedit_recipes.concepts.reading import Rows
from rankedit_recipes.concepts.requests import Request
from rankedit_recipes.concepts.settings import Settings
from rankedit_recipes.concepts.solving import Kept, solved
from rankedit_recipes.diffusion.parts import Parts
from rankedit_recipes.diffusion.statistics import text_digest
from rankedit_recipes.diffusion.text import Pipeline

_KIND = "concepts 1"
_GATE = ("read", "offset", "floor", "found")
_MAP, _HELD, _EMPTY = "map", "held", "empty"


@dataclass(frozen=True, eq=False)
class Edited:
    """Concepts edited together; comes from `concepts.edit` or `Edited.load`.

    Attributes:
        requests: in the order in which they were asked for, which changes nothing.
        settings: the method.
        map: M `[in, in]`, float64: every projection W becomes `W (I + M)`.
        rows: of each request that changes something, by its name.
        kept: what is held, and the statistics.
        texts: digest of the text encoders whose encodings these are.
        gate: which tokens it acts on; None for all, each as far as it is like a concept's.
    """

    requests: tuple[Request, ...]
    settings: Settings
    map: rk.LowRank
    rows: Mapping[str, Rows] = field(repr=False)
    kept: Kept = field(repr=False)
    texts: str = ""
    gate: Detectors | None = None

    @classmethod
    def solve(
        cls,
        requests: Sequence[Request],
        settings: Settings,
        rows: Mapping[str, Rows],
        kept: Kept,
        texts: str,
    ) -> Edited:
        """The edit of requests whose rows were read."""
        found = solved([rows[r.name] for r in requests if r.kind != "hold"], kept, settings)
        return cls(tuple(requests), settings, found, rows, kept, texts)

    def names(self) -> list[str]:
        """What is edited, by the first word of each request; what is held is not among them."""
        return [request.name for request in self.requests if request.kind != "hold"]

    def digest(self) -> str:
        """Of what it does to encodings: the map, and the gate's detectors and floors."""
        known = hashlib.sha256()
        gate = () if self.gate is None else (self.gate.read, self.gate.offset, self.gate.floor)
        for tensor in (self.map.up, self.map.down, *gate):
            known.update(tensor.detach().double().cpu().contiguous().numpy().tobytes())
        return known.hexdigest()[:16]

    def left(self, *names: str) -> list[Request]:
        """The requests without some.

        Raises:
            ConceptsError: no request of this name, or nothing is left.
        """
        unknown = [name for name in names if name not in self.names()]
        if unknown:
            raise ConceptsError(
                f"without: no request is called {', '.join(map(repr, unknown))}; the edit has "
                f"{', '.join(self.names())}."
            )
        left = [request for request in self.requests if request.name not in names]
        if all(request.kind == "hold" for request in left):
            raise ConceptsError(
                "without: nothing would be left; detach the edit, or remove its file, instead."
            )
        return left

    def without(self, *names: str) -> Edited:
        """The edit as if these had never been asked for, exactly.

        Raises:
            ConceptsError: no request of this name, nothing is left, or a loaded edit lacks the
                statistics that it was solved with.
        """
        left = self.left(*names)
        rows = {name: own for name, own in self.rows.items() if name not in names}
        found = Edited.solve(left, self.settings, rows, self.kept, self.texts)
        return replace(found, gate=self.gate and self.gate.of(found.names()))

    def edits(self, pipe: Pipeline) -> dict[str, rk.LowRank]:
        """By projection `ΔW = W M`, for the projections as they are now.

        They are run, never read: quantised and offloaded ones as any others. An edit that is
        attached already counts as theirs: the second one acts on what the first one gives.

        Raises:
            ConceptsError: the edit was made for another text encoder.
        """
        parts = Parts(pipe, entrance=True)
        self.check(parts)
        changed = self.map.up.T.contiguous()
        return {
            name: rk.LowRank(_outputs(layer, changed), self.map.down.to(torch.float64))
            for name, layer in self.layers(parts).items()
        }

    def layers(self, parts: Parts) -> dict[str, torch.nn.Module]:
        """The projections that are edited, by name."""
        targets = parts.targets
        names = targets.values if self.settings.projections == "values" else targets.names
        return {name: m for name, m in parts.projections.items() if name in names}

    def check(self, parts: Parts) -> None:
        """Refuse a pipeline with another text encoder, whose encodings mean something else.

        Raises:
            ConceptsError: the encoders differ.
        """
        if parts.targets.width != self.map.in_features:
            raise ConceptsError(
                f"concepts: the edit is of encodings {self.map.in_features} wide, but "
                f"{parts.denoiser.name} reads {parts.targets.width}; it was made for another kind "
                "of model."
            )
        if self.texts and text_digest(parts) != self.texts:
            raise ConceptsError(
                "concepts: the edit was made for another text encoder, in whose encodings its "
                "words are elsewhere; make it anew with concepts.edit on this pipeline."
            )

    def attach(self, pipe: Pipeline) -> rk.Attachment:
        """Put the edit beside the weights; a context manager, or closed by `detach()`.

        `attachment.set(strength=0.5)` changes how far it acts while it is attached.
        """
        static, gate = self.edits(pipe), self.gate
        gated = None if gate is None else {n: GatedMap(edit, gate) for n, edit in static.items()}
        return rk.attach(
            Parts(pipe, entrance=True).denoiser.plain, static if gated is None else gated
        )

    def fuse(self, pipe: Pipeline) -> None:
        """Put the edit into the weights; `rankedit.unfuse_` of the denoiser restores their bits."""
        self._check_static("fuse")
        rk.fuse_(Parts(pipe, entrance=True).denoiser.plain, self.edits(pipe))

    def export_lora(
        self, pipe: Pipeline, path: str | PathLike[str], *, layout: str = "kohya"
    ) -> None:
        """Write the edit as a LoRA, exactly; see `rankedit.to_lora` for the layouts."""
        self._check_static("export_lora")
        component = "" if layout == "peft" else ("unet" if hasattr(pipe, "unet") else "transformer")
        rk.to_lora(self.edits(pipe), path, layout=layout, component=component)

    def _check_static(self, call: str) -> None:
        if self.gate is not None:
            raise ConceptsError(
                f"{call}: the edit has a gate, which decides for each token and has no form as a "
                "weight; attach it, or make the edit without a gate."
            )

    def save(self, path: str | PathLike[str]) -> None:
        """Write a file: the map and every request's keys, of the size of some encodings.

        The statistics are not in it: `load` takes them, to undo and to add.
        """
        items: dict[str, rk.LowRank | Tensor] = {_MAP: self.map}
        for index, request in enumerate(self.requests):
            if request.name in self.rows:
                rows = self.rows[request.name]
                items |= {f"keys.{index}": rows.keys, f"guides.{index}": rows.guides}
                items[f"word.{index}"] = rows.word.double()
                if rows.block is not None:
                    items[f"block.{index}"] = rows.block.double()
        known = {_HELD: self.kept.held, _EMPTY: self.kept.empty, "gram": self.kept.gram}
        if self.gate is not None:
            known |= {f"gate.{name}": getattr(self.gate, name) for name in _GATE}
        items |= {name: rows for name, rows in known.items() if rows is not None}
        moment = self.kept.moment
        metadata = {
            "kind": _KIND,
            "requests": json.dumps([request.to_dict() for request in self.requests]),
            "settings": json.dumps(self.settings.to_dict()),
            "statistics": "" if moment is None else rk.Metric.from_moment(moment).fingerprint,
            "texts": self.texts,
            "gate": json.dumps([] if self.gate is None else self.gate.names),
        }
        rk.save(items, path, metadata=metadata, dtype=torch.float64)

    @classmethod
    def load(
        cls, path: str | PathLike[str], *, statistics: rk.SecondMoment | None = None
    ) -> Edited:
        """Read a file that `save` wrote.

        Args:
            path: the file.
            statistics: those that the edit was made with; needed only to change it.

        Raises:
            ConceptsError: the file holds something else, or was made with other statistics.
            EditFileError: the file is damaged.
        """
        items = rk.load(path)
        told = items.metadata
        edit = items.get(_MAP)
        if told.get("kind") != _KIND or not isinstance(edit, rk.LowRank):
            raise ConceptsError(
                f"load: '{path}' is no edit of concepts; those are written by concepts.edit(...)"
                ".save(path)."
            )
        if statistics is not None:
            given = rk.Metric.from_moment(statistics).fingerprint
            if given != told["statistics"]:
                raise ConceptsError(
                    f"load: '{path}' was made with other statistics than these "
                    f"({told['statistics'] or 'none'} and {given}); give the same captions."
                )
        requests = tuple(Request.from_dict(values) for values in json.loads(told["requests"]))
        tensors = {name: item for name, item in items.items() if isinstance(item, Tensor)}
        rows = {
            request.name: Rows(
                tensors[f"keys.{i}"],
                tensors[f"guides.{i}"],
                tensors[f"word.{i}"].bool(),
                tensors[f"block.{i}"].long() if f"block.{i}" in tensors else None,
            )
            for i, request in enumerate(requests)
            if f"keys.{i}" in tensors
        }
        kept = Kept(tensors.get(_HELD), tensors.get(_EMPTY), statistics, tensors.get("gram"))
        settings = Settings.from_dict(json.loads(told["settings"]))
        names = tuple(json.loads(told["gate"]))
        gate = Detectors(names, *(tensors[f"gate.{name}"] for name in _GATE)) if names else None
        return cls(requests, settings, edit, rows, kept, told["texts"], gate)


def _outputs(layer: torch.nn.Module, changed: Tensor) -> Tensor:
    """`W changedᵀ [out, r]`, float64, in the precision in which the layer computes."""
    return rk.linear_output(layer, changed).detach().cpu().double().T.contiguous()
