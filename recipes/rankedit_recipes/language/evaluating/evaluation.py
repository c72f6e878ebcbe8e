"""Does a model say what it was edited to say, and nothing else differently?

The measures are CounterFact's and zsRE's, and the divergence on unrelated text; `MEASURES` defines
each. They apply to any causal model, edited or not, by whatever method.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

import rankedit as rk
from rankedit.progress import progress as show_progress
from rankedit_recipes.language.errors import LanguageError
from rankedit_recipes.language.evaluating.answering import answered
from rankedit_recipes.language.evaluating.generating import LENGTH, generate, generation_entropy
from rankedit_recipes.language.evaluating.likelihoods import (
    BATCH_TOKENS,
    Likelihoods,
    Pair,
    likelihoods,
)
from rankedit_recipes.language.evaluating.locality import Unrelated
from rankedit_recipes.language.evaluating.references import TfIdf
from rankedit_recipes.language.evaluating.scores import Scores, joined, relation_of
from rankedit_recipes.language.requests import Case, Request, continued

# What each kind of prompt is called among the measures.
_KINDS = ("efficacy", "paraphrase", "inverted phrasing", "neighbourhood")
# And among those of free generation.
_FREELY = {
    "efficacy": "free generation",
    "paraphrase": "paraphrase free generation",
    "neighbourhood": "neighbourhood free generation",
}


def evaluate(
    model: nn.Module,
    tokenizer: Any,  # noqa: ANN401 - a fast tokenizer of transformers
    cases: Sequence[Case],
    *,
    unrelated: Unrelated | None = None,
    answers: bool = False,
    generations: bool = False,
    length: int = LENGTH,
    batch_tokens: int = BATCH_TOKENS,
    seed: int = 0,
    space: bool | None = None,
    chat: bool | None = None,
    progress: bool = True,
) -> Scores:
    """Scores of a model over cases.

    Args:
        model: a causal model of transformers, as it is now; edits are to be attached or fused.
        tokenizer: its fast tokenizer.
        cases: what was edited, with the prompts to evaluate on.
        unrelated: what the unedited model predicts on unrelated text, for the locality.
        answers: also let the model answer freely, which the measures of free generation need.
        generations: also let the model write, for the generation entropy and, where cases have
            `references`, the reference score. It takes longer than all the rest, and needs cases
            with `generation_prompts`.
        length: of those texts, in tokens.
        batch_tokens: tokens in one forward pass, at most.
        seed: of those texts.
        space: for cases whose request leaves it open; see `Request.space`.
        chat: the same; see `Request.chat`. All prompts of such a case are what the user says, and
            the targets, or what the model writes, what the assistant begins with.
        progress: show it.

    Raises:
        LanguageError: no cases, or a model that gives NaN.
    """
    if not cases:
        raise LanguageError("evaluate: at least one case is expected, got none.")
    cases = [replace(c, request=c.request.settled(space=space, chat=chat)) for c in cases]
    questions = _Questions(cases)
    found = likelihoods(
        model, tokenizer, questions.pairs,
        batch_tokens=batch_tokens, chat=questions.chats, progress=progress,
    )  # fmt: skip
    samples = questions.samples(found)
    if answers:
        samples |= questions.answers(model, tokenizer)
    if generations:
        samples |= _of_writing(model, tokenizer, cases, length, seed)
    if unrelated is not None:
        samples["locality"] = unrelated.divergences(model)
    return Scores(
        tuple(case.request.label for case in cases),
        tuple(relation_of(case) for case in cases),
        samples,
    )


def evaluate_each(
    model: nn.Module,
    tokenizer: Any,  # noqa: ANN401 - a fast tokenizer of transformers
    cases: Sequence[Case],
    edits: Iterable[Mapping[str, rk.Edit]],
    *,
    unrelated: Unrelated | None = None,
    space: bool | None = None,
    chat: bool | None = None,
    progress: bool = True,
) -> Scores:
    """Scores of edits that are made one at a time, each evaluated on its own case alone.

    Args:
        model: the unedited model.
        tokenizer: its fast tokenizer.
        cases: what was edited.
        edits: for each case what `rankedit.attach` takes; attached for this case only.
        unrelated: as in `evaluate`; the locality is then a mean over edits.
        space: as in `evaluate`.
        chat: as in `evaluate`.
        progress: show it.

    Raises:
        LanguageError: no cases.
    """
    parts = []
    with show_progress("evaluate each", len(cases), shown=progress) as advance:
        for case, edit in zip(cases, edits, strict=True):
            # One at a time, and out again: the next edit starts from the unedited model.
            with rk.attach(model, edit):
                found = evaluate(
                    model, tokenizer, [case],
                    unrelated=unrelated, space=space, chat=chat, progress=False,
                )  # fmt: skip
            parts.append(found)
            advance(case.request.label)
    return joined(parts)


class _Questions:
    """Everything that the cases ask of a model: pairs of texts, and which measure each serves."""

    def __init__(self, cases: Sequence[Case]) -> None:
        self.pairs: list[Pair] = []
        # What is asked in words: the measure, the case, and the pair that has prompt and target.
        self._free: list[tuple[str, int, int]] = []
        self.chats: list[bool] = []
        self._count = len(cases)
        # By measure: the case, and the pairs to compare or to count.
        self._compared: dict[str, list[tuple[int, int, int]]] = {kind: [] for kind in _KINDS}
        self._counted: dict[str, list[tuple[int, int]]] = {}
        for index, case in enumerate(cases):
            self._ask(index, case)

    def _ask(self, index: int, case: Case) -> None:
        new, true = case.request.target, case.true_target
        asked = {
            "efficacy": (case.request.text,),
            "paraphrase": case.paraphrases,
            "inverted phrasing": case.inverted,
        }
        # What is wanted behind a prompt, and what it competes with.
        pairs = [(kind, text, new, true) for kind, texts in asked.items() for text in texts]
        # A neighbour is to keep its answer: without one nothing is asked of it.
        pairs += [("neighbourhood", text, answer, new) for text, answer in case.answered]
        for kind, prompt, wanted, other in pairs:
            first = self._add(case.request, prompt, wanted)
            self._counted.setdefault(f"{kind} accuracy", []).append((index, first))
            if kind in _FREELY:
                self._free.append((_FREELY[kind], index, first))
            if other:
                second = self._add(case.request, prompt, other)
                self._compared[kind].append((index, first, second))
        for question, answer in case.locality:
            pair = self._add(case.request, question, answer)
            self._counted.setdefault("specificity accuracy", []).append((index, pair))

    def _add(self, request: Request, text: str, target: str) -> int:
        # In a chat the template says what stands between the two.
        if not request.chat:
            # The continuation brings its space; two of them would be other tokens.
            text = text if request.space is False else text.rstrip(" ")
            target = continued(target, text, space=request.space)
        self.pairs.append((text, target))
        self.chats.append(bool(request.chat))
        return len(self.pairs) - 1

    def answers(self, model: nn.Module, tokenizer: Any) -> dict[str, Tensor]:  # noqa: ANN401
        """By measure `[cases]`: the share of prompts that the model answers rightly."""
        chosen = [pair for _, _, pair in self._free]
        texts = [self.pairs[pair][0] for pair in chosen]
        targets = [self.pairs[pair][1] for pair in chosen]
        chats = [self.chats[pair] for pair in chosen]
        right = answered(model, tokenizer, texts, targets, chat=chats)
        samples = {}
        for name in dict.fromkeys(name for name, _, _ in self._free):
            rows = [(i, ok) for (n, i, _), ok in zip(self._free, right, strict=True) if n == name]
            case = torch.tensor([i for i, _ in rows])
            samples[name] = self._means(case, torch.tensor([float(ok) for _, ok in rows]).double())
        return samples

    def samples(self, found: Likelihoods) -> dict[str, Tensor]:
        """By measure `[cases]`: the mean over each case's prompts, NaN where it has none."""
        samples = {}
        chance = found.probabilities
        for kind, rows in self._compared.items():
            case, wanted, other = torch.tensor(rows, dtype=torch.long).reshape(-1, 3).T
            # Mean losses: a target of more tokens is not less likely for that alone, as in
            # CounterFact's code.
            better = found.losses[wanted] < found.losses[other]
            samples[kind] = self._means(case, better.double())
            samples[f"{kind} magnitude"] = self._means(case, chance[wanted] - chance[other])
        for name, pairs in self._counted.items():
            case, pair = torch.tensor(pairs).T
            samples[name] = self._means(case, found.accuracies[pair].double())
        return samples

    def _means(self, case: Tensor, values: Tensor) -> Tensor:
        sums = torch.zeros(self._count, dtype=torch.float64).index_add_(0, case, values)
        # 0/0 is NaN: the case has no such prompts.
        return sums / torch.bincount(case, minlength=self._count)


