"""Neighbours of one request that are themselves rewritten by another one of the same set."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from rankedit_recipes.language.requests import Case, Request


def without_rewritten(cases: Sequence[Case], edited: Sequence[Case] | None = None) -> list[Case]:
    """Cases without the neighbours whose answers the edits are meant to change.

    A neighbour asks the case's relation of another subject, of which the case's true target is true
    as well. Where that subject's own fact is edited at the same time, the true target is no longer
    right there, and the prompt tells nothing about what an edit does beside its purpose. An edited
    fact is that of a neighbour if the prompt names its subject, as whole words, its relation is
    that of the case, and its true target is the neighbour's answer, as far as they are known.

    Args:
        cases: to evaluate.
        edited: what the model is edited with at that time; the cases themselves if None.

    Returns:
        The cases in their order, of which some have fewer neighbours.

    Example:
        >>> from rankedit_recipes.language import Request
        >>> ada = Case(Request("{} plays the", "Ada", "oboe"), "lute", neighbours=("Bo plays the",))
        >>> bo = Case(Request("{} plays the", "Bo", "harp"), "lute", neighbours=("Cy plays the",))
        >>> [case.neighbours for case in without_rewritten([ada, bo])]
        [(), ('Cy plays the',)]
    """
    rewritten = _Rewritten(cases if edited is None else edited)
    found = []
    for case in cases:
        own = case.neighbour_answers
        answers = own or (case.true_target,) * len(case.neighbours)
        pairs = zip(case.neighbours, answers, strict=True)
        kept = [(t, answer) for t, answer in pairs if not rewritten.holds(case, t, answer)]
        if len(kept) == len(case.neighbours):
            found.append(case)
            continue
        texts, left = tuple(t for t, _ in kept), tuple(answer for _, answer in kept)
        found.append(replace(case, neighbours=texts, neighbour_answers=left if own else ()))
    return found


class _Rewritten:
    """What is edited, by true target, for there may be thousands."""

    def __init__(self, edited: Sequence[Case]) -> None:
        self._facts: dict[str, list[tuple[Request, re.Pattern[str]]]] = defaultdict(list)
        for case in edited:
            # Whole words, for Ann is not Anna; the pattern's own `\b` would fail beside a dot.
            words = re.compile(rf"(?<!\w){re.escape(case.request.subject)}(?!\w)")
            self._facts[case.true_target].append((case.request, words))

    def holds(self, case: Case, text: str, answer: str) -> bool:
        """Whether a neighbour of the case asks for what another edit changes."""
        own = case.request
        # A case that does not tell its true target may be about anybody's.
        near = [(known, *fact) for known in {answer, ""} for fact in self._facts[known]]
        return any(
            _same_relation(own, other, known)
            and other.subject != own.subject
            # Much cheaper than the pattern, and false nearly always.
            and other.subject in text
            and words.search(text) is not None
            for known, other, words in near
        )


def _same_relation(own: Request, other: Request, true: str) -> bool:
    """Where one of the two has no relation, that they have a true target in common must do."""
    if own.relation and other.relation:
        return own.relation == other.relation
    return bool(true)
