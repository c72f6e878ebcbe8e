"""The promises' figures as the documentation shows them."""

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

KINDS = ("as learned", "all keys locked", "global lock", "one photo", "word alone",
         "described in words")  # fmt: skip
FIGURES = {"identity": "identity", "right": "right one of 16", "category": "category",
           "scene": "scene", "other": "second object", "text": "text"}  # fmt: skip
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


def _measured(line: Mapping[str, Any], form: str) -> str:
    if line["value"] is None:
        return "nothing changes"
    spread = f" ± {line['spread']:.2f}" if line["spread"] else ""
    return f"{line['value']:{form}}{spread}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in lines).replace("|  |", "| |")
