"""Concepts in a pipeline: put in, adjusted while they are there, and taken out without a trace."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from os import PathLike
from typing import get_args

from rankedit_recipes.diffusion.parts import Parts
from rankedit_recipes.diffusion.text import Pipeline
from rankedit_recipes.perfusion.applying.applied import Applied, ConceptLike, check_free, in_use
from rankedit_recipes.perfusion.applying.base import warn_of_lost
from rankedit_recipes.perfusion.applying.batches import Given
from rankedit_recipes.perfusion.applying.joining import GateForm, Numbers, settings_of
from rankedit_recipes.perfusion.concept import Concept
from rankedit_recipes.perfusion.errors import PerfusionError
from rankedit_recipes.perfusion.locks import Floor, HeldLock


def apply(
    pipe: Pipeline,
    concepts: ConceptLike | Sequence[ConceptLike],
    *,
    bias: Numbers = None,
    temperature: Numbers = None,
    strength: Numbers = 1.0,
    lock: HeldLock | None = None,
    normalised: bool = False,
    floor: Floor = "own",
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
            concept, or by trigger word. By default each concept's own. In the place of a concept's
            number a list may stand with one for each row of a batch; see `Applied.set`.
        temperature: of the gates, likewise.
        strength: factor of what each concept changes, likewise; 0 switches it off.
        lock: `"local"`: the key at the concept's word is that of the word it stands for (the
            category, or the adjective); `"global"`: keys of the whole prompt are those of the
            prompt with that word; by default as each was learned.
            Either holds learned keys too. With `"global"` the gates' defaults are those of the
            global lock.
        normalised: gates that are exactly 0 away from the concept and 1 at it; the paper's leave
            about 1 % of the concept everywhere.
        floor: dead zone: where no concept's similarity reaches it, nothing at all is changed. A
            number for all, None for no dead zone; by default the lowest of the concepts' own, none
            if one of them has none.

    Returns:
        A context manager; or call `set`, `load`, `unload` and `detach` on it by hand.

    Raises:
        PerfusionError: concepts are in already, belong to a model of another kind, share a word,
            or cannot be told apart.
    """
    check_free(pipe, "apply")
    if lock not in (None, *get_args(HeldLock)):
        raise PerfusionError(
            "apply: lock must be 'local', 'global' or None, for what each concept was learned "
            f"with, got {lock!r}."
        )
    if not (floor in (None, "own") or _finite(floor)):
        raise PerfusionError(
            "apply: floor must be a similarity such as 0.5, None for no dead zone, or 'own' for "
            f"the concepts' own, got {floor!r}."
        )
    if not isinstance(concepts, (Concept, str, PathLike, Iterable)):
        raise PerfusionError(
            f"apply: concepts must be concepts or their files, got {concepts!r:.80}; "
            "perfusion.learn and Concept.load give one."
        )
    # A name of a file is a sequence too: of letters.
    listed = [concepts] if isinstance(concepts, (Concept, str, PathLike)) else list(concepts)
    loaded = [c if isinstance(c, Concept) else Concept.load(c) for c in listed]
    form = GateForm(lock, normalised, floor)
    applied = Applied(pipe, form)
    # Entered only after it worked: what failed must not look as if it were in.
    applied.replace_all(loaded, settings_of(loaded, lock, bias, temperature, strength))
    in_use[pipe] = applied
    warn_of_lost(Parts(pipe), applied.triggers)
    return applied


def _finite(number: object) -> bool:
    # By exact type: `floor=True` is a mistake, and to `isinstance` a number.
    return type(number) in (int, float) and math.isfinite(number)  # type: ignore[arg-type]


def active(pipe: Pipeline) -> Applied:
    """The concepts that are in a pipeline.

    Raises:
        PerfusionError: there are none.
    """
    if pipe not in in_use:
        raise PerfusionError(
            "perfusion: no concept is in this pipeline; put one in with perfusion.apply or load."
        )
    return in_use[pipe]


def load(pipe: Pipeline, concept: ConceptLike, **settings: Given) -> Applied:
    """Add a concept to a pipeline; as `pipe.load_lora_weights` does for LoRAs.

    Args:
        pipe: the pipeline.
        concept: a concept or its file.
        **settings: `bias`, `temperature`, `strength` of this concept.
    """
    if pipe not in in_use:
        return apply(pipe, concept, **settings)  # type: ignore[arg-type]
    applied = in_use[pipe]
    applied.load(concept, **settings)
    warn_of_lost(Parts(pipe), applied.triggers[-1:])
    return applied


def unload(pipe: Pipeline, *triggers: str) -> None:
    """Take concepts out of a pipeline: those of the words given, or all.

    Raises:
        PerfusionError: no such concept is in it.
    """
    active(pipe).unload(*triggers)


def set_concepts(pipe: Pipeline, *triggers: str, **settings: Given) -> None:
    """Change `bias`, `temperature` or `strength` of concepts in a pipeline; see `Applied.set`."""
    active(pipe).set(*triggers, **settings)
