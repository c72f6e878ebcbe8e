"""The model, its cases and what is known about both: what every row of the study starts from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from rankedit_recipes import language
from rankedit_recipes.language.evaluating.locality import Unrelated
from rankedit_recipes.language.reading import case_of
from rankedit_recipes.language.requests import Case
from rankedit_recipes.sandbox import facts
from torch import nn

SINGLE, MANY = 300, 500
"""Requests edited one at a time, and together."""

TEXTS = 2000
"""Of the corpus, for all of the statistics."""

KEPT = Path("outputs/benchmarks/language")
"""Where what was computed is kept."""

STATISTICS_SEED, UNRELATED_SEED = 1, 2


@dataclass
class World:
    """The unedited model and what is asked of it."""

    model: nn.Module
    tokenizer: Any
    cases: Sequence[Case]

    @classmethod
    def open(cls, folder: Path | None = None) -> World:
        """The shipped model, or that of a folder, with the test set."""
        cases = [case_of(record) for record in facts.cases(2 * MANY)]
        opened = cls(facts.load_model(folder).eval(), facts.load_tokenizer(folder), cases)
        # Of the unedited model, whatever is asked first later on.
        _ = opened.unrelated, opened.few_unrelated, opened.digest
        return opened

    @cached_property
    def digest(self) -> str:
        """Of weights and cases: results of other ones are not reused."""
        found = hashlib.sha256(repr(self.cases).encode())
        for name, tensor in self.model.state_dict().items():
            found.update(name.encode() + tensor.detach().numpy().tobytes())
        return found.hexdigest()[:16]

    @cached_property
    def blocks(self) -> list[language.Block]:
        """The blocks of the model."""
        return language.find_blocks(self.model)

    def statistics(self, share: float = 1.0) -> language.Statistics:
        """What the projections read on a share of the corpus, kept in a file."""
        file = KEPT / f"statistics-{self.digest}-{share:g}.safetensors"
        if not file.exists():
            texts = list(islice(facts.corpus(STATISTICS_SEED), round(share * TEXTS)))
            found = language.collect_statistics(self.model, self.tokenizer, texts, batch=64)
            found.save(file, self.model)
        return language.load_statistics(file, self.model, self.tokenizer)

    @cached_property
    def unrelated(self) -> Unrelated:
        """Predictions on texts that name no subject of the cases."""
        return Unrelated(self.model, self.tokenizer, list(self._texts(2000)), tokens=2048)

    @cached_property
    def few_unrelated(self) -> Unrelated:
        """Fewer of them, for edits that are evaluated one at a time."""
        return Unrelated(self.model, self.tokenizer, list(self._texts(200)), tokens=256)

    def _texts(self, count: int) -> Iterable[str]:
        subjects = [case.request.subject for case in self.cases]
        for text in islice(facts.corpus(UNRELATED_SEED), count):
            if not any(subject in text for subject in subjects):
                yield text
