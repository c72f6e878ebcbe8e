"""Figures of matplotlib: scores against the number of edits, by relation, and causal traces."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

from rankedit_recipes.language.evaluating.measures import COMBINED, MEASURES, Figure
from rankedit_recipes.language.evaluating.scores import Scores
from rankedit_recipes.language.evaluating.tracing import PLACES, Trace

COLOURS = ("#1f4e9c", "#c2571a", "#2f8f4e", "#7b3fa0", "#8a8f3a", "#a02c4a", "#3a8fa0", "#6b6b6b")
Curve = Mapping[int, Scores]


def growth_figure(
    curves: Mapping[str, Curve], measures: Sequence[str] = COMBINED, *, base: Scores | None = None
) -> Any:  # noqa: ANN401 - a figure of matplotlib
    """Scores against the number of edits, a panel for each measure, with 95 % intervals.

    Args:
        curves: by method: scores by the number of edits.
        measures: what to show.
        base: scores of the unedited model, drawn as a line.
    """
    # Imported where it is needed, and without pyplot, which keeps every figure and wants a display.
    from matplotlib.figure import Figure as Picture

    picture = Picture(figsize=(3.4 * len(measures), 3.0), layout="constrained")
    panels = picture.subplots(1, len(measures), squeeze=False)[0]
    for panel, name in zip(panels, measures, strict=True):
        for index, (method, curve) in enumerate(curves.items()):
            points = {n: s.figures[name] for n, s in sorted(curve.items()) if name in s.figures}
            _line(panel, points, method, COLOURS[index % len(COLOURS)])
        if base is not None and name in base.figures:
            panel.axhline(base[name], color="#888", linestyle=":", label="unedited")
        panel.set_title(name, fontsize=10)
        panel.set_xlabel("edits")
        panel.set_ylabel(_unit(name))
    # One for all, which have the same curves.
    panels[-1].legend(fontsize=7)
    return picture


def _line(panel: Any, points: Mapping[int, Figure], label: str, colour: str) -> None:  # noqa: ANN401
    numbers = list(points)
    panel.plot(numbers, [p.value for p in points.values()], "o-", color=colour, label=label,
               markersize=3, linewidth=1.2)  # fmt: skip
    low, high = [p.low for p in points.values()], [p.high for p in points.values()]
    panel.fill_between(numbers, low, high, color=colour, alpha=0.15, linewidth=0)


def relations_figure(scores: Scores, measures: Sequence[str] = COMBINED) -> Any:  # noqa: ANN401
    """Scores of each relation as bars with 95 % intervals, and the mean over all as a line."""
    from matplotlib.figure import Figure as Picture

    groups = scores.by_relation()
    shown = [name for name in measures if name in scores.figures]
    picture = Picture(
        figsize=(max(4.0, 0.45 * len(groups) * max(1, len(shown)) ** 0.5 + 2), 3.2),
        layout="constrained",
    )
    axes = picture.subplots()
    # A fifth of the way to the next group stays free.
    width = 0.8 / max(1, len(shown))
    for index, name in enumerate(shown):
        found = {r: s.figures[name] for r, s in groups.items() if name in s.figures}
        places = [list(groups).index(r) + (index + 0.5) * width - 0.4 for r in found]
        values = [f.value for f in found.values()]
        # Lengths of the bars; rounding may make them negative, which matplotlib refuses.
        errors = [
            [max(0.0, f.value - f.low) for f in found.values()],
            [max(0.0, f.high - f.value) for f in found.values()],
        ]
        axes.bar(places, values, width, color=COLOURS[index], yerr=errors,
                 error_kw={"linewidth": 0.8}, label=name)  # fmt: skip
        axes.axhline(scores[name], color=COLOURS[index], linewidth=0.7, linestyle=":")
    axes.set_xticks(range(len(groups)), [_short(r) for r in groups], rotation=35, ha="right")
    axes.set_ylabel("%")
    axes.legend(fontsize=7)
    return picture


def trace_figure(trace: Trace) -> Any:  # noqa: ANN401 - a figure of matplotlib
    """Causal trace: a panel for each kind of part, layers against groups of tokens."""
    from matplotlib.figure import Figure as Picture

    # One scale for all panels: they are to be compared.
    largest = max(float(grid.nan_to_num(0).max()) for grid in trace.effects.values())
    count = len(trace.effects)
    picture = Picture(figsize=(3.4 * count + 1.2, 3.2), layout="constrained")
    panels = picture.subplots(1, count, squeeze=False)[0]
    for panel, (kind, grid) in zip(panels, trace.effects.items(), strict=True):
        kept = [i for i in range(len(PLACES)) if not bool(grid[:, i].isnan().all())]
        image = panel.imshow(grid[:, kept].T.numpy(), cmap="Purples", vmin=0, vmax=largest,
                             aspect="auto")  # fmt: skip
        panel.set_title(f"restored: {kind}", fontsize=10)
        panel.set_xlabel("layer")
        panel.set_xticks(range(len(grid)))
        panel.set_yticks(range(len(kept)), [PLACES[i] for i in kept] if panel is panels[0] else [])
    picture.colorbar(image, ax=list(panels), label="probability of the answer that returns")
    return picture


def png(picture: Any, *, resolution: int = 110) -> bytes:  # noqa: ANN401
    """A figure as a PNG file."""
    stream = io.BytesIO()
    picture.savefig(stream, format="png", dpi=resolution)
    return stream.getvalue()


def embedded(picture: Any, text: str) -> str:  # noqa: ANN401
    """A figure as an element of HTML that needs no other file."""
    import html

    data = base64.b64encode(png(picture)).decode()
    alt = html.escape(text, quote=True)
    return f'<img class="plot" alt="{alt}" src="data:image/png;base64,{data}">'


def _unit(name: str) -> str:
    # Entropy is shown a hundredfold, as published, and is no share of anything.
    return "%" if MEASURES[name].scale == 100 and name != "generation entropy" else ""


def _short(text: str, longest: int = 24) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}…"
