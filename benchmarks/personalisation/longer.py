"""What methods reach when they are trained longer than the search allowed.

Perfusion's points are those of its longer training alone, since its curve comes from one training;
a baseline's are all that it has, those of the usual training too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rankedit_recipes import sandbox

from personalisation.choosing import slug
from personalisation.methods import Method, trained
from personalisation.tables import Figure, Point, Result, areas, figure_of, points_of, read

if TYPE_CHECKING:
    from personalisation.study import Study

FOLDER = "longer"


def lengthened(study: Study, method: Method, concept: sandbox.Concept) -> list[dict] | None:
    """A training of more steps with the rate that the search chose, judged at every scale.

    None while the search is not done.
    """
    choice = study.choice(method)
    if choice is None:
        return None
    world, step = study.world, study.plan.longer_steps
    settings = replace(world.settings(choice.rate), steps=(step,))
    folder = study.folder / "trained" / FOLDER / slug(method.name)
    own = folder / f"{concept.name}-{choice.rate:g}"
    made = trained(method, world.pipe, world.subject(concept), settings, own)[-1]
    return [
        {"step": step, "scale": scale,
         "marks": study.marks(method, made, scale, concept, world.curve(concept))}
        for scale in dict.fromkeys([*method.scales, choice.scale])
    ]  # fmt: skip


def longer_table(study: Study, results: Mapping[str, Result]) -> dict[str, dict[str, Any]]:
    """Each method at its best scale after both trainings, on the concepts that all have.

    Args:
        study: the study.
        results: of the usual trainings, and of the references.

    Returns:
        By method its `scale`, `identity` and `text` after the longer training, the identity
        `gained` over the usual one picture by picture, and the areas `usual` and `longer`.
    """
    folder, methods = study.folder / FOLDER, list(study.methods)
    shared = [
        concept
        for concept in next(iter(results.values())).chosen.marks
        if all((folder / slug(name) / f"{concept}.json").exists() for name in methods)
    ]
    if not shared:
        return {}
    usual = {name: _only(result, shared) for name, result in results.items()}
    longer = dict(usual)
    for name in methods:
        points = points_of({c: read(folder / slug(name) / f"{c}.json") for c in shared})
        longer[name] = replace(usual[name], points=points)
    rows = {name: _row(usual[name].best(), longer[name].best()) for name in methods}
    for name in methods:
        if name != "Perfusion":
            longer[name].points.extend(usual[name].points)
    before, after = (areas(own, methods, "judges") for own in (usual, longer))
    return {
        name: row | {"usual": before[name], "longer": after[name]} for name, row in rows.items()
    }


def _only(result: Result, concepts: list[str]) -> Result:
    """The result on some of its concepts."""
    points = [
        Point(point.step, point.scale, {c: point.marks[c] for c in concepts})
        for point in result.points
    ]
    return replace(result, points=points)


def _row(usual: Point, longer: Point) -> dict[str, Any]:
    figures: dict[str, Figure] = {
        "identity": figure_of(longer.of("identity")),
        "text": figure_of(longer.of("text")),
        "gained": figure_of(longer.gained(usual)),
    }
    return {"scale": longer.scale, **figures}
