"""The concepts that are in a pipeline, and what can be changed while they are there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from os import PathLike
from types import TracebackType
from typing import Any, Self
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

import rankedit as rk
from rankedit_recipes.diffusion.parts import Parts
from rankedit_recipes.diffusion.text import Pipeline
from rankedit_recipes.diffusion.words import NewWords
from rankedit_recipes.perfusion.applying.batches import (
    Batches,
    Given,
    first_of,
    number_of,
    row_count,
)
from rankedit_recipes.perfusion.applying.joining import (
    GateForm,
    Settings,
    check,
    check_compatible,
    columns,
    joint_edits,
    settings_of,
)
from rankedit_recipes.perfusion.applying.kept import Kept
from rankedit_recipes.perfusion.applying.locking import GlobalLock
from rankedit_recipes.perfusion.applying.weighting import Remembered, Weighted
from rankedit_recipes.perfusion.concept import Concept
from rankedit_recipes.perfusion.errors import PerfusionError
from rankedit_recipes.perfusion.locks import Lock

ConceptLike = Concept | str | PathLike[str]
in_use: WeakKeyDictionary[Pipeline, Applied] = WeakKeyDictionary()
"""What is in which pipeline."""


def check_free(pipe: Pipeline, call: str) -> None:
    """Refuse a pipeline that has concepts, or shares its denoiser with one that has.

    Two joint edits on one layer would each take the other's part of an encoding away.

    Raises:
        PerfusionError: names the concepts.
    """
    if pipe in in_use:
        raise PerfusionError(
            f"{call}: concepts are already in this pipeline ({', '.join(in_use[pipe].triggers)}); "
            "add to them with perfusion.load(pipe, ...), or take them out first with "
            "perfusion.unload(pipe)."
        )
    denoiser = Parts(pipe).denoiser.plain
    for other in in_use.values():
        if other.uses(denoiser):
            raise PerfusionError(
                f"{call}: this pipeline shares its {type(denoiser).__name__} with another one that "
                f"has concepts in it ({', '.join(other.triggers)}); take them out there first, or "
                "add these to them: perfusion.load(that_pipeline, ...)."
            )


class Applied:
    """Concepts in a pipeline. Made by `apply`."""

    def __init__(self, pipe: Pipeline, form: GateForm) -> None:
        self._model, self._form = Parts(pipe), form
        self._concepts: dict[str, Concept] = {}
        self._settings: dict[str, Settings] = {}
        self._parts: list[NewWords | Kept | rk.Attachment | GlobalLock | Batches] = []
        self._remembered: list[Remembered] = []
        self.edits: dict[str, rk.GatedEdit] = {}

    def uses(self, denoiser: nn.Module) -> bool:
        """Whether the concepts are in this network, wherever it is shared."""
        return self._model.denoiser.plain is denoiser

    @property
    def phrases(self) -> dict[str, str]:
        """What prompts say to have a concept, by its word."""
        return {word: concept.phrase for word, concept in self._concepts.items()}

    @property
    def triggers(self) -> tuple[str, ...]:
        """The words of the concepts that are in."""
        return tuple(self._concepts)

    @property
    def concepts(self) -> dict[str, Concept]:
        """The concepts that are in, by their words."""
        return dict(self._concepts)

    @property
    def settings(self) -> dict[str, Settings]:
        """What `set` changes, by word."""
        return dict(self._settings)

    @property
    def lock(self) -> Lock | None:
        """How keys are made; None if concepts of several locks are in, none of them global."""
        locks = {concept.lock for concept in self._concepts.values()}
        # One global lock is enough: it exchanges what the key projections of all concepts read.
        if self._form.lock or "global" in locks:
            return self._form.lock or "global"
        return locks.pop() if len(locks) == 1 else None

    def key_reads(self, read: Tensor) -> Tensor:
        """What key projections read where values read `[batch, tokens, in]`; differs if global."""
        lock = next((part for part in self._parts if isinstance(part, GlobalLock)), None)
        return read if lock is None else lock.key_reads(read)

    def as_set(self, edit: rk.GatedEdit) -> rk.GatedEdit:
        """An edit of this pipeline with the gate's settings as they are now."""
        numbers = columns(self._settings, self._concepts)
        bias, temperature = numbers["bias"], numbers["temperature"]
        if bias.ndim > 1 or temperature.ndim > 1:
            raise PerfusionError(
                "perfusion: the gate's settings are by row of a batch, and which row a prompt is "
                "that stands alone is not known; set one bias and one temperature first."
            )
        return edit.with_gate(rk.JointSigmoid(bias, temperature))

    def set(
        self,
        *triggers: str,
        bias: Given | None = None,
        temperature: Given | None = None,
        strength: Given | None = None,
    ) -> None:
        """Change settings in place: nothing is reloaded or compiled again.

        A list has one number for each row of the next calls' batch: for each prompt, or for each
        picture where `num_images_per_prompt` makes several of them. Guidance is accounted for. A
        call with another number of prompts is refused.

        Args:
            *triggers: only these concepts; all by default.
            bias: of the gate.
            temperature: of the gate; positive.
            strength: factor of what the concept changes.

        Raises:
            PerfusionError: an unknown word, a temperature that is not positive, or lists of
                different lengths.
        """
        self._check_known("set", chosen := triggers or self.triggers)
        given = {"bias": bias, "temperature": temperature, "strength": strength}
        changes = {name: number_of(value) for name, value in given.items() if value is not None}
        changed = {word: replace(self._settings[word], **changes) for word in chosen}
        check(changed)
        wanted = self._settings | changed
        self._listen(wanted)
        self._publish(wanted)
        self._settings = wanted

    def _publish(self, settings: Mapping[str, Settings]) -> None:
        last = self._parts[-1]
        # Written into the tensors that are in the layers: compiled code reads them there.
        pictures = last.pictures if isinstance(last, Batches) else 1
        numbers: dict[str, Any] = columns(settings, self._concepts, pictures)
        for part in self._parts:
            if isinstance(part, rk.Attachment):
                part.set(**numbers)
        self._model.denoiser.forget_caches()
        # What was computed with the old settings would be taken for the present.
        for kept in self._remembered:
            kept.forget()

    def _listen(self, settings: Mapping[str, Settings]) -> int:
        """Follow the batches of the pipeline's calls while settings are by row; how many rows."""
        rows = row_count(value for own in settings.values() for value in vars(own).values())
        last = self._parts[-1]
        if isinstance(last, Batches):
            last.rows = rows
            if not rows:
                last.remove()
                self._parts.pop()
        elif rows:
            # Last, for it wraps `encode_prompt` and is taken away first.
            call = Batches(self._model.text, rows, lambda: self._publish(self._settings))
            self._parts.append(call)
        return rows

    def load(self, concept: ConceptLike, **settings: Given) -> None:
        """Add a concept; those that are in keep their settings."""
        loaded = concept if isinstance(concept, Concept) else Concept.load(concept)
        if loaded.trigger in self._concepts:
            raise PerfusionError(
                f"load: a concept with the word {loaded.trigger!r} is in this pipeline already; "
                "give this one another: concept.renamed('<other>')."
            )
        unknown = sorted(settings.keys() - {field.name for field in fields(Settings)})
        if unknown:
            raise PerfusionError(
                f"load: unknown setting {unknown[0]!r}; a concept has a bias, a temperature and a "
                "strength of its own, while lock, normalised and floor are given to apply for all."
            )
        own = settings_of([loaded], self._form.lock, None, None, 1.0)[loaded.trigger]
        asked: dict[str, Any] = {name: number_of(given) for name, given in settings.items()}
        wanted = {**self._settings, loaded.trigger: replace(own, **asked)}
        self.replace_all([*self._concepts.values(), loaded], wanted)

    def unload(self, *triggers: str) -> None:
        """Take concepts out: those of the words given, or all."""
        self._check_known("unload", triggers)
        kept = [c for word, c in self._concepts.items() if triggers and word not in triggers]
        settings = {concept.trigger: self._settings[concept.trigger] for concept in kept}
        if kept:
            self.replace_all(kept, settings)
        else:
            self.detach()

    def detach(self) -> None:
        """Take everything out. Doing it again changes nothing."""
        self._clear()
        self._concepts, self._settings, self.edits = {}, {}, {}
        if in_use.get(self._model.pipe) is self:  # not what was applied since
            del in_use[self._model.pipe]

    def replace_all(self, concepts: Sequence[Concept], settings: Mapping[str, Settings]) -> None:
        """Exchange what is in; if that fails, what was in stays."""
        check(settings)
        # Two joint edits cannot be in at once, so the old one goes first and comes back if need be.
        before = (list(self._concepts.values()), self._settings)
        self._clear()
        try:
            self._install(concepts, dict(settings))
        # Ctrl-C, too: what was in must not be lost, nor be in by half.
        except BaseException:
            self._clear()
            if before[0]:
                self._install(*before)
            raise

    def _install(self, concepts: Sequence[Concept], settings: dict[str, Settings]) -> None:
        check_compatible(self._model, concepts)
        self._concepts = {concept.trigger: concept for concept in concepts}
        self._settings = settings
        # Locked keys are read before anything is installed: from the pipeline as it is.
        self.edits = joint_edits(self._model, concepts, settings, self._form)
        own = [first_of(settings[c.trigger].strength) for c in concepts for _ in range(c.vectors)]
        rows = {c.trigger: c.embeddings for c in concepts}
        self._parts.append(NewWords(self._model.text, rows))
        self._parts.append(Kept(self._model, self.triggers, self._model.projections.values()))
        # Keys and values may read two encodings: each kind remembers its own.
        keys, values = self._remembered = [Remembered(), Remembered()]
        named = self._model.targets.keys
        weighted = {
            name: Weighted(edit, torch.tensor(own), keys if name in named else values)
            for name, edit in self.edits.items()
        }
        self._parts.append(rk.attach(self._model.denoiser.module, weighted))
        self._model.denoiser.forget_caches()
        if self.lock == "global":
            # Last, for it wraps the `encode_prompt` that must know the new words.
            categories = {c.trigger: c.naming.origin for c in concepts}
            self._parts.append(GlobalLock(self._model, categories, self._similarity))
        if self._listen(settings):
            self._publish(settings)

    def _similarity(self, read: Tensor) -> Tensor:
        return next(iter(self.edits.values())).similarity(read)

    def _clear(self) -> None:
        # In reverse: the lock was put around what came before it.
        for part in reversed(self._parts):
            if isinstance(part, rk.Attachment):
                part.detach()
            else:
                part.remove()
        if self._parts:
            self._model.denoiser.forget_caches()
        self._parts, self._remembered = [], []

    def _check_known(self, call: str, triggers: Sequence[str]) -> None:
        for word in triggers:
            if word not in self._concepts:
                raise PerfusionError(
                    f"{call}: no concept with the word {word!r} is in this pipeline, but "
                    f"{list(self._concepts)}."
                )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.detach()
