"""What a probe found, and the report of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import Any

from PIL import Image

from rankedit.atomic import atomic_write
from rankedit_recipes.concepts.probing.relearning import Curve
from rankedit_recipes.diffusion.pages import figure, gallery, page, section, table

_SHOWN = 12


@dataclass(frozen=True, eq=False)
class Finding:
    """One prompt, without the edit and with it, from the same noise.

    Attributes:
        concept: what was looked for.
        kind: `"contexts"`, `"implicit"`, `"neighbours"`, `"kept"` or `"around"`.
        prompt: the prompt.
        before: how far the picture shows the concept without the edit.
        after: with it.
        pictures: both.
    """

    concept: str
    kind: str
    prompt: str
    before: float
    after: float
    pictures: tuple[Image.Image, Image.Image] = field(repr=False)


@dataclass(frozen=True, eq=False)
class Probed:
    """What a probe found.

    Attributes:
        findings: of every prompt.
        title: of the report.
        curves: how soon concepts come back when they are taught anew.
    """

    findings: tuple[Finding, ...]
    title: str
    curves: tuple[Curve, ...] = ()

    def shares(self) -> dict[tuple[str, str], tuple[float, float]]:
        """By concept and kind how far pictures show it, in the mean: before, after."""
        groups: dict[tuple[str, str], list[Finding]] = {}
        for finding in self.findings:
            groups.setdefault((finding.concept, finding.kind), []).append(finding)
        return {
            key: (sum(f.before for f in own) / len(own), sum(f.after for f in own) / len(own))
            for key, own in groups.items()
        }

    def save(self, path: str | PathLike[str]) -> None:
        """Write a report as one HTML file: shares, curves, and pictures before and after."""
        gone = {k: v for k, v in self.shares().items() if k[1] not in ("kept", "around")}
        kept = {k: v for k, v in self.shares().items() if k not in gone}
        parts = [
            section("How far pictures show what is gone", table(_told(gone))),
            section("How soon it is back", self._curves()),
            section("What of its neighbourhood was lost", table(_told(kept))),
            *(section(f"{concept}: {kind}", self._pairs(concept, kind)) for concept, kind in gone),
            *(section(f"{concept}: {kind}", self._pairs(concept, kind)) for concept, kind in kept),
            *(section(f"{c.concept}, {c.learner}", gallery(_shown(c))) for c in self.curves),
        ]
        with atomic_write(path) as temporary:
            temporary.write_text(page(self.title, parts), encoding="utf-8")

    def _pairs(self, concept: str, kind: str) -> str:
        own = [f for f in self.findings if (f.concept, f.kind) == (concept, kind)][:_SHOWN]
        shown = {}
        for number, finding in enumerate(own, 1):
            for when, picture in zip(("before", "after"), finding.pictures, strict=True):
                shown[f"{number}. {when}: {finding.prompt}"] = picture
        return gallery(shown)

    def _curves(self) -> str:
        if not self.curves:
            return ""
        told = {f"{curve.concept}, {curve.learner}": str(curve) for curve in self.curves}
        return figure(plotted(self.curves), "presence by steps of learning") + table(told)


def plotted(curves: Sequence[Curve], names: Sequence[str] = ()) -> Any:  # noqa: ANN401
    """A figure of matplotlib: how far pictures show each concept, by steps of learning.

    Args:
        curves: what is drawn.
        names: of them; by default concept and learner.
    """
    from matplotlib.figure import Figure

    plot = Figure(figsize=(7.0, 3.2), layout="constrained")
    axes = plot.subplots()
    labels = names or [f"{curve.concept}, {curve.learner}" for curve in curves]
    for curve, label in zip(curves, labels, strict=True):
        steps, shares = [p.step for p in curve.points], [p.shown for p in curve.points]
        axes.plot(steps, shares, marker="o", label=label)
    axes.set(xlabel="steps of learning", ylabel="shown", ylim=(-0.03, 1.03))
    axes.legend(fontsize="small")
    return plot


def _told(shares: dict[tuple[str, str], tuple[float, float]]) -> dict[str, str]:
    return {
        f"{concept}, {kind}": f"{before:.0%} before, {after:.0%} after"
        for (concept, kind), (before, after) in shares.items()
    }


def _shown(curve: Curve) -> dict[str, Image.Image]:
    """Pictures of a curve: what it was taught from, and some of each step."""
    found = {f"given {i}": picture for i, picture in enumerate(curve.examples[:4], 1)}
    for point in curve.points:
        step = max(1, len(point.pictures) // 4)
        for i, picture in enumerate(point.pictures[::step][:4], 1):
            found[f"after {point.step} steps, {i}"] = picture
    return found
