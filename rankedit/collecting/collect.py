"""Read what projections read: the statistics of any number of them in one pass over the data."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import TypeVar

from torch import Tensor, nn

from rankedit.accumulating import Policy, check_settings
from rankedit.collecting.batches import DEFAULT_MASK, Mask, default_call
from rankedit.collecting.checkpoint import Checkpoint, Keeper, Plan, State
from rankedit.collecting.choosing import Which, check_arguments, targets_of
from rankedit.collecting.digests import function_digest, model_digest
from rankedit.collecting.heads import before_head
from rankedit.collecting.masks import Masks
from rankedit.collecting.ranks import Ranks, check_not_split, reduced
from rankedit.collecting.remaining import Remaining
from rankedit.collecting.remarks import (
    REMEDY,
    check_called,
    warn_of_extremes,
    warn_of_repeats,
    warn_of_unrouted,
)
from rankedit.collecting.restoring import as_it_was
from rankedit.collecting.sharing import Group, SharedMoments
from rankedit.errors import RankeditError, StatisticsError
from rankedit.interrupt import Interrupt
from rankedit.models.experts import Expert
from rankedit.models.geometry import innermost
from rankedit.models.reaching import not_called
from rankedit.models.reading import Observed, may_stop, quiet
from rankedit.moments import SecondMoment
from rankedit.progress import progress as show_progress
from rankedit.provenance import Provenance
from rankedit.sums import Products

Batch = TypeVar("Batch")


def collect(
    model: nn.Module,
    which: Which,
    batches: Iterable[Batch],
    *,
    call: Callable[[Batch], object] | None = None,
    mask: Mask[Batch] = DEFAULT_MASK,
    provenance: Provenance | None = None,
    checkpoint: str | os.PathLike[str] | Checkpoint | None = None,
    shard: bool = True,
    progress: bool = True,
    extremes: Policy = "apart",
    products: Products = "float32",
) -> dict[str, SecondMoment]:
    """Second moments of what projections read, all in one pass over the data.

    The model runs in evaluation mode without gradients, and only as far as the last projection that
    is needed (see `rankedit.models.reading.Observed`). Projections that read the same tensors, such
    as the keys and values of an attention block, get *the same* `SecondMoment` object: its work is
    done once, and so can the factorisation of a `Metric` be.

    With several processes (torchrun and `torch.distributed.init_process_group`), each runs its
    share and all return the sums over all of them, reduced once at the end.

    Args:
        model: the model; neither it nor its modes are changed.
        which: what `select` takes (a glob, a regular expression, a predicate, several names), or
            what it returns.
        batches: anything to loop over. If it is resumed from a checkpoint, or shared between
            processes, it must give the same batches in the same order each time. With `state_dict`
            and `load_state_dict` (torchdata's StatefulDataLoader), it is resumed where it stopped,
            if JSON can hold the state; all else is read from the front.
        call: runs the model on one batch, `call(batch)`. By default `model(**batch)` for mappings,
            `model(*batch)` for tuples and lists, else `model(batch)`. Must do the same for each
            batch: if the first one calls every projection once, later ones stop after that, and
            what `call` would have done then is not done. By default not even the first batch goes
            on to the logits, if everything was read before.
        mask: which vectors are no padding: the key of a mask in each batch, or `mask(batch)`; ones
            or True are kept. The default `"attention_mask"` may be missing from a batch, which then
            counts whole; another key may not. None counts everything.
        provenance: model, tokenizer and corpus, for the record; the rest is filled in.
        checkpoint: file for the partial result (or a `Checkpoint`, which also says how often).
            After a crash, Ctrl-C or `kill -9`, the same call resumes there, with the same result to
            the bit. It is removed at the end, unless the `Checkpoint` says that it is kept.
        shard: with several processes: True if all were given the same batches, of which each takes
            every `world_size`-th; False if each was given its own.
        progress: show it on the standard error.
        extremes: whether vectors of extreme energy, such as attention sinks, are kept `"apart"`,
            with a warning where they have much of it, or counted `"together"` with the others.
        products: precision of products of vectors no finer than float32; see `SecondMoment`.

    Returns:
        A moment for each projection, by name.

    Raises:
        ProjectionError: nothing matches, or what matches does not read vectors.
        StatisticsError: a projection was never called, data are not finite or do not fit the mask,
            the checkpoint is of something else, or another process died.
        KeyboardInterrupt: Ctrl-C; with a checkpoint it is written first, and the message says so.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> import rankedit as rk
        >>> model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))
        >>> moments = rk.collect(model, "*", [torch.randn(4, 7, 3)] * 2, progress=False)
        >>> {name: (moment.dim, moment.count) for name, moment in moments.items()}
        {'0': (3, 56.0), '2': (5, 56.0)}
    """
    given = {"model": model, "batches": batches, "call": call, "mask": mask}
    check_arguments(**given, provenance=provenance, shard=shard, progress=progress)
    check_settings("collect", extremes, products)
    # Before anything runs: to look for projections is to run layers, without gradients.
    put_back = as_it_was(model)
    try:
        targets = targets_of(model, which)
        ranks = Ranks.current()
        check_not_split(model, ranks)
        digest = model_digest(model)
        said = _said(mask), provenance or Provenance()
        plan = Plan(
            tuple(targets), digest, *said, ranks.rank, ranks.size, shard, extremes, products
        )
        kept = checkpoint
        if isinstance(kept, (str, os.PathLike)):
            kept = Checkpoint(kept)
        collection = _Collection(model, targets, plan, Keeper(kept, plan))
        shown = progress and ranks.rank == 0
        masks = Masks(model, targets, mask, called=call is None)
        run = call or default_call(model)
        collection.work(batches, run, masks, shown=shown, to_head=call is None)
        return collection.result()
    finally:
        try:
            put_back()
        finally:
            put_back()  # a signal may have come into the first


def _said(mask: Mask[Batch]) -> str:
    return f"a function {function_digest(mask)}" if callable(mask) else repr(mask)


class _Collection:
    """One call of `collect`: the loop over the batches, and what must survive its end."""

    def __init__(
        self, model: nn.Module, targets: Mapping[str, nn.Module], plan: Plan, keeper: Keeper
    ) -> None:
        self._model = model
        self._targets = targets
        self._plan = plan
        self._ranks = Ranks(plan.rank, plan.size)
        self._keeper = keeper
        self._state = keeper.read()
        self._moments = SharedMoments(self._state.groups, plan.extremes, plan.products)
        self._whole = may_stop(model)
        self._warned = False

    # ---------------------------------------------------------------- the loop

    def work(
        self,
        batches: Iterable[Batch],
        call: Callable[[Batch], object],
        masks: Masks[Batch],
        *,
        shown: bool,
        to_head: bool,
    ) -> None:
        """Run what is left of the batches; keeps the checkpoint whatever ends it."""
        left = Remaining(batches, self._plan, self._state, self._keeper.file)
        if not self._whole:
            left.check_even()
        with (
            quiet(self._model),
            self._observed(masks) as forwards,
            # A call of the user's may do more after the logits; ours does not.
            before_head(self._model, forwards.complete) if to_head else nullcontext(),
            Interrupt(enabled=self._keeper.file is not None) as interrupt,
            show_progress(
                "collect", left.total, done=self._state.batches, share=left.share, shown=shown
            ) as advance,
        ):
            try:
                for batch in left:
                    self._moments.begin()
                    with masks.of_batch(batch):
                        forwards.run(partial(call, batch))
                    self._moments.end()
                    self._count(left)
                    self._warn(of_repeats=not callable(masks.mask))
                    self._keeper.offer(self._state)
                    seen = max((group.kept for group in self._state.groups), default=0)
                    advance(f"{seen:,} vectors")
                    if interrupt.asked:
                        raise KeyboardInterrupt
                self._state = replace(self._state, first=left.first)
            except BaseException as error:
                self._keep(error)
                raise

    def _observed(self, masks: Masks[Batch]) -> Observed:
        def read(name: str, x: Tensor) -> None:
            try:
                self._moments.read(name, x, self._mask(name, x, masks))
            except RankeditError as error:
                raise StatisticsError(
                    f"collect: projection {name!r}, batch {self._state.batches} (from 0): {error}"
                ) from error

        return Observed("collect", self._targets, read, stops=self._whole)

    def _mask(self, name: str, x: Tensor, masks: Masks[Batch]) -> Tensor | None:
        layer = innermost(self._targets[name])
        if not isinstance(layer, Expert) or layer.routed is None:
            return masks.of(name, x)
        # Of the tokens that came to the experts' module, those that were routed to this one.
        inputs, tokens = layer.routed
        mask = masks.of(name, inputs)
        return None if mask is None else mask[tokens.to(mask.device)]

    def _count(self, left: Remaining[Batch]) -> None:
        groups, batches = self._moments.groups, self._state.batches + 1
        self._state = State(batches, left.first, left.done, groups, left.place)
        # Only now: stopped between the two, the file would count this batch's sums but not it.
        self._moments.clean = True

    def _warn(self, *, of_repeats: bool) -> None:
        if self._state.batches == 1:
            check_called(self._moments.missing(self._targets), len(self._targets))
        if self._moments.repeats and of_repeats and not self._warned:
            self._warned = True
            warn_of_repeats(self._moments.repeats, self._state.batches - 1)

    def _keep(self, error: BaseException) -> None:
        """Write the checkpoint if the sums are those of whole batches, and say how to go on."""
        if self._keeper.file is None:
            return
        if self._moments.clean and self._state.batches:
            self._keeper.write(self._state)
        if isinstance(error, KeyboardInterrupt) and self._keeper.file.exists():
            raise KeyboardInterrupt(
                f"collect: interrupted; make the same call again, with checkpoint="
                f"'{self._keeper.file}', to go on where the file stops"
            ) from error

    # ---------------------------------------------------------------- the result

    def result(self) -> dict[str, SecondMoment]:
        """The moments by name, summed over the processes; then the checkpoint is not needed."""
        # Another process may die now, or the result be refused: the pass must not be lost.
        refused = self._state.batches and self._moments.missing(self._targets)
        if self._ranks.size > 1 or refused or self._keeper.keeps:
            self._keeper.write(self._state)
        groups = reduced(self._moments.groups, self._ranks)
        moments = {name: group.moment for group in groups for name in group.members}
        missing = [name for name in self._targets if name not in moments]
        if missing:
            raise StatisticsError(not_called("collect", missing, "in any batch", REMEDY))
        for group in groups:
            group.moment.provenance = self._provenance(group)
        warn_of_extremes(groups)
        warn_of_unrouted([n for n in self._targets if not moments[n].seen])
        self._keeper.remove()
        return {name: moments[name] for name in self._targets}

    def _provenance(self, group: Group) -> Provenance:
        given = self._plan.provenance
        return replace(
            given,
            weights=given.weights or self._plan.weights,
            module=",".join(group.members),
            dtype=str(group.moment.dtype).removeprefix("torch."),
            tokens=group.offered,
        )
