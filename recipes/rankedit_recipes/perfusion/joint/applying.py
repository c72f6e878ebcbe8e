"""Concepts for joint attention in a pipeline: put in, set while they are there, and taken out."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from os import PathLike
from types import TracebackType
from typing import Self
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

import rankedit as rk
from rankedit.interrupt import completely
from rankedit_recipes.diffusion.parts import Parts
from rankedit_recipes.diffusion.text import Pipeline, word_tokens
from rankedit_recipes.diffusion.words import NewWords, embedding_of
from rankedit_recipes.perfusion.applying.applied import check_free
from rankedit_recipes.perfusion.applying.kept import Kept
from rankedit_recipes.perfusion.errors import PerfusionError
from rankedit_recipes.perfusion.joint.concept import KEY_STRENGTH, JointConcept
from rankedit_recipes.perfusion.joint.places import base_of, joint_readers, placed_edits
from rankedit_recipes.perfusion.joint.stream import Stream

JointLike = JointConcept | str | PathLike[str]
_in_use: WeakKeyDictionary[Pipeline, AppliedJoint] = WeakKeyDictionary()


def check_bare(pipe: Pipeline, call: str) -> None:
    """Refuse a pipeline that has concepts, or shares its denoiser with one that has.

    Raises:
        PerfusionError: says which.
    """
    check_free(pipe, call)
    denoiser = Parts(pipe).denoiser.plain
    for applied in _in_use.values():
        if applied.parts.denoiser.plain is denoiser:
            raise PerfusionError(
                f"{call}: concepts are already in this denoiser ({', '.join(applied.triggers)}); "
                "take them out first: applied.detach()."
            )


def apply_joint(
    pipe: Pipeline,
    concepts: JointLike | Sequence[JointLike],
    *,
    strength: float = 1.0,
    keys: float = KEY_STRENGTH,
) -> AppliedJoint:
    """Put concepts into a pipeline with joint attention.

    The denoiser is given every prompt in the categories' words; each concept adds its values at its
    own rows, and its keys as far as asked. Other prompts give the same pictures to the bit.

    Args:
        pipe: the pipeline; prompts must be given as texts.
        concepts: concepts or their files; any number, each with its own word.
        strength: factor of all that is added; 0 for the category.
        keys: how far learned keys act: 0 is the lock, 1 is free. More is nearer to the photos, less
            follows the prompt better.

    Returns:
        A context manager; or call `set` and `detach` on it by hand.

    Raises:
        PerfusionError: concepts are in already, are of another kind of model, or share a word.
    """
    check_bare(pipe, "apply_joint")
    # A name of a file is a sequence too: of letters.
    single = isinstance(concepts, (JointConcept, str, PathLike))
    if not single and not isinstance(concepts, Iterable):
        raise PerfusionError(
            f"apply_joint: concepts must be joint concepts or their files, got {concepts!r:.80}; "
            "perfusion.learn_joint and JointConcept.load give one."
        )
    listed: Sequence[JointLike] = [concepts] if single else list(concepts)  # type: ignore[list-item, arg-type]
    loaded = [c if isinstance(c, JointConcept) else JointConcept.load(c) for c in listed]
    applied = AppliedJoint(Parts(pipe), loaded, strength=strength, keys=keys)
    _in_use[pipe] = applied
    return applied


class AppliedJoint:
    """Concepts in a pipeline. Made by `apply_joint`."""

    def __init__(
        self, parts: Parts, concepts: Sequence[JointConcept], *, strength: float, keys: float
    ) -> None:
        self.parts = parts
        self.concepts = {concept.trigger: concept for concept in concepts}
        self._check(concepts)
        self.set(strength=strength, keys=keys)
        self._out: list[Callable[[], None]] = []
        try:
            self._install()
        # Ctrl-C, too: nothing may be in by half.
        except BaseException:
            self.detach()
            raise

    @property
    def triggers(self) -> tuple[str, ...]:
        """The words of the concepts that are in."""
        return tuple(self.concepts)

    def set(self, *triggers: str, strength: float | None = None, keys: float | None = None) -> None:
        """Change how far concepts and their keys act, from the next step on.

        Args:
            *triggers: only these concepts; all by default.
            strength: factor of all that is added.
            keys: of learned keys beside: 0 is the lock, 1 is free.

        Raises:
            PerfusionError: an unknown word, or no finite number.
        """
        unknown = [word for word in triggers if word not in self.concepts]
        numbers = [n for n in (strength, keys) if n is not None]
        if unknown or not all(abs(float(n)) < float("inf") for n in numbers):
            raise PerfusionError(
                f"set: words of {list(self.concepts)} and finite numbers are expected, got "
                f"{unknown or numbers}."
            )
        own = getattr(self, "_settings", dict.fromkeys(self.concepts, (1.0, KEY_STRENGTH)))
        for word in triggers or self.concepts:
            was = own[word]
            own[word] = (was[0] if strength is None else strength, was[1] if keys is None else keys)
        self._settings: dict[str, tuple[float, float]] = own

    def detach(self) -> None:
        """Take everything out; the pipeline is bitwise what it was. Doing it again does nothing."""
        completely(list(reversed(self._out)))
        self._out = []
        if _in_use.get(self.parts.pipe) is self:
            del _in_use[self.parts.pipe]

    def _check(self, concepts: Sequence[JointConcept]) -> None:
        readers = joint_readers(self.parts)
        places = {r.value for r in readers}, {r.key for r in readers}
        if not concepts or len(self.concepts) < len(concepts):
            raise PerfusionError(
                f"apply_joint: concepts with words of their own are needed, got "
                f"{[c.trigger for c in concepts]}; give one another: concept.renamed('<other>')."
            )
        for concept in concepts:
            if not (set(concept.values) <= places[0] and set(concept.keys) <= places[1]):
                raise PerfusionError(
                    f"apply_joint: {concept.trigger!r} was learned on another kind of model than "
                    f"{self.parts.denoiser.name} ({concept.notes.get('model', 'unknown')}); learn "
                    "it again on this one."
                )
            if concept.knots != concepts[0].knots:
                raise PerfusionError(
                    f"apply_joint: concepts must have as many knots, got {concept.knots} and "
                    f"{concepts[0].knots}; learn them with the same."
                )
        base = base_of(self.parts, readers)
        others = [c.trigger for c in concepts if c.base and c.base != base]
        if others:
            warnings.warn(
                f"apply_joint: {' and '.join(others)} were learned on other weights than these, "
                "or in another precision; look at the pictures.",
                rk.RankeditWarning,
                stacklevel=4,
            )

    def _install(self) -> None:
        parts, concepts = self.parts, list(self.concepts.values())
        words = NewWords(parts.text, {c.trigger: _rows(parts, c.category) for c in concepts})
        self._out.append(words.remove)
        self._out.append(Kept(parts, self.triggers).remove)
        module = parts.denoiser.module
        self._attached = []
        for kind in ("values", "keys"):
            edits = placed_edits(parts, _joined(concepts, kind))
            if edits:
                attached = rk.attach(module, edits)
                self._out.append(attached.detach)
                self._attached.append((kind, attached))
                attached.tell(rows=None)
        parts.denoiser.forget_caches()
        self._out.append(parts.denoiser.forget_caches)
        categories = {c.trigger: c.category for c in concepts}
        self._out.append(Stream(parts, categories, self._told).remove)

    def _told(self, rows: Tensor, time: Tensor) -> None:
        several = next(iter(self.concepts.values())).knots > 1
        timed = {"time": time} if several else {}
        own = list(self._settings.values())
        for kind, attached in self._attached:
            factors = [s if kind == "values" else s * k for s, k in own]
            factor = torch.tensor(factors, device=rows.device)
            # Prompts without a concept stay what they are, to the bit.
            nothing = not bool(rows.any()) or not any(factors)
            attached.tell(rows=None if nothing else rows * factor, **timed)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.detach()


def _rows(parts: Parts, category: str) -> list[Tensor]:
    """Embeddings of a trigger: known and unlike the category's, for they tell the two apart."""
    found = []
    for _, encoder, tokenizer in parts.text.encoders:
        token = word_tokens(tokenizer, category)[-1]
        # What it encodes to is never drawn from: the denoiser is given the category's.
        found.append(embedding_of(encoder, token).roll(1))
    return found


def _joined(concepts: Sequence[JointConcept], kind: str) -> dict[str, Tensor]:
    """Targets `[concepts, knots, out]` by projection; zeros where a concept has none."""
    tables = [getattr(concept, kind) for concept in concepts]
    names = list(dict.fromkeys(name for table in tables for name in table))
    joined = {}
    for name in names:
        like = next(table[name] for table in tables if name in table)
        joined[name] = torch.stack([table.get(name, torch.zeros_like(like)) for table in tables])
    return joined
