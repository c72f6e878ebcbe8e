"""Edits of a real model, with every search kept as soon as it is done; and two baselines."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from editing.baselines import fine_tuned
from editing.direct import search_digest
from rankedit_recipes import language
from rankedit_recipes.language.editing import Engine
from rankedit_recipes.language.requests import Case
from rankedit_recipes.language.searching.spreading import Facts
from rankedit_recipes.language.settings import Settings
from torch import Tensor

import rankedit as rk
from real.ground import Ground

CHUNK = 10
"""Facts that are searched for at a time, and lost if a run is stopped in between."""

RATE = 1e-3
"""Of the fine-tuning's Adam; twice that of Meng et al. for GPT-2 XL, whose width is 2.8 times."""


@dataclass(frozen=True)
class Editor:
    """Edits the cases of a ground by any settings.

    Attributes:
        ground: model, cases and texts.
    """

    ground: Ground

    def engine(self, settings: Settings, tokens: int | None = None) -> Engine:
        """The engine of a method with its own blocks, with statistics of so many tokens."""
        statistics = None if settings.cost == "identity" else self.ground.statistics(tokens)
        return Engine.build(
            self.ground.model, self.ground.tokenizer, settings, statistics, progress=False
        )

    def facts(self, engine: Engine, count: int) -> Facts:
        """Keys and values of the first cases, by searches that are kept in files."""
        digest = search_digest(self.ground.digest, engine)
        parts: list[Tensor] = []
        for start in range(0, count, CHUNK):
            file = self.ground.kept / f"shifts-{digest}-{start:03}.safetensors"
            if not file.exists():
                # Whole chunks whatever the count: a larger batch goes on from there.
                chunk = self.ground.cases[start : start + CHUNK]
                shifts = engine.search([case.request for case in chunk]).shifts
                rk.save({"shifts": shifts}, file)
            parts.append(rk.load(file)["shifts"])
        requests = [case.request for case in self.ground.cases[:count]]
        return engine.spread(requests, torch.cat(parts)[:count])

    @contextlib.contextmanager
    def tuned(self, cases: Sequence[Case]) -> Iterator[int]:
        """The model fine-tuned on the cases' requests, breadth first and in one projection.

        In epochs over all requests in small batches, not one request after the other until it is
        learned, as LocFT-BF (ICLR 2026) has it. The projection is the last one that MEMIT edits.
        Gives the steps.
        """
        name = language.find_blocks(self.ground.model)[self.last].down
        requests = [case.request for case in cases]
        options = {"rate": RATE, "batch": 8}
        with fine_tuned(
            self.ground.model, self.ground.tokenizer, requests, [name], **options
        ) as steps:
            yield steps

    @property
    def last(self) -> int:
        """The last block that MEMIT edits."""
        from rankedit_recipes.language.model.layers import all_blocks, choose_blocks

        model = self.ground.model
        chosen = choose_blocks(model, all_blocks(model), None, language.METHODS["memit"])
        return chosen[-1].index


def prompted(cases: Sequence[Case], told: Sequence[Case]) -> list[Case]:
    """The cases with what is told as sentences in front of everything that they ask.

    Nothing of the model is changed: what a prompt of the same facts reaches.
    """
    facts = " ".join(f"{c.request.text}{c.request.continuation}." for c in told)
    # Braces in what is told would be taken for the subject's place.
    before = f"Imagine that this is true: {facts.replace('{', '(').replace('}', ')')} So "
    return [
        replace(
            case,
            request=replace(case.request, prompt=f"{before}{case.request.prompt}"),
            paraphrases=tuple(f"{before}{text}" for text in case.paraphrases),
            neighbours=tuple(f"{before}{text}" for text in case.neighbours),
        )
        for case in cases
    ]
