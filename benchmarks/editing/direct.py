"""Rows of direct editing: one edit at a time, a batch, and a stream of batches."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from rankedit_recipes.language.editing import Engine
from rankedit_recipes.language.evaluating.evaluation import evaluate, evaluate_each
from rankedit_recipes.language.evaluating.rewriting import without_rewritten
from rankedit_recipes.language.evaluating.scores import Scores
from rankedit_recipes.language.requests import Case, Request
from rankedit_recipes.language.searching.spreading import Facts
from rankedit_recipes.language.settings import Settings
from torch import Tensor

import rankedit as rk
from editing.rows import Row
from editing.world import KEPT, MANY, World

# What the search for values depends on: methods that agree in all of this share their values.
_SEARCH = ("contexts", "anchor", "steps", "learning_rate", "clamp", "decay", "kl", "stop_below",
           "first_for", "seed", "through")  # fmt: skip

Layers = Sequence[int] | int | None


@dataclass
class Editor:
    """Edits the cases of a world by any settings; a search for values is done once for all."""

    world: World

    def __post_init__(self) -> None:
        self._shifts: dict[str, dict[str, Tensor]] = {}

    def engine(self, settings: Settings, layers: Layers = None, share: float = 1.0) -> Engine:
        """The engine of a method, with statistics of a share of the corpus."""
        statistics = None if settings.cost == "identity" else self.world.statistics(share)
        return Engine.build(
            self.world.model, self.world.tokenizer, settings, statistics, layers=layers,
            progress=False,
        )  # fmt: skip

    def facts(self, engine: Engine, cases: Sequence[Case]) -> Facts:
        """Keys and values of the cases' requests."""
        requests = [case.request for case in cases]
        shifts = torch.stack([self._found(engine)[request.label] for request in requests])
        return engine.spread(requests, shifts)

    def _found(self, engine: Engine) -> dict[str, Tensor]:
        """Shifts by request, of one search over all cases that are studied; kept in a file."""
        digest = search_digest(self.world.digest, engine)
        if digest in self._shifts:
            return self._shifts[digest]
        file, requests = KEPT / f"shifts-{digest}.safetensors", self._requests()
        if not file.exists():
            rk.save({"shifts": engine.search(requests).shifts}, file)
        shifts = rk.load(file)["shifts"]
        self._shifts[digest] = {r.label: shifts[i] for i, r in enumerate(requests)}
        return self._shifts[digest]

    def _requests(self) -> list[Request]:
        return [case.request for case in self.world.cases[:MANY]]

    # -------------------------------------------------------------------------- rows

    def single(
        self, settings: Settings, cases: Sequence[Case], layers: Layers = None, share: float = 1.0
    ) -> Row:
        """Each case edited and evaluated for itself."""
        engine = self.engine(settings, layers, share)
        facts = self.facts(engine, cases)
        edits = (engine.solved(part) for part in one_by_one(facts))
        found = evaluate_each(
            self.world.model, self.world.tokenizer, cases, edits,
            unrelated=self.world.few_unrelated, progress=False,
        )  # fmt: skip
        return Row("", {str(1): found}, {"layers": [b.index for b in engine.chosen]})

    def batch(
        self, settings: Settings, cases: Sequence[Case], layers: Layers = None, share: float = 1.0
    ) -> Row:
        """All cases edited together."""
        engine = self.engine(settings, layers, share)
        edits = engine.solved(self.facts(engine, cases))
        with rk.attach(self.world.model, edits):
            found = self.scores(cases, generations=share == 1 and settings.cost != "identity")
        return Row("", {str(len(cases)): found}, {"layers": [b.index for b in engine.chosen]})

    def scores(
        self, cases: Sequence[Case], edited: Sequence[Case] | None = None, *,
        generations: bool = False,
    ) -> Scores:  # fmt: skip
        """Scores of the world's model as it is now.

        `edited` is what it is edited with, the cases themselves if None: neighbours about which an
        edit says something else do not count.
        """
        return evaluate(
            self.world.model, self.world.tokenizer, without_rewritten(cases, edited),
            unrelated=self.world.unrelated, generations=generations, length=40, progress=False,
        )  # fmt: skip

    def plain(
        self, settings: Settings, cases: Sequence[Case], size: int, at: Sequence[int],
        layers: Layers = None,
    ) -> Row:  # fmt: skip
        """A stream as published: each batch is solved on the edited model, and then forgotten."""
        original, edited = self.world.model, copy.deepcopy(self.world.model)
        engine = replace(self.engine(settings, layers), model=edited)
        scores = {}
        for start in range(0, len(cases), size):
            part = [case.request for case in cases[start : start + size]]
            facts, _ = engine.facts(part)
            rk.fuse_(edited, engine.solved(facts))
            done = start + len(part)
            if done in at:
                self.world.model = edited
                try:
                    scores[str(done)] = self.scores(cases[:done])
                finally:
                    self.world.model = original
        return Row("", scores, {"layers": [b.index for b in engine.chosen]})


def search_digest(world: str, engine: Engine) -> str:
    """Of what the values depend on that an engine finds, on a world with this digest."""
    settings, block = engine.settings, engine.chosen[-1]
    search = {name: getattr(settings, name) for name in _SEARCH} | {"block": block.index}
    if settings.through:  # it sees the edit of the mean key then
        search |= {"bare": settings.bare, "metric": engine.metrics[block.down].fingerprint}
    kind = type(settings)
    if (kind.search, kind.shares) != (Settings.search, Settings.shares):
        search["by"] = f"{kind.__module__}:{kind.__qualname__}"
    return hashlib.sha256(repr([world, search]).encode()).hexdigest()[:16]


def one_by_one(facts: Facts) -> Iterator[Facts]:
    """The facts, each for itself."""
    return (facts_of(facts, [number]) for number in range(len(facts)))


def facts_of(facts: Facts, numbers: Sequence[int]) -> Facts:
    """Some of the facts."""
    rows = list(numbers)

    def cut(parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor[rows] for name, tensor in parts.items()}

    requests = tuple(facts.requests[row] for row in rows)
    return Facts(requests, cut(facts.keys), cut(facts.lacking), cut(facts.bare))


def reverted(cases: Sequence[Case]) -> list[Case]:
    """Cases that ask for the old answers: their efficacy tells whether an edit was undone."""
    return [
        replace(
            case,
            request=Request(
                case.request.prompt, case.request.subject, case.true_target, case.request.relation,
                case.request.name,
            ),
            true_target=case.request.target,
        )
        for case in cases
    ]  # fmt: skip
