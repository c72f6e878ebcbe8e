"""Why a batch is harder than one edit here: subjects that end in the same word have like keys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rankedit_recipes.language.requests import Case

import rankedit as rk
from editing.direct import Editor
from editing.rows import Row
from editing.world import MANY


def distinct(cases: Sequence[Case]) -> list[Case]:
    """The first case of each last word of a subject."""
    found: dict[str, Case] = {}
    for case in cases:
        found.setdefault(_last(case), case)
    return list(found.values())


def sharing(editor: Editor, settings: Any, layers: Any) -> Row:
    """Batches of one size: last words all different, and as they come; and cosines of keys."""
    world = editor.world
    cases = world.cases[:MANY]
    apart = distinct(cases)
    engine = editor.engine(settings, layers)
    scores = {}
    for name, chosen in (("different last words", apart), ("any subjects", cases[: len(apart)])):
        edits = engine.solved(editor.facts(engine, chosen))
        with rk.attach(world.model, edits):
            scores[f"{name}, {len(chosen)} facts"] = editor.scores(chosen)
    return Row("", scores, _cosines(editor, engine, cases))


def _cosines(editor: Editor, engine: Any, cases: Sequence[Case]) -> dict[str, float]:
    """Mean cosine under the metric: of keys whose subjects share their last word, and of others."""
    facts = editor.facts(engine, cases)
    name = engine.chosen[0].down
    cosines = engine.metrics[name].cosine(facts.keys[name], facts.keys[name]).cpu()
    words = [_last(case) for case in cases]
    same: list[float] = []
    other: list[float] = []
    for i, word in enumerate(words):
        for j in range(i):
            (same if words[j] == word else other).append(float(cosines[i, j]))
    return {
        "cosine, same last word": sum(same) / len(same),
        "cosine, others": sum(other) / len(other),
        "last words": len(set(words)),
    }


def _last(case: Case) -> str:
    return case.request.subject.split()[-1]
