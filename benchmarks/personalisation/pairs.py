"""Two concepts in one picture: separately learned and joined, or learned together."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

from baselines import CustomDiffusion, Described
from rankedit_recipes import sandbox

from personalisation.methods import Artefact, trained
from personalisation.prompts import Prompt
from personalisation.study import Study

LORA, INVERSION = "DreamBooth-LoRA, rank 4", "textual inversion"
MERGED, JOINT = "Custom Diffusion, merged", "Custom Diffusion, joint training"
WORDS = Described.name
PAIRED = ("Perfusion", LORA, INVERSION, MERGED, JOINT, WORDS)
"""Ways to have two concepts in one picture; the last one asks the base model in words."""

PLACES = ("next to", "to the left of", "above")
SCENES = ("on the grass", "on the beach", "in the snow", "on a plain background")


def pairs_of(
    concepts: Sequence[sandbox.Concept], count: int
) -> list[tuple[sandbox.Concept, sandbox.Concept]]:
    """Pairs of neighbours of different categories."""
    pairs = [(a, b) for a, b in itertools.pairwise(concepts) if a.category != b.category]
    return pairs[:count]


def asked(first: str, second: str, count: int) -> list[tuple[Prompt, int]]:
    """Prompts with both, and seeds."""
    made = []
    for index in range(count):
        place, scene = PLACES[index % len(PLACES)], SCENES[index // len(PLACES) % len(SCENES)]
        text = f"a photo of a {first} {place} a {second} {scene}"
        made.append((Prompt(text, ""), 30_000 + index))
    return made


def paired(
    study: Study, name: str, one: sandbox.Concept, two: sandbox.Concept
) -> dict[str, list[float]] | None:
    """What the judges find in pictures of two concepts; None if a training is not chosen yet."""
    world = study.world
    if name == WORDS:
        phrases = [Described(concept).phrase(world.subject(concept)) for concept in (one, two)]
        pixels = world.draw(asked(*phrases, world.plan.pair_pictures), "")
        return world.judges.nearest((one, two), world.concepts(), pixels)
    base = CustomDiffusion.name if name in (MERGED, JOINT) else name
    method: Any = study.methods[base]
    choice = study.choice(method)
    if choice is None:
        return None
    if name == JOINT:
        made = _jointly(study, method, choice, one, two)
    else:
        made = [
            artefact for concept in (one, two)
            for artefact in study.artefacts(method, concept, choice)
            if artefact.step == choice.step
        ]  # fmt: skip
    phrases = [method.phrase(world.subject(concept)) for concept in (one, two)]
    with _together(study, name, method, made, choice.scale):
        pixels = world.draw(asked(*phrases, world.plan.pair_pictures), "")
    return world.judges.nearest((one, two), world.concepts(), pixels)


def _jointly(
    study: Study, method: CustomDiffusion, choice: Any, one: sandbox.Concept, two: sandbox.Concept
) -> list[Artefact]:
    subjects = [study.world.subject(concept) for concept in (one, two)]
    folder = study.folder / "trained" / "joint" / f"{one.name}+{two.name}"
    settings = study.world.settings(choice.rate)
    made = trained(_Jointly(subjects, method), study.world.pipe, subjects[0], settings, folder)
    return [artefact for artefact in made if artefact.step == choice.step]


class _Jointly(CustomDiffusion):
    """Custom Diffusion of several subjects as one training."""

    def __init__(self, subjects: Sequence[Any], method: CustomDiffusion) -> None:
        self._subjects, self.name = subjects, method.name

    def train(self, pipe: Any, subject: Any, settings: Any, folder: Any) -> list[Artefact]:
        """Learn all of them."""
        return self.train_jointly(pipe, self._subjects, settings, folder)


def _together(
    study: Study, name: str, method: Any, made: Sequence[Artefact], scale: float
) -> AbstractContextManager[None]:
    pipe = study.world.sampler
    if name == MERGED:
        return method.merged(pipe, made, study.world.moment)
    if name == JOINT:
        return method.apply(pipe, made[0], scale)
    if hasattr(method, "together"):
        return method.together(pipe, made, scale)
    return _stacked(method, pipe, made, scale)


@contextlib.contextmanager
def _stacked(method: Any, pipe: Any, made: Sequence[Artefact], scale: float):
    with contextlib.ExitStack() as stack:
        for artefact in made:
            stack.enter_context(method.apply(pipe, artefact, scale))
        yield
