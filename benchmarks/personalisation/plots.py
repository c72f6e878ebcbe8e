"""The study's pictures: fronts, ablations, attention maps, and samples of every method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from personalisation.ablations import PLAIN
from personalisation.fronts import front
from personalisation.study import Study
from personalisation.tables import PLANES, Result

COLOURS = ("#c2571a", "#1f4e9c", "#2f8f4e", "#7a4fb5", "#b0306a", "#00839b", "#8a6d00", "#555c68")
MARKERS = ("*", "o", "s", "^", "v", "<", ">", "D")
NAMES = {"text": "text fidelity", "identity": "concept fidelity (identity)",
         "clip_t": "CLIP-T", "clip_i": "CLIP-I"}  # fmt: skip


def labels(
    points: Sequence[tuple[float, float]], scales: Sequence[float], reach: tuple[float, float]
) -> list[tuple[tuple[float, float], str]]:
    """Where to write settings: those that would be written on each other share a label.

    Args:
        points: of one curve, in turn.
        scales: of the points.
        reach: a setting shares the label of the one before if it is nearer in x and in y.
    """
    groups: list[list[int]] = []
    for index, point in enumerate(points):
        first = points[groups[-1][0]] if groups else point
        near = all(abs(p - f) < r for p, f, r in zip(point, first, reach, strict=True))
        if groups and near:
            groups[-1].append(index)
        else:
            groups.append([index])
    ends = [(group[0], group[-1]) for group in groups]
    return [
        (points[one], f"{scales[one]:g}" + (f" to {scales[two]:g}" if two > one else ""))
        for one, two in ends
    ]


def trade_off(results: Mapping[str, Result], methods: Sequence[str], plane: str) -> Any:
    """Every setting of every method, and the methods' fronts."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 5.2), layout="constrained")
    axes = figure.subplots()
    x, y = PLANES[plane]
    every = [[point.mean(axis) for name in methods for point in results[name].points]
             for axis in (x, y)]  # fmt: skip
    reach = tuple(0.035 * (max(own) - min(own)) for own in every)
    for index, name in enumerate(methods):
        points = [(point.mean(x), point.mean(y)) for point in results[name].points]
        style = {"color": COLOURS[index], "marker": MARKERS[index]}
        axes.scatter(*zip(*points, strict=True), s=14, alpha=0.35, **style)
        best = front(points)
        wide = (
            {"linewidth": 2.4, "markersize": 11} if not index else {"linewidth": 1, "markersize": 5}
        )
        axes.plot(*zip(*best, strict=True), label=name, **style, **wide)
        if not index:
            _curve(axes, points, [p.scale for p in results[name].points], reach)
    for name, marker in {"category word": "x", "description in words": "+"}.items():
        point = results[name].points[0]
        axes.scatter(
            [point.mean(x)], [point.mean(y)], marker=marker, s=70, color="black", label=name
        )
    axes.set_xlabel(NAMES[x])
    axes.set_ylabel(NAMES[y])
    axes.set_title("numbers beside stars: bias of the gate, all from one training", fontsize=9)
    axes.legend(fontsize=7.5)
    axes.grid(alpha=0.25)
    return figure


def _curve(
    axes: Any, points: Sequence[tuple[float, float]], scales: Sequence[float],
    reach: tuple[float, float],
) -> None:  # fmt: skip
    """Perfusion's settings in turn, with their biases."""
    axes.plot(*zip(*points, strict=True), color=COLOURS[0], linewidth=1, linestyle=":")
    for point, text in labels(points, scales, reach):
        axes.annotate(text, point, fontsize=7, xytext=(5, 3), textcoords="offset points")


def ablation_plot(table: Mapping[str, Mapping[str, Any]]) -> Any:
    """The harmonic mean of the two fidelities after each change."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 0.28 * len(table) + 0.9), layout="constrained")
    axes = figure.subplots()
    names = sorted(table, key=lambda name: table[name]["balance"])
    axes.barh(names, [table[name]["balance"] for name in names],
              color=["#c2571a" if name == PLAIN else "#9bb1d6" for name in names])  # fmt: skip
    axes.set_xlabel("harmonic mean of concept and text fidelity, at the best scale")
    axes.tick_params(labelsize=8)
    return figure


def attention_plot(results: Mapping[str, Mapping[str, Any]], columns: int = 4) -> Any:
    """Pictures with, under each, where it attends to the word that stands for the concept."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.7 * columns + 0.4, 3.6 * len(results)), layout="constrained")
    grid = figure.subplots(2 * len(results), columns, squeeze=False)
    highest = max(np.max(result["maps"]) for result in results.values())
    for row, (name, result) in enumerate(results.items()):
        for column in range(columns):
            above, below = grid[2 * row][column], grid[2 * row + 1][column]
            above.imshow(np.asarray(result["pixels"][column], dtype=np.uint8))
            below.imshow(np.asarray(result["maps"][column]), vmin=0, vmax=highest, cmap="magma")
            for axes in (above, below):
                axes.set_xticks([])
                axes.set_yticks([])
            text = result["texts"][column].removeprefix("a photo of ")
            above.set_title(_wrapped(text), fontsize=6.5)
        grid[2 * row][0].set_ylabel(name, fontsize=8)
    return figure


def _wrapped(text: str, width: int = 26) -> str:
    words, lines = text.split(), [""]
    for word in words:
        if len(lines[-1]) + len(word) > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)


# ---------------------------------------------------------------------------- samples


def samples(study: Study, concept: Any, count: int = 6, zoom: int = 2) -> Image.Image:
    """A row of real photos, then one row of pictures for each method at its chosen setting."""
    file = study.folder / "figures" / f"samples-{concept.name}.png"
    if file.exists():
        return Image.open(file)
    asked = study.world.curve(concept)[:count]
    rows = {"photos": torch.stack([_array(p.image) for p in concept.photos(count)])}
    for name, method in study.methods.items():
        choice = study.choice(method)
        if choice is None:
            continue
        made = [a for a in study.artefacts(method, concept, choice) if a.step == choice.step]
        made = made or study.artefacts(method, concept, choice)[-1:]
        with method.apply(study.world.sampler, made[-1], choice.scale):
            rows[name] = study.world.draw(asked, method.phrase(made[-1].subject))
    sheet = _sheet(rows, zoom)
    file.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(file)
    return sheet


def _array(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image.convert("RGB")).copy())


def _sheet(rows: Mapping[str, torch.Tensor], zoom: int, label: int = 13) -> Image.Image:
    edge = next(iter(rows.values())).shape[1] * zoom
    count = max(len(row) for row in rows.values())
    sheet = Image.new("RGB", (count * edge, len(rows) * (edge + label)), "white")
    pen = ImageDraw.Draw(sheet)
    for index, (name, row) in enumerate(rows.items()):
        top = index * (edge + label)
        pen.text((2, top), name, fill="black")
        for column, picture in enumerate(row):
            image = Image.fromarray(picture.numpy()).resize((edge, edge), Image.Resampling.NEAREST)
            sheet.paste(image, (column * edge, top + label))
    return sheet


def save(figure: Any, file: Path, dpi: int = 100) -> None:
    """Write a figure or a picture as a PNG of few colours: these files are kept in git."""
    if isinstance(figure, Image.Image):
        image = figure.convert("RGB")
    else:
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        figure.set_dpi(dpi)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    image.quantize(256).save(file, optimize=True)
