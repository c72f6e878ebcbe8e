"""Separately learned concepts as one joint edit for each projection."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import rankedit as rk
from rankedit_recipes.diffusion.parts import Parts
from rankedit_recipes.perfusion.applying.base import base_of, same_weights, sketch_of
from rankedit_recipes.perfusion.applying.batches import (
    Given,
    Number,
    column,
    first_of,
    number_of,
    row_count,
)
from rankedit_recipes.perfusion.applying.weighting import WEIGHTS
from rankedit_recipes.perfusion.concept import Concept
from rankedit_recipes.perfusion.errors import PerfusionError
from rankedit_recipes.perfusion.locks import PRESETS, Floor, HeldLock, Preset
from rankedit_recipes.perfusion.prompts import origin_encoding

Numbers = Given | Sequence[Given] | Mapping[str, Given] | None


@dataclass(frozen=True)
class Settings:
    """Run-time settings of one concept, each one number or one for each row of a batch."""

    bias: Number
    temperature: Number
    strength: Number = 1.0


@dataclass(frozen=True)
class GateForm:
    """What all concepts of a pipeline share.

    Attributes:
        lock: how keys are made; None for each concept's own (global if one of them is). `"local"`
            and `"global"` lock learned keys too.
        normalised: the gate is exactly 0 away from the key and 1 at it.
        floor: similarity below which the edit does exactly nothing; None for no dead zone,
            `"own"` for the concepts' own: the lowest of theirs, none if one of them has none.
    """

    lock: HeldLock | None = None
    normalised: bool = False
    floor: Floor = "own"

    def floor_of(self, concepts: Sequence[Concept]) -> float | None:
        """The dead zone that some concepts get together."""
        if self.floor != "own":
            return self.floor
        heights = [preset_of(concept, self.lock).floor for concept in concepts]
        known = [height for height in heights if height is not None]
        # The lowest: a higher one would silence a concept that was learned without it.
        return min(known) if len(known) == len(heights) else None


def preset_of(concept: Concept, lock: HeldLock | None) -> Preset:
    """A concept's own settings; under another lock than its own, bias and temperature of that."""
    if lock is not None and lock != concept.lock:
        # Biases are tuned for a lock; the dead zone belongs to the concept's key.
        return PRESETS[lock]._replace(floor=concept.floor)
    return Preset(concept.bias, concept.temperature, concept.floor)


def settings_of(
    concepts: Sequence[Concept],
    lock: HeldLock | None,
    bias: Numbers,
    temperature: Numbers,
    strength: Numbers,
) -> dict[str, Settings]:
    """Settings by word: what was asked for, else the concept's own."""
    words = [concept.trigger for concept in concepts]
    asked = [_by_word(numbers, words) for numbers in (bias, temperature, strength)]
    found = {}
    for concept in concepts:
        own, word = preset_of(concept, lock), concept.trigger
        usual = (own.bias, own.temperature, 1.0)
        chosen = [numbers.get(word, other) for numbers, other in zip(asked, usual, strict=True)]
        found[word] = Settings(*chosen)
    return found


def _by_word(numbers: Numbers, words: Sequence[str]) -> Mapping[str, Number]:
    if numbers is None:
        return {}
    if isinstance(numbers, Mapping):
        # A misspelt word would leave its concept as it is, in silence.
        unknown = sorted(set(numbers) - set(words))
        if unknown:
            raise PerfusionError(f"apply: no concept has the word {unknown[0]!r}, but {words}.")
        return {word: number_of(given) for word, given in numbers.items()}
    listed: Any = numbers.tolist() if hasattr(numbers, "tolist") else numbers
    if isinstance(listed, (int, float)):
        return dict.fromkeys(words, float(listed))
    if len(listed) == len(words):
        return {word: number_of(given) for word, given in zip(words, listed, strict=True)}
    if len(words) > 1:
        # Rows for all would be read as one for each concept where there are as many of both.
        raise PerfusionError(
            f"apply: expected one number, or one for each of {words}, got {list(listed)}; for a "
            f"number for each row of a batch name the concept: {{{words[0]!r}: [...]}}."
        )
    return {words[0]: number_of(listed)}


def check(settings: Mapping[str, Settings]) -> None:
    """Refuse temperatures that are not positive, and numbers that are none in float32.

    Raises:
        PerfusionError: names the concept.
    """
    row_count(value for setting in settings.values() for value in vars(setting).values())
    for word, setting in settings.items():
        for name, value in vars(setting).items():
            # In the precision that layers keep them in: 1e39 is no number there.
            if not bool(torch.tensor(value, dtype=torch.float32).isfinite().all()):
                raise PerfusionError(
                    f"perfusion: the {name} of {word!r} must be a finite number, got {value}."
                )
        if not bool((torch.tensor(setting.temperature, dtype=torch.float32) > 0).all()):
            raise PerfusionError(
                f"perfusion: the temperature of {word!r} must be positive, got "
                f"{setting.temperature}; 0.01 makes a sharp gate."
            )


