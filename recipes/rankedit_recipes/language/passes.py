"""Collecting statistics part by part, each kept until all that needs it is on the disk."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

import rankedit as rk
from rankedit.collecting.digests import model_digest
from rankedit_recipes.language.batching import Batches
from rankedit_recipes.language.errors import LanguageError

# The first nine tenths of the data, and the last one.
PARTS = 2


@dataclass(frozen=True)
class Passes:
    """The passes over the parts of the data, the first of which is kept if the second stops.

    Attributes:
        model: what reads the texts.
        names: of the projections.
        provenance: of all parts.
        length: tokens of a text at most.
        checkpoint: where to keep what is done; None to keep nothing.
        progress: whether to show it.
    """

    model: nn.Module
    names: Sequence[str]
    provenance: rk.Provenance
    length: int
    checkpoint: rk.Checkpoint | None
    progress: bool

    def collect(self, number: int, batches: Batches) -> dict[str, rk.SecondMoment]:
        """One part of the data, from where an earlier run stopped; nothing if it has no text."""
        if self.checkpoint is None:
            return self._pass(batches, None) if batches else {}
        # What a pass gave is kept until the other one is done too: a crash between costs nothing.
        # Each pass has a checkpoint of its own, which stays until what came of it is on the disk.
        done = self._part(number)
        suffix = "" if number == 0 else ".last"
        running = replace(self.checkpoint, path=f"{self.checkpoint.path}{suffix}", keep=True)
        if done.exists():
            moments, place = self._kept(done)
            batches.corpus.load_state_dict(place)
        # Whether there is any text is asked by reading some, of what is not begun yet.
        elif Path(running.path).exists() or batches:
            moments = self._pass(batches, running)
            reached = json.dumps(batches.corpus.state_dict())
            rk.save(moments, done, metadata={"length": str(self.length), "place": reached})
        else:
            return {}
        running.remove()
        return moments

    def _pass(
        self, batches: Batches, checkpoint: rk.Checkpoint | None
    ) -> dict[str, rk.SecondMoment]:
        try:
            return rk.collect(
                self.model, list(self.names), batches, provenance=self.provenance,
                checkpoint=checkpoint, progress=self.progress,
            )  # fmt: skip
        except KeyboardInterrupt as error:
            if self.checkpoint is None or checkpoint is None:
                raise
            # It names the file of this pass; what the call takes is the name of all.
            said = str(error).replace(str(checkpoint.path), str(self.checkpoint.path))
            raise KeyboardInterrupt(said) from error

    def _kept(self, file: Path) -> tuple[dict[str, rk.SecondMoment], dict[str, Any]]:
        try:
            kept = rk.load(file)
        except rk.EditFileError as error:
            raise LanguageError(
                f"collect_statistics: '{file}' is damaged: {error} Remove it to collect that part "
                "anew."
            ) from error
        moments = {n: m for n, m in kept.items() if isinstance(m, rk.SecondMoment)}
        # `collect` noted a mark of all weights.
        expected = replace(self.provenance, weights=model_digest(self.model))
        same = ("model", "weights", "tokenizer", "corpus")
        told = kept.metadata.get("length") == str(self.length) and "place" in kept.metadata
        wrong = not told or any(
            name not in moments
            or any(getattr(moments[name].provenance, f) != getattr(expected, f) for f in same)
            for name in self.names
        )
        if wrong:
            raise LanguageError(
                f"collect_statistics: '{file}' is of another model, tokenizer or text, or of other "
                "layers, lengths or shards; make the call that it belongs to, or remove it."
            )
        place: dict[str, Any] = json.loads(kept.metadata["place"])
        return {name: moments[name] for name in self.names}, place

    def joined(
        self, parts: Sequence[dict[str, rk.SecondMoment]]
    ) -> tuple[dict[str, rk.SecondMoment], dict[str, float]]:
        """The sums over all parts, and how much the last part changes edits made with them.

        The first part becomes the sum, and the others are emptied: at large widths, another copy
        of all would not fit.
        """
        moments, changes = _apart(parts[0]), {}
        for part in parts[1:]:
            for name, moment in moments.items():
                before, corpus = moment.clone(), moment.provenance.corpus
                moment.merge_(part.pop(name))
                # Merging joins the names of the parts, which are one corpus here.
                moment.provenance = replace(moment.provenance, corpus=corpus)
                changes[name] = rk.relative_change(before, moment)
        return moments, changes

    def files(self) -> list[Path]:
        """What was kept of the parts, where there is a checkpoint."""
        return [] if self.checkpoint is None else [self._part(number) for number in range(PARTS)]

    def _part(self, number: int) -> Path:
        path = "" if self.checkpoint is None else self.checkpoint.path
        return Path(f"{path}.part{number}")


def _apart(moments: dict[str, rk.SecondMoment]) -> dict[str, rk.SecondMoment]:
    """With a moment of its own for each name: projections that read the same share one."""
    seen: set[int] = set()
    found = {}
    for name, moment in moments.items():
        found[name] = moment.clone() if id(moment) in seen else moment
        seen.add(id(moment))
    return found
