"""From the study's folder to the figures of the table, with intervals and fronts."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from personalisation.choosing import slug
from personalisation.fronts import balance, bootstrap, hypervolume, interval
from personalisation.study import Study

PICTURE_FIGURES = (
    "identity", "text", "clip_i", "clip_t", "category", "scene", "other", "colour", "relation",
    "diversity",
)  # fmt: skip
GROUPED = "diversity"
"""The figure that has one number for a prompt, not for a picture."""
OFF_FIGURES = ("off_kept", "off_changed", "leak")
COST_FIGURES = ("kilobytes", "train_seconds", "train_megabytes", "overhead")
AREA_DRAWS = 500
"""Resamples behind the interval of a hypervolume."""
PLANES = {"judges": ("text", "identity"), "CLIP": ("clip_t", "clip_i")}
REFERENCES = (
    "category word", "description in words", "photos whatever the prompt",
    "prompts drawn with the concept",
)  # fmt: skip


@dataclass(frozen=True)
class Figure:
    """A mean over concepts with its bootstrap interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Point:
    """One setting of a method.

    Attributes:
        step: of the training.
        scale: at inference.
        marks: by concept the judges' marks.
    """

    step: int
    scale: float
    marks: Mapping[str, Mapping[str, list[float | None]]]

    def of(self, figure: str) -> list[list[float]]:
        """A figure's numbers, by concept."""
        return [told(marks.get(figure, [])) for marks in self.marks.values()]

    def thinned(self, seeds: int, prompts: int) -> Point:
        """The same setting on the pictures of the first seed and the first prompts alone.

        Args:
            seeds: of each prompt; pictures come prompt by prompt.
            prompts: how many.
        """
        marks = {
            concept: {name: row[::seeds][:prompts] for name, row in own.items() if name != GROUPED}
            for concept, own in self.marks.items()
        }
        return Point(self.step, self.scale, marks)

    def only(self, concepts: Sequence[str]) -> Point:
        """The same setting on some of its concepts."""
        return Point(self.step, self.scale, {name: self.marks[name] for name in concepts})

    def mean(self, figure: str) -> float:
        """Mean over concepts of the mean over pictures."""
        return statistics.mean(statistics.mean(own) for own in self.of(figure) if own)

    def balance(self) -> float:
        """Harmonic mean of the two fidelities."""
        return balance(self.mean("identity"), self.mean("text"))

    def gained(self, over: Point, figure: str = "identity") -> list[list[float]]:
        """A figure above that of another setting, picture by picture, by concept."""
        return differences(self.of(figure), over.of(figure))


def differences(
    ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]
) -> list[list[float]]:
    """Picture by picture, in each group; both have the same pictures."""
    return [
        [one - two for one, two in zip(*rows, strict=True)]
        for rows in zip(ours, theirs, strict=True)
    ]


def points_of(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Point]:
    """One training's settings in turn, of its rows by concept."""
    return [
        Point(row.get("step", 0), row["scale"], {c: own[i]["marks"] for c, own in results.items()})
        for i, row in enumerate(next(iter(results.values())))
    ]


@dataclass
class Result:
    """What is known of one method.

    Attributes:
        name: of the method.
        points: all its settings, on the pictures that are judged at each.
        chosen: the one that the search chose, on all pictures; of a reference its only one.
        choice: rate, step and scale in words.
        further: other figures, by name and concept.
    """

    name: str
    points: list[Point]
    chosen: Point
    choice: str = ""
    further: dict[str, list[list[float]]] = field(default_factory=dict)

    def figures(self) -> dict[str, Figure]:
        """The row of the table."""
        numbers = {name: self.chosen.of(name) for name in PICTURE_FIGURES} | self.further
        return {name: figure_of(own) for name, own in numbers.items() if any(own)}


def told(marks: Iterable[float | None]) -> list[float]:
    """The marks that there are."""
    return [mark for mark in marks if mark is not None]


def figure_of(groups: Sequence[Sequence[float]]) -> Figure:
    """Mean over groups with a 95 % interval; overheads and costs have one number each."""
    kept = [group for group in groups if len(group)]
    low, high = interval(bootstrap(kept))
    return Figure(statistics.mean(statistics.mean(group) for group in kept), low, high)


def results_of(study: Study) -> tuple[list[str], dict[str, Result]]:
    """The concepts that every method was judged on, and the results on them."""
    names = ["references", *(slug(name) for name in study.methods)]
    done = [
        concept.name
        for concept in study.world.concepts()
        if all((study.folder / f"main/{name}/{concept.name}.json").exists() for name in names)
    ]
    if not done:
        return [], {}
    seeds, prompts = study.plan.seeds, study.plan.curve_prompts
    found = {
        name: _method(
            name, [read(study.folder / f"main/{slug(name)}/{c}.json") for c in done], done
        )
        for name in study.methods
    }
    found |= _references([read(study.folder / f"main/references/{c}.json") for c in done], done)
    for result in found.values():
        result.points = [
            point.thinned(seeds, prompts) if point is result.chosen else point
            for point in result.points
        ]
    return done, found