def columns(
    settings: Mapping[str, Settings], concepts: Mapping[str, Concept], pictures: int = 1
) -> dict[str, Tensor]:
    """The settings as the joint edit has them: one number for each key, concept by concept.

    Those that are by row are `[rows · pictures, keys]`.
    """
    own = [one for word, one in settings.items() for _ in range(concepts[word].vectors)]
    return {
        "bias": column([one.bias for one in own], pictures),
        "temperature": column([one.temperature for one in own], pictures),
        WEIGHTS: column([one.strength for one in own], pictures),
    }


def check_compatible(parts: Parts, concepts: Sequence[Concept]) -> None:
    """Refuse concepts that do not belong to this kind of model or share a word.

    Raises:
        PerfusionError: says which concept and why.
    """
    words = [concept.trigger for concept in concepts]
    if not words or len(set(words)) != len(words):
        raise PerfusionError(
            f"apply: concepts must have one word each, all different, got {words}; "
            "concept.renamed('<other>') gives another word."
        )
    # Between the concepts first: that cannot be mended here, while another model is only warned of.
    _check_one_base(concepts)
    targets, base = parts.targets, base_of(parts)
    strange = [concept for concept in concepts if concept.base not in ("", base)]
    # Only where fingerprints differ: docs/decisions/a-sketch-beside-the-fingerprint.md.
    sketch = sketch_of(parts) if any(concept.sketch for concept in strange) else ""
    for concept in concepts:
        # By what its own lock learned: whatever else is lacking is made of this model's weights.
        lacking = set(targets.learned(concept.lock)) - set(concept.targets)
        foreign = set(concept.targets) - {*targets.keys, *targets.values}
        if lacking or foreign or concept.keys.shape[1] != targets.width:
            raise PerfusionError(
                f"apply: {concept.trigger!r} was learned on another kind of model: it has "
                f"{len(concept.targets)} targets for an encoding {concept.keys.shape[1]} wide, but "
                f"this one has {len(targets.values)} value projections that read {targets.width}."
            )
        if concept in strange and not same_weights(concept.sketch, sketch):
            warnings.warn(
                f"apply: {concept.trigger!r} was learned on a model with other weights "
                f"(fingerprint {concept.base}, here {base}): keys are made anew, its values are "
                "used as they are.",
                rk.RankeditWarning,
                stacklevel=4,
            )


def _check_one_base(concepts: Sequence[Concept]) -> None:
    known = [concept for concept in concepts if concept.base]
    other = next((concept for concept in known if not _one_base(concept, known[0])), None)
    if other is not None:
        raise PerfusionError(
            f"apply: {known[0].trigger!r} and {other.trigger!r} were learned on base models with "
            f"different weights ({known[0].base} and {other.base}) and cannot be merged: values of "
            "one are not made for the other. Learn both on one model; or, if you know that they "
            "fit, clear one's with dataclasses.replace(concept, base='')."
        )


def _one_base(one: Concept, other: Concept) -> bool:
    return one.base == other.base or same_weights(one.sketch, other.sketch)


def joint_edits(
    parts: Parts,
    concepts: Sequence[Concept],
    settings: Mapping[str, Settings],
    form: GateForm,
) -> dict[str, rk.GatedEdit]:
    """The merged edit of each projection, keys locked to the categories of the concepts.

    Gates read joint coordinates: a word whose encoding is like another concept's key opens its own
    gate only.

    Raises:
        PerfusionError: concepts with parallel keys, or made under other statistics.
    """
    targets, modules = parts.targets, parts.projections
    categories = [origin_encoding(parts, concept.naming, concept.templates) for concept in concepts]
    floor = form.floor_of(concepts)
    edits = {}
    for name in (*targets.keys, *targets.values):
        single = []
        for concept, category in zip(concepts, categories, strict=True):
            # A lock that was asked for holds all keys, those too that were learned.
            held = form.lock is not None and name in targets.keys
            target = None if held else concept.targets.get(name)
            if target is None:
                with torch.no_grad():
                    # Made of this model's own weights: a fine-tuned copy has keys of its own.
                    target = rk.linear_output(modules[name], category[None])
            own = settings[concept.trigger]
            # With one concept the paper's gate; else docs/decisions/a-key-for-every-place.md.
            gate = rk.JointSigmoid(first_of(own.bias), first_of(own.temperature))
            edit = rk.GatedEdit.from_images(
                # On the CPU: `attach` brings the constants to each layer's device.
                concept.keys.cpu(),
                torch.atleast_2d(target).float().cpu().expand(concept.vectors, -1),
                torch.atleast_2d(concept.image).cpu(),
                gate,
                normalised=form.normalised,
                floor=floor,
                statistics=concept.statistics,
            )
            single.append(edit)
        edits[name] = _merged(single, concepts)
    return edits


def _merged(single: Sequence[rk.GatedEdit], concepts: Sequence[Concept]) -> rk.GatedEdit:
    try:
        return rk.merge(single)
    except rk.SolveError as error:
        words = ", ".join(concept.trigger for concept in concepts)
        raise PerfusionError(
            f"apply: {words} cannot be merged: {error} Concepts must be learned on one base model "
            "with one file of captions, and be told apart by their encodings."
        ) from error
