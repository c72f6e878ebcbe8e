"""All rows of the study of a real model, each kept in a file as soon as it is done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from editing.direct import facts_of
from editing.own import described
from editing.rows import Row, Rows
from rankedit_recipes.language import METHODS, Settings, Stream
from rankedit_recipes.language.evaluating.evaluation import evaluate
from rankedit_recipes.language.evaluating.rewriting import without_rewritten
from rankedit_recipes.language.evaluating.scores import Scores
from rankedit_recipes.language.requests import Case
from rankedit_recipes.language.searching.spreading import Facts

import rankedit as rk
from real.editor import CHUNK, RATE, Editor, prompted

TUNED, PROMPTED, UNEDITED = "fine-tuning", "prompt", "unedited"
BASELINES = (PROMPTED, TUNED)

MOST_PROMPTED = 10
"""Facts that are put into a prompt: each is read anew with every question."""


@dataclass(frozen=True)
class Plan:
    """What is computed.

    Attributes:
        methods: names in METHODS.
        single: facts that are edited one at a time.
        sizes: of batches.
        stream: facts that are added at a time.
        more: tokens of the other statistics that the batches are computed with, too.
    """

    methods: Sequence[str] = ("memit", "alphaedit", "rome", "encore", "emmet")
    single: int = 24
    sizes: Sequence[int] = (10, 50, 100, 250)
    stream: int = 10
    more: int = 250_000


class Study:
    """The rows of the study.

    Args:
        editor: what edits.
        rows: where they are kept.
        plan: which rows.
    """

    def __init__(self, editor: Editor, rows: Rows, plan: Plan) -> None:
        self.editor, self.ground, self.rows, self.plan = editor, editor.ground, rows, plan
        self.cases = list(editor.ground.cases)

    def run(self) -> None:
        """Everything, small things of all methods before large ones of any."""
        self.rows("capability-unedited", self._capability)
        for index in range(self.plan.single):
            self._one(UNEDITED, index, lambda i: self._score([self.cases[i]], few=True))
        for method in self.plan.methods:
            self.singles(method)
        for index in range(self.plan.single):
            self._one(PROMPTED, index, self._prompted)
            self._one(TUNED, index, self._tuned)
        for size in self.plan.sizes:
            self.batches(size)
        for method in self.plan.methods:
            self.stream(method)
        for size in self.plan.sizes:
            for method in self.plan.methods:
                self._batch(method, size, self.plan.more)

    # ------------------------------------------------------------------------ single

    def singles(self, method: str) -> None:
        """One edit at a time."""
        settings = METHODS[method]
        # Not made where every row is there already: it collects statistics.
        made: dict[str, Any] = {}

        def compute(index: int) -> Scores:
            if not made:
                made["engine"] = self.editor.engine(settings)
            if index >= len(made.get("facts", ())):
                # Searched for in chunks, so that a run which is stopped has edited some.
                count = min(index + CHUNK, self.plan.single)
                made["facts"] = self.editor.facts(made["engine"], count)
            edits = made["engine"].solved(facts_of(made["facts"], [index]))
            with rk.attach(self.ground.model, edits):
                return self._score([self.cases[index]], few=True)

        for index in range(self.plan.single):
            self._one(method, index, compute, self._told(settings))

    def _one(self, name: str, index: int, compute: Any, told: dict[str, Any] | None = None) -> None:
        self.rows(f"single-{name}-{index:03}", lambda: Row("", {"1": compute(index)}), told)

    def _prompted(self, index: int) -> Scores:
        cases = prompted([self.cases[index]], [self.cases[index]])
        # No divergence: the weights, and texts without the prompt, are what they were.
        return evaluate(
            self.ground.model, self.ground.tokenizer, cases, answers=True, progress=False
        )

    def _tuned(self, index: int) -> Scores:
        with self.editor.tuned([self.cases[index]]):
            return self._score([self.cases[index]], few=True)

    # ------------------------------------------------------------------------- batch

    def batches(self, size: int) -> None:
        """So many facts together: unedited, by all methods, and by the baselines."""
        cases = self.cases[:size]
        key = f"{size:03}"
        self.rows(f"batch-{UNEDITED}-{key}", lambda: Row("", {str(size): self._score(cases)}))
        if size <= MOST_PROMPTED:
            self.rows(f"batch-{PROMPTED}-{key}", lambda: self._prompted_batch(cases))
        self.rows(f"batch-{TUNED}-{key}", lambda: self._tuned_batch(cases), {"rate": RATE})
        for method in self.plan.methods:
            self._batch(method, size, None)

    def _batch(self, method: str, size: int, tokens: int | None) -> None:
        settings = METHODS[method]

        def compute() -> Row:
            engine = self.editor.engine(settings, tokens)
            with rk.attach(self.ground.model, engine.solved(self.editor.facts(engine, size))):
                return self._measured(self.cases[:size])

        more = f"-{tokens}" if tokens else ""
        self.rows(f"batch-{method}{more}-{size:03}", compute, self._told(settings, tokens))

    def _prompted_batch(self, cases: Sequence[Case]) -> Row:
        asked = prompted(without_rewritten(cases), cases)
        found = evaluate(
            self.ground.model, self.ground.tokenizer, asked, answers=True, progress=False
        )
        return Row("", {str(len(cases)): found})

    def _tuned_batch(self, cases: Sequence[Case]) -> Row:
        with self.editor.tuned(cases) as steps:
            row = self._measured(cases)
        return Row("", row.scores, {**row.numbers, "steps": steps})

    # ------------------------------------------------------------------------ stream

    def stream(self, method: str) -> None:
        """Facts that come a few at a time: how far that is from one batch of all of them."""
        settings, size = METHODS[method], max(self.plan.sizes, default=0)
        told = {**self._told(settings), "stream": self.plan.stream, "facts": size}

        def compute() -> Row:
            engine = self.editor.engine(settings)
            facts = self.editor.facts(engine, size)
            return Row("", {}, {"difference to a batch": self._apart(engine, facts)})

        self.rows(f"stream-{method}", compute, told)

    def _apart(self, engine: Any, facts: Facts) -> float:
        stream = Stream(engine)
        for start in range(0, len(facts), self.plan.stream):
            last = min(start + self.plan.stream, len(facts))
            stream.enter(facts_of(facts, range(start, last)))
        batch = engine.solved(facts)
        return max(
            float((edit.delta() - batch[name].delta()).norm() / batch[name].delta().norm())
            for name, edit in stream.edits().items()
        )

    # ---------------------------------------------------------------------- measures

    def _score(self, cases: Sequence[Case], *, few: bool = False) -> Scores:
        ground = self.ground
        return evaluate(
            ground.model, ground.tokenizer, without_rewritten(cases),
            unrelated=ground.few_unrelated if few else ground.unrelated,
            answers=True, progress=False,
        )  # fmt: skip

    def _measured(self, cases: Sequence[Case]) -> Row:
        """Scores, and what the model as it is now can still do."""
        return Row("", {str(len(cases)): self._score(cases)}, self._capability().numbers)

    def _capability(self) -> Row:
        numbers = {"perplexity": self.ground.perplexity(), "cloze": self.ground.cloze_share()}
        return Row("", {}, numbers)

    def _told(self, settings: Settings, tokens: int | None = None) -> dict[str, Any]:
        return {**described(settings), "tokens": tokens or self.ground.tokens}
