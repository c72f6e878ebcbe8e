"""The methods trained in another way than the table's: longer, and with masks for all of them.

Points of Perfusion are those of one training alone, since its curve comes from one; a baseline's
are all that it has, those of its usual training too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from rankedit_recipes import sandbox

from personalisation.choosing import slug
from personalisation.methods import Method, Settings, trained
from personalisation.study import Study
from personalisation.tables import Figure, Point, Result, areas, figure_of, points_of, read
from personalisation.world import Plan

PERFUSION = "Perfusion"


@dataclass(frozen=True)
class Retraining:
    """Another way to train.

    Attributes:
        folder: of its units.
        title: of its table.
        settings: from those of the usual training and the plan.
        perfusion: whether Perfusion is trained so too; if not, its usual training is so already.
    """

    folder: str
    title: str
    settings: Callable[[Settings, Plan], Settings]
    perfusion: bool


def _longer(usual: Settings, plan: Plan) -> Settings:
    return replace(usual, steps=(plan.longer_steps,))


def _masked(usual: Settings, _: Plan) -> Settings:
    return replace(usual, steps=usual.steps[-1:], masked=True)


RETRAININGS = (
    Retraining("longer", "Trained longer", _longer, perfusion=True),
    Retraining("masked", "Baselines with masks", _masked, perfusion=False),
)


def methods_of(kind: Retraining, study: Study) -> dict[str, Method]:
    """Those that are trained so."""
    return {
        name: method
        for name, method in study.methods.items()
        if kind.perfusion or name != PERFUSION
    }  # fmt: skip


def retrained(
    kind: Retraining, study: Study, method: Method, concept: sandbox.Concept
) -> list[dict] | None:
    """A training with the rate that the search chose, judged at every scale.

    None while the search is not done.
    """
    choice = study.choice(method)
    if choice is None:
        return None
    world = study.world
    settings = kind.settings(world.settings(choice.rate), study.plan)
    folder = study.folder / "trained" / kind.folder / slug(method.name)
    own = folder / f"{concept.name}-{choice.rate:g}"
    made = trained(method, world.pipe, world.subject(concept), settings, own)[-1]
    return [
        {"step": made.step, "scale": scale,
         "marks": study.marks(method, made, scale, concept, world.curve(concept))}
        for scale in dict.fromkeys([*method.scales, choice.scale])
    ]  # fmt: skip


def retraining_table(
    kind: Retraining, study: Study, results: Mapping[str, Result]
) -> dict[str, dict[str, Any]]:
    """Each method at its best scale after both trainings, on the concepts that all have.

    Args:
        kind: the other training.
        study: the study.
        results: of the usual trainings, and of the references.

    Returns:
        By method its `scale`, `identity` and `text` after the other training, the identity
        `gained` over the usual one picture by picture, and the areas `usual` and `now`.
    """
    judged = next(iter(results.values())).chosen.marks
    files = {
        name: {c: study.folder / kind.folder / slug(name) / f"{c}.json" for c in judged}
        for name in methods_of(kind, study)
    }
    shared = [c for c in judged if all(own[c].exists() for own in files.values())]
    if not shared:
        return {}
    usual = {name: _only(result, shared) for name, result in results.items()}
    now = {name: usual[name].points for name in study.methods} | {
        name: points_of({c: read(own[c]) for c in shared}) for name, own in files.items()
    }
    every = {
        name: points if name == PERFUSION else [*usual[name].points, *points]
        for name, points in now.items()
    }
    with_all = usual | {name: replace(usual[name], points=own) for name, own in every.items()}
    before, after = (areas(own, list(study.methods), "judges") for own in (usual, with_all))
    return {
        name: _row(max(usual[name].points, key=Point.balance), max(points, key=Point.balance))
        | {"usual": before[name], "now": after[name]}
        for name, points in now.items()
    }


def _only(result: Result, concepts: list[str]) -> Result:
    """The result on some of its concepts."""
    points = [point.only(concepts) for point in result.points]
    return replace(result, points=points, chosen=result.chosen.only(concepts))


def _row(usual: Point, now: Point) -> dict[str, Any]:
    figures: dict[str, Figure] = {
        "identity": figure_of(now.of("identity")),
        "text": figure_of(now.of("text")),
        "gained": figure_of(now.gained(usual)),
    }
    return {"scale": now.scale, **figures}