def _method(name: str, results: Sequence[Mapping[str, Any]], concepts: Sequence[str]) -> Result:
    choice = results[0]["choice"]
    settings = [(point["step"], point["scale"]) for point in results[0]["points"]]
    pairs = list(zip(concepts, results, strict=True))
    points = [
        Point(step, scale, {concept: _marks(result, step, scale) for concept, result in pairs})
        for step, scale in settings
    ]
    chosen = next(p for p in points if (p.step, p.scale) == (choice["step"], choice["scale"]))
    further = {figure: [result["off"][figure] for result in results] for figure in OFF_FIGURES}
    further |= {figure: [[result[figure]] for result in results] for figure in COST_FIGURES}
    words = f"rate {choice['rate']:g}, step {choice['step']}, scale {choice['scale']:g}"
    return Result(name, points, chosen, words, further)


def _marks(result: Mapping[str, Any], step: int, scale: float) -> Mapping[str, list[float | None]]:
    for point in result["points"]:
        if (point["step"], point["scale"]) == (step, scale):
            found: Mapping[str, list[float | None]] = point["marks"]
            return found
    raise LookupError(f"tables: a concept was not judged at step {step}, scale {scale:g}")


def _references(results: Sequence[Mapping[str, Any]], concepts: Sequence[str]) -> dict[str, Result]:
    found = {}
    for name in REFERENCES:
        marks = {c: r["marks"][name] for c, r in zip(concepts, results, strict=True)}
        point = Point(0, 1.0, marks)
        further = {}
        if name == "category word":
            further = {
                figure: [r["off"][figure] for r in results] for figure in ("off_kept", "leak")
            }
        found[name] = Result(name, [point], point, further=further)
    return found


# ---------------------------------------------------------------------------- fronts


@dataclass(frozen=True)
class Area:
    """A hypervolume, and of a baseline's what Perfusion's is of it; None where that is nothing."""

    value: Figure
    ratio: Figure | None = None


def areas(
    results: Mapping[str, Result], methods: Sequence[str], plane: str, *, zero: bool = False
) -> dict[str, Area]:
    """Hypervolumes of all fronts, concepts resampled alike for all of them.

    Args:
        results: of everything.
        methods: names of those that train; Perfusion is compared with each other one.
        plane: of `PLANES`.
        zero: with the reference (0, 0) instead of what the two trivial methods reach: the text
            fidelity of photos whatever the prompt, and the concept fidelity of the category's word.
    """
    x, y = PLANES[plane]
    planes = {name: _plane(results[name], x, y) for name in methods}
    ignorant = _plane(results["photos whatever the prompt"], x, y)[:, 0, :, 0]
    generic = _plane(results["category word"], x, y)[:, 0, :, 1]
    concepts, pictures = ignorant.shape
    rng = np.random.default_rng([AREA_DRAWS, concepts, pictures])
    every = np.arange(concepts)[:, None], np.arange(pictures)[None].repeat(concepts, 0)
    rows = [every]
    for _ in range(AREA_DRAWS):
        drawn = rng.integers(concepts, size=(concepts, 1))
        rows.append((drawn, rng.integers(pictures, size=(concepts, pictures))))
    values: dict[str, list[float]] = {name: [] for name in methods}
    for which, seen in rows:
        reference = (float(ignorant[which, seen].mean()), float(generic[which, seen].mean()))
        for name, own in planes.items():
            points = own[which, :, seen].mean((0, 1))
            values[name].append(hypervolume(points.tolist(), (0.0, 0.0) if zero else reference))
    return {name: _area(own, values["Perfusion"], name) for name, own in values.items()}


def _area(own: Sequence[float], perfusion: Sequence[float], name: str) -> Area:
    drawn, ratio = np.asarray(own), None
    if name != "Perfusion" and drawn[0] > 0:
        nothing = np.full(len(drawn), np.inf)
        shares = np.divide(np.asarray(perfusion), drawn, out=nothing, where=drawn > 0)
        ratio = Figure(float(shares[0]), *interval(shares[1:]))
    return Area(Figure(float(drawn[0]), *interval(drawn[1:])), ratio)


def _plane(result: Result, x: str, y: str) -> np.ndarray:
    """`[concept, point, picture, 2]`."""
    rows = [np.asarray([point.of(axis) for point in result.points]) for axis in (x, y)]
    return np.stack(rows, -1).transpose(1, 0, 2, 3)


def read(file: Path) -> Any:
    return json.loads(file.read_text())["result"]


def revisions(folder: Path) -> dict[str, list[str]]:
    """The files of the study's numbers, such as `main/perfusion/bean`, by their revision."""
    found: dict[str, list[str]] = {}
    for file in sorted((*folder.glob("attention/*.json"), *folder.glob("*/*/*.json"))):
        name = file.relative_to(folder).with_suffix("").as_posix()
        found.setdefault(json.loads(file.read_text())["revision"], []).append(name)
    return dict(sorted(found.items()))
