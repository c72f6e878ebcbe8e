"""Measured figures as the documentation shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

OFF = "off the concept, {}: another seed changes so many times more, least"
REACHED = (
    ("identity in new prompts", "identity", "0.80", ".2f"),
    ("scene obeyed", "scene obeyed", "0.90", ".2f"),
    ("category kept", "category kept", "0.95", ".2f"),
    ("second object, of what the category's word reaches",
     "second object, of what the base model reaches", "0.80", ".2f"),
    ("identity from one photo, of that from five",
     "identity from one photo, of that from five", "0.85", ".2f"),
    ("two merged: both there, each the right one of 16",
     "two merged: both there, each the right one", "0.60", ".2f"),
    ("two merged: both there", "two merged: both there", "", ".2f"),
    ("the same without a dead zone: each the right one",
     "no dead zone: both there, each the right one", "", ".2f"),
    ("the same without a dead zone: both there", "no dead zone: both there", "", ".2f"),
    ("the same at a bias of 0.5: each the right one",
     "bias 0.5: each the right one", "", ".2f"),
    ("the same at a bias of 0.5: both there", "bias 0.5: both there", "", ".2f"),
    ("two described in words, nothing learned: each the right one",
     "described: both there, each the right one", "", ".2f"),
    ("identity lost while another concept is loaded, points",
     "identity lost while another is loaded, points", "at most 5", ".1f"),
    ("sweep: text fidelity lost at its best, points",
     "sweep: text fidelity lost at its best, points", "at most 3", ".1f"),
    ("prompts without it, the paper's gate: another seed changes so many times more, least of "
     "eight", OFF.format("the paper's gate"), "20", ".1f"),
    ("the same, normalised gate", OFF.format("the normalised gate"), "20", ".1f"),
    ("the same, the concept's own dead zone", OFF.format("the concept's own dead zone"),
     "nothing changes", ".1f"),
    ("a step of learning, of textual inversion's", "a step, of textual inversion's",
     "at most 1.15", ".2f"),
    ("a picture with one concept, of one without", "a picture with one concept, of one without",
     "at most 1.03", ".3f"),
    ("a picture with two concepts", "a picture with two concepts, of one without",
     "at most 1.03", ".3f"),
    ("learning, the slowest concept, seconds (one thread, beside another process)",
     "learning, slowest concept, seconds", "at most 180", ".0f"),
)  # fmt: skip
"""What the page says, the line's name, the aim, and how the figure is written."""

KINDS = ("as learned", "all keys locked", "global lock", "one photo", "one photo, bias 0.7",
         "word alone", "described in words")  # fmt: skip
FIGURES = {"identity": "identity", "right": "right one of 16", "category": "category",
           "scene": "scene", "other": "second object", "text": "text"}  # fmt: skip
RATIO = "Perfusion's by the judges, of this one's"
MORE = "Similarity by CLIP, diversity, damage off the concept"
ABOVE = "Perfusion's identity above this one's, at the chosen settings"
OFTENER = "Perfusion right more often by"
AREAS = {"judges, above both trivial methods": "hypervolume", RATIO: "Perfusion ÷ this",
         ABOVE: "identity, Perfusion − this"}  # fmt: skip
COSTS = {"kilobytes": "file, KB", "train_seconds": "training, s", "train_megabytes": "memory, MB",
         "overhead": "a picture"}  # fmt: skip
FURTHER = {"category": "category", "scene": "scene", "other": "second object",
           "relation": "relation", "clip_i": "CLIP-I", "clip_t": "CLIP-T",
           "diversity": "diversity", "off_kept": "others kept", "leak": "leak"}  # fmt: skip
_RETRAINED = {
    "identity": "identity", "identity gained": "identity gained", "text": "text",
    "hypervolume": "hypervolume", "that of the usual training": "usual training's",
    RATIO: "Perfusion ÷ this",
}  # fmt: skip
BESIDE = {
    "Two concepts in one picture": {
        "both_right": "both right", "both_present": "both there",
        "worse_identity": "lower identity",
        OFTENER: "both right, Perfusion − this",
    },
    "Ablations": {
        "harmonic mean": "harmonic mean", "identity": "identity",
        "identity gained": "identity gained", "text": "text", "at scale": "bias or strength",
    },
    "Trained longer": _RETRAINED,
    "Baselines with masks": _RETRAINED,
}  # fmt: skip
"""Figures' names in the comparison's summary, and on its page."""
_VERDICT = {True: "yes", False: "**no**", None: ""}


def tables(lines: Sequence[Mapping[str, Any]], biases: Sequence[float]) -> list[str]:
    """What was reached, the kinds side by side, and the sweep: three tables of Markdown.

    Args:
        lines: of `results.json`.
        biases: of the sweep.
    """
    named = {line["name"]: line for line in lines}
    reached = [
        (name, _measured(named[key], form), aim, _VERDICT[named[key]["reached"]])
        for name, key, aim, form in REACHED
    ]
    kinds = [
        (kind, *(f"{named[f'{kind}: {figure}']['value']:.2f}" for figure in FIGURES))
        for kind in KINDS
    ]
    sweep = [
        (f"{bias:g}", f"{named[f'bias {bias:g}: identity']['value']:.2f}",
         f"{named[f'bias {bias:g}: text']['value']:.3f}")
        for bias in biases
    ]  # fmt: skip
    return [
        _table(("figure", "measured", "aim", "reached"), reached),
        _table(("", *FIGURES.values()), kinds),
        _table(("bias", "identity", "text"), sweep),
    ]


def compared(summary: Mapping[str, Any]) -> list[str]:
    """The comparison as its page shows it: methods, settings, and what stands beside them.

    Args:
        summary: `summary.json` of the results.
    """
    of = {title: _by_row(rows) for title, rows in summary["tables"].items()}
    asked, more, cost = of["What is asked for"], of[MORE], of["Cost"]
    main, further = [], []
    for name, own in asked.items():
        areas = [of["Hypervolume"].get(name, {}).get(column, "") for column in AREAS]
        costs = [_mean(cost.get(name, {}).get(figure, "")) for figure in COSTS]
        damage = more[name].get("off_changed", "")
        main.append((name, own["identity"], own["text"], *areas, damage, *costs))
        found = own | more[name]
        further.append((name, *(_mean(found[figure]) for figure in FURTHER)))
    beside = {
        title: [
            (name, *(own[figure] for figure in names)) for name, own in of.get(title, {}).items()
        ]
        for title, names in BESIDE.items()
    }
    return [
        _table(("method", "identity", "text", *AREAS.values(), "off", *COSTS.values()), main),
        _table(("method", *FURTHER.values()), further),
        _table(("method", "setting"), summary["tables"]["Settings chosen by the search"][1:]),
        *(_table(("", *BESIDE[title].values()), rows) for title, rows in beside.items()),
    ]


def _by_row(rows: Sequence[Sequence[str]]) -> dict[str, dict[str, str]]:
    """By the first cell of a row its others, by the head of their columns."""
    head = rows[0][1:]
    return {row[0]: dict(zip(head, row[1:], strict=True)) for row in rows[1:]}


def _mean(cell: str) -> str:
    """A figure without its interval."""
    return cell.partition(" [")[0]


def _measured(line: Mapping[str, Any], form: str) -> str:
    if line["value"] is None:
        return "nothing changes"
    spread = f" ± {line['spread']:.2f}" if line["spread"] else ""
    return f"{line['value']:{form}}{spread}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("|" + "".join(f" {cell} |" if cell else " |" for cell in row) for row in lines)
