"""Edit facts of a causal language model: one call, and the engine that streams share with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike

from torch import Tensor, nn

import rankedit as rk
from rankedit_recipes.language.errors import LanguageError
from rankedit_recipes.language.evaluating.locating import resolved
from rankedit_recipes.language.methods import METHODS
from rankedit_recipes.language.methods.inconsistent import inconsistent
from rankedit_recipes.language.methods.own import Method, imported, method_of, named
from rankedit_recipes.language.model.blocks import Block
from rankedit_recipes.language.model.layers import Layers, all_blocks, choose_blocks
from rankedit_recipes.language.model.tokens import Tokenizer
from rankedit_recipes.language.model.whole import check_searchable
from rankedit_recipes.language.requests import Request
from rankedit_recipes.language.searching.agreement import warn_of_different
from rankedit_recipes.language.searching.contexts import (
    checked_prefixes,
    prefixes_from,
    sample_prefixes,
)
from rankedit_recipes.language.searching.edited import Edited
from rankedit_recipes.language.searching.spreading import Facts, Reading, spread
from rankedit_recipes.language.searching.values import FoundValues, find_values
from rankedit_recipes.language.settings import Settings
from rankedit_recipes.language.statistics import Statistics, statistics_of
from rankedit_recipes.language.texts import Texts


def edit(
    model: nn.Module,
    tokenizer: Tokenizer,
    requests: Sequence[Request],
    method: Method = "memit",
    *,
    statistics: Statistics | Mapping[str, rk.SecondMoment] | str | PathLike[str] | None,
    layers: Layers = None,
    prefixes: Sequence[str] | None = None,
    texts: Texts | None = None,
    space: bool | None = None,
    chat: bool | None = None,
    progress: bool = True,
) -> Edited:
    """Edit facts of a model, all of them together; the model itself is left as it is.

    Args:
        model: a causal language model of transformers, in any precision. Edits that are attached
            to it count as part of it.
        tokenizer: its fast tokenizer.
        requests: what is to be true.
        method: a name in `METHODS`; settings of your own; or a function that solves,
            `(layer, keys, values, metric) -> LowRank`, or where it is, `"package.module:function"`:
            MEMIT with that solve, see `method_of`.
        statistics: what `collect_statistics` gave, or its file. None only for a method whose cost
            is the identity.
        layers: which blocks or projections to edit; see `choose_blocks`. `"traced"` for those that
            a causal trace of the model's present answers to the requests finds; see `locate`.
        prefixes: what stands before the prompts; sampled from the model if None.
        texts: your own text, of which sentences stand before the prompts instead; see
            `prefixes_from`.
        space: for requests that leave it open; see `Request.space`.
        chat: the same; see `Request.chat`.
        progress: show it.

    Returns:
        The edits; attach, fuse, save or export them.

    Raises:
        LanguageError: requests that contradict each other, an unknown method, statistics of
            another model, or a model or tokenizer that this cannot work with.

    Warns:
        RankeditWarning: keys that depend much on what stands before the prompt.

    See docs/language.md for an example.
    """
    check_searchable(model)  # before anything runs that may run it, such as a trace
    settings = settings_of(method)
    check_requests(requests)
    requests = [request.settled(space=space, chat=chat) for request in requests]
    if texts is not None:
        if prefixes is not None:
            raise LanguageError("edit: give prefixes, or texts to take them from, not both.")
        prefixes = prefixes_from(texts, tokenizer, settings.contexts, seed=settings.seed)
    layers = resolved(model, tokenizer, requests, layers, settings, progress=progress)
    engine = Engine.build(
        model, tokenizer, settings, statistics, layers=layers, prefixes=prefixes, progress=progress
    )
    return engine.edit(requests)


@dataclass(frozen=True)
class Engine:
    """A model with everything that turning requests into edits needs.

    Attributes:
        model: the model.
        tokenizer: its tokenizer.
        settings: the method.
        chosen: the blocks to edit, from the lowest.
        metrics: by projection, what a change costs.
        prefixes: what stands before the prompts, beside nothing.
        progress: whether to show it.
    """

    model: nn.Module
    tokenizer: Tokenizer
    settings: Settings
    chosen: tuple[Block, ...]
    metrics: dict[str, rk.Metric]
    prefixes: tuple[str, ...]
    progress: bool = True

    @classmethod
    def build(
        cls,
        model: nn.Module,
        tokenizer: Tokenizer,
        method: Method,
        statistics: Statistics | Mapping[str, rk.SecondMoment] | str | PathLike[str] | None,
        *,
        layers: Layers = None,
        prefixes: Sequence[str] | None = None,
        progress: bool = True,
    ) -> Engine:
        """See `edit`."""
        check_searchable(model)
        settings = settings_of(method)
        chosen = choose_blocks(model, all_blocks(model, layers), layers, settings)
        settings = settings.shared_by(len(chosen))
        metrics = _metrics(model, tokenizer, statistics, chosen, settings)
        if prefixes is None:
            prefixes = sample_prefixes(model, tokenizer, settings.contexts, seed=settings.seed)
        texts = checked_prefixes(prefixes)
        return cls(model, tokenizer, settings, tuple(chosen), metrics, texts, progress)

    def facts(self, requests: Sequence[Request]) -> tuple[Facts, FoundValues]:
        """Keys and values of requests, by search; each depends on its own request only.

        Warns:
            RankeditWarning: keys that depend much on what stands before the prompt.
        """
        check_requests(requests)
        found = self.search(requests)
        facts = self.spread(requests, found.shifts)
        warn_of_different(requests, facts.agreement)
        return facts, found

    def search(self, requests: Sequence[Request]) -> FoundValues:
        """The shifts that make requests true; see `Settings.through` for what they depend on."""
        # `through` is about an edit for the mean key, which the published fault is not.
        through = self.settings.through and self.settings.consistent
        metric = self.metrics[self.chosen[-1].down] if through else None
        return find_values(
            self.model, self.tokenizer, requests, self.chosen[-1], self.settings, metric=metric,
            prefixes=self.prefixes, progress=self.progress,
        )  # fmt: skip

    def spread(self, requests: Sequence[Request], shifts: Tensor) -> Facts:
        """Keys and values of requests whose shifts are known."""
        how = (shifts, self.chosen, self.metrics, self.settings)
        return spread(self.model, self.tokenizer, requests, *how, prefixes=self.prefixes)

    def keys(self, requests: Sequence[Request]) -> Tensor:
        """Keys `[n, in]` of requests in the lowest projection; needs no search."""
        first = self.chosen[0]
        reading = Reading(
            self.model, self.tokenizer, requests, self.chosen, self.settings, self.prefixes
        )
        return reading.mean(reading.look(first, {}).read[first.down])

    def edit(self, requests: Sequence[Request]) -> Edited:
        """The edits of requests, all of them together."""
        facts, found = self.facts(requests)
        return Edited(self.solved(facts), facts, found, self.settings)

    def solved(self, facts: Facts) -> dict[str, rk.LowRank]:
        """The edits of facts, all of them together, as the method solves."""
        if not self.settings.consistent:
            return self._inconsistent(facts)
        ledgers = self.ledgers()
        enter(ledgers, facts)
        return {name: ledger.edit() for name, ledger in ledgers.items()}

    def ledgers(self) -> dict[str, rk.Ledger]:
        """An empty ledger for each projection."""
        return {
            name: self.settings.ledger(self.model.get_submodule(name), metric)
            for name, metric in self.metrics.items()
        }

    def _inconsistent(self, facts: Facts) -> dict[str, rk.LowRank]:
        if len(facts) > 1:
            raise LanguageError(
                f"language: consistent=False is for one request at a time, got {len(facts)}."
            )
        return {
            name: inconsistent(facts.keys[name], facts.bare[name], facts.lacking[name], metric)
            for name, metric in self.metrics.items()
        }


def settings_of(method: Method) -> Settings:
    """The settings of a method; see `edit`.

    Raises:
        LanguageError: no such method, or one of one's own under the name of a published one.
    """
    if isinstance(method, str):
        method = imported(method) if ":" in method else named(method)
    settings = method if isinstance(method, Settings) else method_of(method)
    if settings.solver and settings.method in METHODS:
        raise LanguageError(
            f"language: {settings.solver} solves in its own way, and its edits would be saved as "
            f"those of {settings.method!r}; name it: dataclasses.replace(settings, method=...)."
        )
    return settings


def enter(ledgers: Mapping[str, rk.Ledger], facts: Facts) -> None:
    """Enter facts into the ledgers of their projections, each under its label."""
    labels = [request.label for request in facts.requests]
    for name, ledger in ledgers.items():
        ledger.add_lacking(labels, facts.keys[name], facts.lacking[name])


def check_requests(requests: Sequence[Request]) -> None:
    """Refuse requests that contradict each other, or have the same name.

    Raises:
        LanguageError: names the first two.
    """
    if not isinstance(requests, Sequence) or not all(isinstance(r, Request) for r in requests):
        raise LanguageError(
            f"language: requests must be a list of Requests, got {requests!r:.80}; put one into a "
            "list."
        )
    if not requests:
        raise LanguageError("language: requests must have at least one request, got none.")
    for what in ("key", "label"):
        first: dict[object, Request] = {}
        for request in requests:
            other = first.setdefault(getattr(request, what), request)
            if other is not request:
                raise LanguageError(
                    f"language: two requests have the same "
                    f"{'subject and relation' if what == 'key' else 'name'}: {other} and "
                    f"{request}; keep one of them."
                )


def _metrics(
    model: nn.Module,
    tokenizer: Tokenizer,
    statistics: Statistics | Mapping[str, rk.SecondMoment] | str | PathLike[str] | None,
    chosen: Sequence[Block],
    settings: Settings,
) -> dict[str, rk.Metric]:
    names = [block.down for block in chosen]
    if statistics is None:
        # A metric of one's own is made from a moment, whatever the cost is called.
        own = type(settings).metric is not Settings.metric
        if own or settings.cost != "identity":
            raise LanguageError(
                f"language: the method {settings.method!r} needs statistics of what the "
                "projections read; pass collect_statistics(model, tokenizer, texts)."
            )
        layers = {name: rk.Projection(model.get_submodule(name)) for name in names}
        return {
            name: rk.Metric.identity(layer.in_features, settings.weight)
            for name, layer in layers.items()
        }
    moments = statistics_of(statistics, model, tokenizer, names)
    return {name: settings.metric(moments[name]) for name in names}
