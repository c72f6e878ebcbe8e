"""One HTML file that shows what was given, what was learned and what it is good for."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import Any

from PIL import Image

from rankedit.atomic import atomic_write
from rankedit_recipes.diffusion.pages import figure as shown
from rankedit_recipes.diffusion.pages import gallery, page, section, table
from rankedit_recipes.perfusion.applying.explaining import Explanation
from rankedit_recipes.perfusion.concept import Concept
from rankedit_recipes.perfusion.showing.sweeping import Point, pareto_front


@dataclass(frozen=True)
class Report:
    """Everything that a report may show; what is left out is not shown.

    Attributes:
        concept: what was learned.
        photos: what was given.
        pictures: pictures by their prompts.
        losses: of the training's steps.
        validations: `[step, picture, text, balance]` of each validation.
        explanation: the gates of a prompt.
        points: of a sweep.
        together: pictures with two concepts, by their prompts.
        settings: anything else worth recording.
    """

    concept: Concept
    photos: Sequence[Image.Image] = ()
    pictures: Mapping[str, Image.Image] = field(default_factory=dict)
    losses: Sequence[float] = ()
    validations: Sequence[Sequence[float]] = ()
    explanation: Explanation | None = None
    points: Sequence[Point] = ()
    together: Mapping[str, Image.Image] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)

    def save(self, path: str | PathLike[str]) -> None:
        """Write the report as one HTML file that needs nothing else."""
        with atomic_write(path) as temporary:
            temporary.write_text(self.html(), encoding="utf-8")

    def html(self) -> str:
        """The page."""
        concept = self.concept
        title = f"{concept.trigger}: a {concept.category}"
        parts = [
            section(
                "Photos given", gallery({f"photo {i + 1}": p for i, p in enumerate(self.photos)})
            ),
            section("Pictures", gallery(self.pictures)),
            section("Together", gallery(self.together)),
            section("Training", shown(self._training(), "training") if self.losses else ""),
            section("Gate", self._gate()),
            section("Concept against text", self._trade_off()),
            section("Settings and provenance", table(self._facts())),
        ]
        return page(title, parts)

    def _facts(self) -> dict[str, str]:
        concept = self.concept
        return {
            "word": concept.trigger,
            "in prompts": concept.phrase,
            "stands for": concept.naming.origin,
            "category": concept.category,
            "key lock": concept.lock,
            "gate": concept.gate,
            "projections with learned targets": str(len(concept.targets)),
            "base model": concept.base,
            "statistics": concept.statistics,
            **concept.notes,
            **self.settings,
        }

    def _gate(self) -> str:
        if self.explanation is None:
            return ""
        return shown(self.explanation.plot(), "opening of the gate at each token")

    def _training(self) -> Any:  # noqa: ANN401 - a figure of matplotlib
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 2.6), layout="constrained")
        axes = figure.subplots()
        axes.plot(range(1, len(self.losses) + 1), self.losses, linewidth=0.7, color="#9bb1d6")
        # The loss of a single step depends much on the times and the noise that were drawn.
        window = max(1, len(self.losses) // 15)
        smooth = [
            sum(self.losses[max(0, i - window) : i + 1]) / (i + 1 - max(0, i - window))
            for i in range(len(self.losses))
        ]
        axes.plot(range(1, len(smooth) + 1), smooth, color="#1f4e9c", label="loss")
        axes.set_xlabel("step")
        axes.set_ylabel("loss")
        if self.validations:
            # Losses and similarities have no scale in common.
            other = axes.twinx()
            steps = [row[0] for row in self.validations]
            for column, name, colour in ((1, "picture", "#c2571a"), (2, "text", "#2f8f4e")):
                other.plot(steps, [row[column] for row in self.validations], "o-", label=name,
                           color=colour, markersize=3)  # fmt: skip
            other.set_ylabel("similarity")
            other.legend(loc="upper right", fontsize=8)
        return figure

    def _trade_off(self) -> str:
        if not self.points:
            return ""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 3.6), layout="constrained")
        axes = figure.subplots()
        front = pareto_front(self.points)
        axes.scatter([p.scores.text for p in self.points], [p.scores.picture for p in self.points],
                     color="#9bb1d6", label="settings")  # fmt: skip
        axes.plot([p.scores.text for p in front], [p.scores.picture for p in front], "o-",
                  color="#1f4e9c", label="front")  # fmt: skip
        # All others are beaten in both scores: nobody needs their settings.
        for point in front:
            where = (point.scores.text, point.scores.picture)
            axes.annotate(f"{point.bias:g}/{point.temperature:g}", where, fontsize=7,
                          xytext=(4, 4), textcoords="offset points")  # fmt: skip
        axes.set_xlabel("like the text")
        axes.set_ylabel("like the photos")
        axes.legend(fontsize=8)
        rows = [("bias", "temperature", "picture", "text")]
        rows += [
            (f"{p.bias:g}", f"{p.temperature:g}", f"{p.scores.picture:.3f}", f"{p.scores.text:.3f}")
            for p in front
        ]
        lines = ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows]
        cells = "".join(f"<tr>{line}</tr>" for line in lines)
        return shown(figure, "pictures against text") + f"<table>{cells}</table>"
