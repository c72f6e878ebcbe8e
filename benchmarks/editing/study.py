"""All rows of the study, in the order in which they are computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from rankedit_recipes.language import METHODS, Settings, Stream
from rankedit_recipes.language.evaluating.evaluation import evaluate
from rankedit_recipes.language.evaluating.scores import Scores, joined
from rankedit_recipes.language.evaluating.tracing import parts_of, trace
from rankedit_recipes.language.methods import INCONSISTENT
from rankedit_recipes.language.model.layers import TRACED as BY_TRACE
from rankedit_recipes.language.requests import Case

from editing.baselines import fine_tuned, lora_tuned
from editing.direct import Editor, facts_of, reverted
from editing.own import described, own_settings
from editing.rows import Row, Rows
from editing.sharing import sharing
from editing.world import MANY, SINGLE, World

STUDIED = ("rome", "memit", "encore", "emmet", "alphaedit")
"""Methods; r-ROME is ROME here."""

BASELINE = 40
"""Requests that a baseline is trained on one at a time: it takes seconds for each."""

BATCH = 10
"""Facts that are added to a stream at a time."""

AT = (10, 50, 100, 200, 350, 500)
"""Facts after which a stream is evaluated."""

SHARES = (0.01, 0.1, 1.0)
"""Of the corpus, for the ablation of the statistics."""

TRACED = 60
"""Facts that are traced, none of which is edited: it tells the block to edit."""

IDENTITY: dict[str, Any] = {"cost": "identity"}


class Study:
    """The rows of the study.

    Args:
        world: what is edited.
        rows: where they are kept.
        tuned: settings that differ from the methods' own, by method; for `layers` too.
        own: methods that are studied beside the published ones, each `package.module:name`. One
            that is a function has MEMIT's settings, and the search that all methods share.
    """

    def __init__(
        self, world: World, rows: Rows, tuned: dict[str, dict[str, Any]], own: Sequence[str] = ()
    ) -> None:
        self.world, self.rows, self.tuned = world, rows, tuned
        self.own = {name: own_settings(name, tuned.get("memit", {})) for name in own}
        self.editor = Editor(world)
        self.single, self.many = world.cases[:SINGLE], world.cases[:MANY]

    def run(self) -> None:
        """Everything."""
        for part in (self.unedited, self.traced, self.singles, self.batches, self.streams,
                     self.ablations, self.baselines):  # fmt: skip
            part()

    def settings(self, method: str, **changes: Any) -> tuple[Settings, Any]:
        """A method as it is studied, and the blocks that it edits."""
        if method in self.own:
            return replace(self.own[method], **changes), self.located
        tuned = dict(self.tuned.get(method, {}))
        layers = tuned.pop("layers", None)
        layers = self.located if layers == BY_TRACE else layers
        base = INCONSISTENT if method == "inconsistent" else METHODS[method]
        return replace(base, **{**tuned, **changes}), layers

    def _direct(
        self, key: str, compute: Callable[..., Row], cases: Sequence[Case], method: str,
        share: float = 1.0, **changes: Any,
    ) -> None:  # fmt: skip
        settings, layers = self.settings(method, **changes)
        parts = {**described(settings), "layers": layers, "share": share, "cases": len(cases)}
        self.rows(key, lambda: compute(settings, cases, layers, share), parts)

    # ------------------------------------------------------------------------- rows

    def unedited(self) -> None:
        """The model as it is."""
        self.rows("single-unedited", lambda: self._unedited(self.single))
        self.rows("batch-unedited", lambda: self._unedited(self.many))

    def _unedited(self, cases: Sequence[Case]) -> Row:
        many = cases is self.many
        # As the rows to compare with: where all are edited together, some neighbours do not count.
        return Row("", {"0": self.editor.scores(cases, None if many else [], generations=many)})

    def traced(self) -> None:
        """Where the facts are."""
        print(f"a causal trace finds facts in block {self.located}", flush=True)

    @cached_property
    def located(self) -> int:
        """The block to edit: where a causal trace of facts outside of the study finds them."""

        def compute() -> Row:
            cases = self.world.cases[MANY : MANY + TRACED]
            facts = [case.request for case in reverted(cases)]
            downs = [block.down for block in self.world.blocks]
            found = trace(self.world.model, self.world.tokenizer, facts,
                          parts_of(self.world.model, downs), progress=False)  # fmt: skip
            effects = {kind: grid.tolist() for kind, grid in found.effects.items()}
            numbers = {"effects": effects, "clean": found.clean, "disturbed": found.disturbed}
            return Row("", {}, {**numbers, "facts": found.facts, "best": found.best()[0]})

        row = self.rows("trace", compute, {"first": MANY, "facts": TRACED}, needed=True)
        return int(row.numbers["best"])

    def singles(self) -> None:
        """One edit at a time."""
        for method in (*STUDIED, *self.own):
            self._direct(f"single-{method}", self.editor.single, self.single, method)

    def batches(self) -> None:
        """All together."""
        for method in (*STUDIED, *self.own):
            self._direct(f"batch-{method}", self.editor.batch, self.many, method)

    def ablations(self) -> None:
        """Rows that lack something."""
        single, batch = self.editor.single, self.editor.batch
        self._direct("single-rome-identity", single, self.single, "rome", **IDENTITY)
        self._direct("single-rome-inconsistent", single, self.single, "inconsistent")
        self._direct("batch-memit-identity", batch, self.many, "memit", **IDENTITY)
        settings, layers = self.settings("memit")
        self.rows(
            "sharing",
            lambda: sharing(self.editor, settings, layers),
            {**described(settings), "layers": layers},
        )
        for share in SHARES[:-1]:
            name = f"{share:.0%}"
            self._direct(f"single-rome-{name}", single, self.single, "rome", share)
            for method in ("memit", "alphaedit"):
                self._direct(f"batch-{method}-{name}", batch, self.many, method, share)

    # ---------------------------------------------------------------------- streams

    def streams(self) -> None:
        """Batches of ten, one after the other, and half of it undone."""
        for method in ("memit", "alphaedit", *self.own):
            settings, layers = self.settings(method)
            parts = {**described(settings), "layers": layers, "at": AT, "batch": BATCH}
            self.rows(f"stream-{method}", lambda s=settings, x=layers: self._stream(s, x), parts)
        settings, layers = self.settings("memit")
        parts = {**described(settings), "layers": layers, "at": AT, "batch": BATCH, "plain": True}
        self.rows(
            "plain-memit",
            lambda: self.editor.plain(settings, self.many, BATCH, AT, layers),
            parts,
        )

    def _stream(self, settings: Settings, layers: Any) -> Row:
        world = self.world
        stream = Stream.open(
            None, world.model, world.tokenizer, statistics=world.statistics(), method=settings,
            layers=layers, progress=False,
        )  # fmt: skip
        # Values depend on their own request only: those of the batch are those of the stream.
        facts = self.editor.facts(stream.engine, self.many)
        scores: dict[str, Scores] = {}
        for start in range(0, MANY, BATCH):
            stream.enter(facts_of(facts, range(start, start + BATCH)))
            if len(stream) in AT:
                with stream.attach():
                    scores[str(len(stream))] = self.editor.scores(self.many[: len(stream)])
        undone, kept = self.many[::2], self.many[1::2]
        with stream.attach():
            scores["kept, before"] = self.editor.scores(kept, self.many)
            scores["undone, before"] = self._score(reverted(undone))
        stream.undo(*(case.request.label for case in undone))
        with stream.attach():
            scores["kept, after"] = self.editor.scores(kept)
            scores["undone, after"] = self._score(reverted(undone))
        scores["undone, unedited"] = self._score(reverted(undone))
        other = Stream(stream.engine)
        other.enter(facts_of(facts, range(1, MANY, 2)))
        difference = max(
            float((edit.delta() - other.edits()[name].delta()).norm() / edit.delta().norm())
            for name, edit in stream.edits().items()
        )
        return Row("", scores, {"difference to never added": difference})

    def _score(self, cases: Sequence[Case]) -> Scores:
        return evaluate(self.world.model, self.world.tokenizer, cases, progress=False)

    # -------------------------------------------------------------------- baselines

    def baselines(self) -> None:
        """Fine-tuning and a LoRA, one request at a time, and all together."""
        downs = [block.down for block in self.world.blocks]
        _, layer = self.settings("rome")
        kinds = {
            "ft": (fine_tuned, [downs[layer]], {"rate": 2e-3}),
            "ft-l": (fine_tuned, [downs[layer]], {"rate": 2e-3, "limit": 5e-3}),
            "lora": (lora_tuned, downs, {"rate": 5e-3}),
        }
        for name, (tuned, names, options) in kinds.items():
            parts = {**options, "names": names}
            self.rows(
                f"single-{name}",
                lambda t=tuned, n=names, o=options: self._trained_each(t, n, o),
                {**parts, "cases": BASELINE},
            )
            self.rows(
                f"batch-{name}",
                lambda t=tuned, n=names, o=options: self._trained(t, n, o),
                parts,
            )

    def _trained_each(self, tuned: Any, names: Sequence[str], options: dict[str, Any]) -> Row:
        world, parts, steps = self.world, [], 0
        for case in self.single[:BASELINE]:
            with tuned(world.model, world.tokenizer, [case.request], names, **options) as taken:
                parts.append(evaluate(world.model, world.tokenizer, [case],
                                      unrelated=world.few_unrelated, progress=False))  # fmt: skip
                steps += taken
        return Row("", {"1": joined(parts)}, {"steps": steps / BASELINE})

    def _trained(self, tuned: Any, names: Sequence[str], options: dict[str, Any]) -> Row:
        requests = [case.request for case in self.many]
        with tuned(self.world.model, self.world.tokenizer, requests, names, **options) as steps:
            return Row("", {str(MANY): self.editor.scores(self.many, generations=True)},
                       {"steps": steps})  # fmt: skip