def _of_writing(
    model: nn.Module,
    tokenizer: Any,  # noqa: ANN401
    cases: Sequence[Case],
    length: int,
    seed: int,
) -> dict[str, Tensor]:
    """By measure `[cases]`: what the texts are like that a model writes, NaN where there are none.

    The entropy is the mean of each text's own; references are compared with all of a case's texts
    together, as CounterFact does.
    """
    owners = [i for i, case in enumerate(cases) for _ in case.generation_prompts]
    prompts = [prompt for case in cases for prompt in case.generation_prompts]
    chats = [bool(cases[owner].request.chat) for owner in owners]
    texts = generate(model, tokenizer, prompts, length=length, seed=seed, chat=chats)
    written: list[list[str]] = [[] for _ in cases]
    for owner, text in zip(owners, texts, strict=True):
        written[owner].append(text)
    samples = {"generation entropy": [_mean(map(generation_entropy, each)) for each in written]}
    if any(case.references for case in cases):
        # Each text once: cases with one target share theirs, and frequencies are of texts.
        weights = TfIdf(dict.fromkeys(text for case in cases for text in case.references))
        samples["reference score"] = [
            weights.similarity("\n".join(each), "\n".join(case.references))
            if each and case.references
            else math.nan
            for case, each in zip(cases, written, strict=True)
        ]
    return {name: torch.tensor(values, dtype=torch.float64) for name, values in samples.items()}


def _mean(values: Iterable[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan
