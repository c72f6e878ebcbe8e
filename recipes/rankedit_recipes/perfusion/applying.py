"""Concepts in a pipeline: put in, adjusted while they are there, and taken out without a trace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from os import PathLike
from types import TracebackType
from typing import Any, Self, get_args
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

import rankedit as rk
from rankedit_recipes.perfusion.concept import Concept, HeldLock, Lock
from rankedit_recipes.perfusion.denoising import denoiser_of
from rankedit_recipes.perfusion.errors import PerfusionError
from rankedit_recipes.perfusion.joining import (
    GateForm,
    Numbers,
    Settings,
    check,
    check_compatible,
    columns,
    joint_edits,
    settings_of,
)
from rankedit_recipes.perfusion.locking import GlobalLock
from rankedit_recipes.perfusion.text import Pipeline
from rankedit_recipes.perfusion.weighting import Weighted
from rankedit_recipes.perfusion.words import NewWords

ConceptLike = Concept | str | PathLike[str]


def apply(
    pipe: Pipeline,
    concepts: ConceptLike | Sequence[ConceptLike],
    *,
    bias: Numbers = None,
    temperature: Numbers = None,
    strength: Numbers = 1.0,
    lock: HeldLock | None = None,
    normalised: bool = False,
    floor: float | None = None,
) -> Applied:
    """Put concepts into a pipeline, merged by an exact joint projection.

    Prompts may then say `Concept.phrase`: the trigger word, and the category behind it if the word
    was learned as an adjective. Weights, `state_dict` and pictures of the pipeline are
    bit for bit what they were once the concepts are taken out again.

    Args:
        pipe: a pipeline with cross-attention on its text; also image to image, inpainting,
            ControlNet, offloaded or compiled.
        concepts: concepts or their files.
        bias: of the gates: higher lets less of the concept through. One number, one for each
            concept, or by trigger word. By default each concept's own.
        temperature: of the gates, likewise.
        strength: factor of what each concept changes, likewise; 0 switches it off.
        lock: `"local"`: the key at the concept's word is that of the word it stands for (the
            category, or the adjective); `"global"`: keys of the whole prompt are those of the
            prompt with that word; by default as each was learned.
            Either holds learned keys too. With `"global"` the gates' defaults are those of the
            global lock.
        normalised: gates that are exactly 0 away from the concept and 1 at it; the paper's leave
            about 1 % of the concept everywhere.
        floor: dead zone: where no concept's similarity reaches it, nothing at all is changed.

    Returns:
        A context manager; or call `set`, `load`, `unload` and `detach` on it by hand.

    Raises:
        PerfusionError: concepts are in already, belong to a model of another kind, share a word,
            or cannot be told apart.
    """
    if pipe in _active:
        raise PerfusionError(
            "apply: concepts are already in this pipeline; add to them with perfusion.load(pipe, "
            "...), or take them out with perfusion.unload(pipe) first."
        )
    if lock not in (None, *get_args(HeldLock)):
        raise PerfusionError(
            "apply: lock must be 'local', 'global' or None, for what each concept was learned "
            f"with, got {lock!r}."
        )
    listed = [concepts] if isinstance(concepts, (Concept, str, PathLike)) else list(concepts)
    loaded = [c if isinstance(c, Concept) else Concept.load(c) for c in listed]
    form = GateForm(lock, normalised, floor)
    applied = Applied(pipe, form)
    applied.replace_all(loaded, settings_of(loaded, lock, bias, temperature, strength))
    _active[pipe] = applied
    return applied


_active: WeakKeyDictionary[Pipeline, Applied] = WeakKeyDictionary()


def active(pipe: Pipeline) -> Applied:
    """The concepts that are in a pipeline.

    Raises:
        PerfusionError: there are none.
    """
    if pipe not in _active:
        raise PerfusionError(
            "perfusion: no concept is in this pipeline; put one in with perfusion.apply or load."
        )
    return _active[pipe]


def load(pipe: Pipeline, concept: ConceptLike, **settings: float) -> Applied:
    """Add a concept to a pipeline; as `pipe.load_lora_weights` does for LoRAs.

    Args:
        pipe: the pipeline.
        concept: a concept or its file.
        **settings: `bias`, `temperature`, `strength` of this concept.
    """
    if pipe not in _active:
        return apply(pipe, concept, **settings)  # type: ignore[arg-type]
    applied = _active[pipe]
    applied.load(concept, **settings)
    return applied


def unload(pipe: Pipeline, *triggers: str) -> None:
    """Take concepts out of a pipeline: those of the words given, or all.

    Raises:
        PerfusionError: no such concept is in it.
    """
    active(pipe).unload(*triggers)


def set_concepts(pipe: Pipeline, *triggers: str, **settings: float) -> None:
    """Change `bias`, `temperature` or `strength` of concepts in a pipeline; see `Applied.set`."""
    active(pipe).set(*triggers, **settings)


class Applied:
    """Concepts in a pipeline. Made by `apply`."""

    def __init__(self, pipe: Pipeline, form: GateForm) -> None:
        self._pipe, self._form = pipe, form
        self._concepts: dict[str, Concept] = {}
        self._settings: dict[str, Settings] = {}
        self._parts: list[NewWords | rk.Attachment | GlobalLock] = []
        self.edits: dict[str, rk.GatedEdit] = {}

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
        if self._form.lock or "global" in locks:
            return self._form.lock or "global"
        return locks.pop() if len(locks) == 1 else None

    def key_reads(self, read: Tensor) -> Tensor:
        """What key projections read where values read `[batch, tokens, in]`; differs if global."""
        locks = [part for part in self._parts if isinstance(part, GlobalLock)]
        return locks[0].key_reads(read) if locks else read

    def as_set(self, edit: rk.GatedEdit) -> rk.GatedEdit:
        """An edit of this pipeline with the gate's settings as they are now."""
        numbers = columns(self._settings)
        gate = rk.Sigmoid(numbers["bias"], numbers["temperature"])
        return edit.with_gate(gate, normalised=self._form.normalised, floor=self._form.floor)

    def set(
        self,
        *triggers: str,
        bias: float | None = None,
        temperature: float | None = None,
        strength: float | None = None,
    ) -> None:
        """Change settings in place: nothing is reloaded or compiled again.

        Args:
            *triggers: only these concepts; all by default.
            bias: of the gate.
            temperature: of the gate; positive.
            strength: factor of what the concept changes.

        Raises:
            PerfusionError: an unknown word, or a temperature that is not positive.
        """
        chosen = triggers or self.triggers
        self._check_known("set", chosen)
        given = {"bias": bias, "temperature": temperature, "strength": strength}
        changes = {name: value for name, value in given.items() if value is not None}
        changed = {word: replace(self._settings[word], **changes) for word in chosen}
        check(changed)
        self._settings |= changed
        attachment = next(part for part in self._parts if isinstance(part, rk.Attachment))
        numbers: dict[str, Any] = columns(self._settings)
        attachment.set(**numbers)

    def load(self, concept: ConceptLike, **settings: float) -> None:
        """Add a concept; those that are in keep their settings."""
        loaded = concept if isinstance(concept, Concept) else Concept.load(concept)
        if loaded.trigger in self._concepts:
            raise PerfusionError(
                f"load: a concept with the word {loaded.trigger!r} is in this pipeline already; "
                "give this one another: concept.renamed('<other>')."
            )
        own = settings_of([loaded], self._form.lock, None, None, 1.0)[loaded.trigger]
        wanted = {**self._settings, loaded.trigger: replace(own, **settings)}
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
        if _active.get(self._pipe) is self:
            del _active[self._pipe]

    def replace_all(self, concepts: Sequence[Concept], settings: Mapping[str, Settings]) -> None:
        """Exchange what is in; if that fails, what was in stays."""
        check(settings)
        before = (list(self._concepts.values()), self._settings)
        self._clear()
        try:
            self._install(concepts, dict(settings))
        except BaseException:
            self._clear()
            if before[0]:
                self._install(*before)
            raise

    def _install(self, concepts: Sequence[Concept], settings: dict[str, Settings]) -> None:
        check_compatible(self._pipe, concepts)
        self._concepts = {concept.trigger: concept for concept in concepts}
        self._settings = settings
        # Locked keys are read before anything is installed: from the pipeline as it is.
        self.edits = joint_edits(self._pipe, concepts, settings, self._form)
        strengths = torch.tensor([settings[c.trigger].strength for c in concepts])
        rows = {c.trigger: c.embeddings for c in concepts}
        self._parts.append(NewWords(self._pipe, rows))
        weighted = {name: Weighted(edit, strengths) for name, edit in self.edits.items()}
        self._parts.append(rk.attach(denoiser_of(self._pipe), weighted))
        if self.lock == "global":
            categories = {c.trigger: c.naming.origin for c in concepts}
            self._parts.append(GlobalLock(self._pipe, categories))

    def _clear(self) -> None:
        for part in reversed(self._parts):
            if isinstance(part, rk.Attachment):
                part.detach()
            else:
                part.remove()
        self._parts = []

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
