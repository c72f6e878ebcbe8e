"""Which of the vectors that a projection reads are no padding.

A batch may have several sequences, each with a mask of its own, and a model any order of axes. What
a projection reads, and whose mask that is, is followed through the first batch (`tracing`) and
known from then on; the decision "Whose mask it is" tells why.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from rankedit.collecting.axes import BATCH, Axes
from rankedit.collecting.batches import (
    DEFAULT_MASK,
    INVERTED_MASK,
    KNOWN_MASKS,
    Mask,
    check_padding,
    checked_mask,
    fitted,
    is_mask,
    named_tensors,
    padded_left,
    warn_of_positions,
)
from rankedit.collecting.tracing import Argument, Trace, parameters
from rankedit.errors import StatisticsError
from rankedit.shapes import Inputs, describe

Batch = TypeVar("Batch")

_GIVEN = ""  # the name of a mask that a function gave
_REMEDY = (
    "pass the mask of what these projections read (mask=<a key of the batch>, or a function of the "
    "batch) and collect others apart, or mask=None to count everything"
)


class _Place(NamedTuple):
    """Whose mask a projection needs, None for none, and the order of what it reads."""

    mask: str | None
    tokens_first: bool | None


class Masks(Generic[Batch]):
    """The masks of batches, as each projection needs them.

    Args:
        model: the model.
        names: the projections.
        mask: what `collect` was given.
        called: whether `collect` itself calls the model with the batch.
    """

    def __init__(
        self, model: nn.Module, names: Iterable[str], mask: Mask[Batch], *, called: bool
    ) -> None:
        self._model, self.mask, self._names = model, mask, frozenset(names)
        self._parameters = parameters(model) if called else []
        # Torch's recurrent and attention layers, of which False says that tokens come first.
        self._ordered = all(getattr(part, "batch_first", True) for part in model.modules())
        self._places: dict[tuple[str, int], _Place] = {}
        self._keys: set[str] = set()  # of the masks that any batch had
        self._positions_checked = False
        self._foreign = False  # whether the model was given a mask that is not from the batch
        self._trace: Trace | None = None
        self._batch: dict[str, Tensor] = {}
        self._masks: dict[str, Tensor] = {}

    # ---------------------------------------------------------------- the masks of a batch

    @contextlib.contextmanager
    def of_batch(self, batch: Batch) -> Iterator[None]:
        """Take the masks of a batch, which is run inside this context.

        Raises:
            StatisticsError: it has no such mask, or what is called so is none.
        """
        self._batch = named_tensors(batch, self._parameters)
        self._masks = self._among(batch)
        known = [mask for name, mask in self._masks.items() if self._is_known(name)]
        padded = not self._positions_checked and any(map(padded_left, known))
        if not (padded or self._must_learn()):
            yield
            return
        self._trace = Trace(self._model, self._starting_axes())
        try:
            with self._trace.followed():
                yield
            check_padding(self._masks, self._trace.pairs, self._trace.padding)
            if padded:
                self._positions_checked = True
                warn_of_positions(self._trace.tables)
        finally:
            self._trace = None

    def _among(self, batch: Batch) -> dict[str, Tensor]:
        if self.mask is None:
            return {}
        if not isinstance(self.mask, str):
            given = self.mask(batch)
            return {} if given is None else {_GIVEN: checked_mask(given)}
        if self.mask not in self._batch and self.mask != DEFAULT_MASK:
            keys = list(batch) if isinstance(batch, Mapping) else type(batch).__name__
            raise StatisticsError(
                f"collect: mask={self.mask!r} must be a key of every batch, got {keys}; pass a "
                "function of the batch, or None to count everything."
            )
        may_be = {n for n, t in self._batch.items() if "mask" in n and is_mask(t)}
        known = {name for name in self._batch if self._is_known(name)}
        # What was asked for first, then what is named as masks are, then what may be one.
        order = sorted(known | may_be, key=lambda n: (n != self.mask, n not in known, n))
        return {name: self._kept(name) for name in order}

    def _is_known(self, name: str) -> bool:
        return name in (self.mask, _GIVEN) or name.endswith(KNOWN_MASKS)

    def _kept(self, name: str) -> Tensor:
        mask = checked_mask(self._batch[name])
        kept = ~mask if name.endswith(INVERTED_MASK) else mask
        if self._is_known(name) and not bool(kept.any()):
            raise StatisticsError(
                f"collect: the mask {name!r} leaves nothing of a batch; if it is additive, or its "
                "ones are padding, pass mask=lambda batch: batch[...] == 0."
            )
        return kept

    def _must_learn(self) -> bool:
        """Whether this batch has to tell whose mask is whose."""
        if not self._masks.keys() <= self._keys:  # a mask that no batch had before
            self._places.clear()
            self._keys |= self._masks.keys()
        # Without masks, too: the model may be given one that is not in the batch.
        known = self._names <= {n for n, _ in self._places}
        return self._foreign or (self.mask is not None and not known)

    def _starting_axes(self) -> dict[str, tuple[Tensor, Axes]]:
        masks = [*self._masks.values(), *filter(is_mask, self._batch.values())]
        turned = {tuple(mask.shape[::-1]) for mask in masks if len({*mask.shape}) == 2}
        found = {}
        for name, tensor in self._batch.items():
            rest = [""] * (tensor.ndim - 2)
            axes = (BATCH, name, *rest)[: tensor.ndim]
            if name in self._masks and rest:  # [b, 1, 1, t]
                axes = (BATCH, *rest, name)
            elif tuple(tensor.shape[:2]) in turned:
                axes = (name, BATCH, *rest)
            found[name] = tensor, axes
        return found

    # ---------------------------------------------------------------- whose mask it is

    def of(self, name: str, x: Inputs) -> Tensor | None:
        """The mask of the vectors `x [..., in]` that projection `name` reads, in their shape.

        Raises:
            ShapeError: no mask fits.
            StatisticsError: it cannot be known whose padding a mask tells.
        """
        if self._trace is not None:
            learned = self._learned(x, self._trace)
            if learned is None:
                return None
            if self._places.setdefault((name, x.ndim), learned).mask != learned.mask:
                raise StatisticsError(f"it reads sequences that have different masks; {_REMEDY}")
        place = self._places.get((name, x.ndim))
        if place is None and self._masks:
            raise StatisticsError(f"no mask is known for {describe(x)}, read anew; {_REMEDY}")
        mask = None if place is None or place.mask is None else self._masks.get(place.mask)
        return mask if mask is None or place is None else fitted(mask, x, place.tokens_first)

    def _learned(self, x: Inputs, trace: Trace) -> _Place | None:
        """What is now known of a projection; None if nothing, and nothing of it is padding here."""
        axes = trace.axes(x)[:-1]
        order = self._tokens_first(axes)
        if isinstance(self.mask, str):
            self._check_calls(trace)
        if not self._masks or _GIVEN in self._masks:
            return _Place(_GIVEN if self._masks else None, order)
        bound = {name: self._bound(name, trace) for name in self._masks}
        own = self._sequence(axes, trace)
        mine = [name for name in bound if own is not None and bound[name] == own]
        if mine and self._is_known(mine[0]):
            return _Place(mine[0], order)
        unclear = [name for name in self._masks if name == self.mask] or [
            name
            for name, mask in self._masks.items()
            if mask.numel() == x.shape[:-1].numel() and (name in mine or bound[name] is None)
        ]
        if not unclear:
            return _Place(None, order)
        if bound[unclear[0]] is None and self.mask != DEFAULT_MASK:
            return _Place(unclear[0], order)  # the caller's word
        self._refuse(unclear[0], bound[unclear[0]], own, x)
        return None

    def _refuse(self, name: str, of: str | None, own: str | None, x: Inputs) -> None:
        """Raises unless the mask keeps everything, so that it does not matter whose it is."""
        if not self._is_known(name):
            raise StatisticsError(
                f"the batch has {name!r}, which may be the mask of what it reads: if its ones are "
                f"what counts, pass mask={name!r}; else {_REMEDY}"
            )
        fitted(torch.ones_like(self._masks[name]), x, None)
        if not bool(self._masks[name].all()):
            raise StatisticsError(
                f"the mask {name!r} is that of {'other tokens' if of is None else repr(of)} or may "
                f"be, and not that of {'what it reads' if own is None else repr(own)}: add their "
                f"own to the batch (as decoder_attention_mask), or {_REMEDY}"
            )

    def _tokens_first(self, axes: Axes) -> bool | None:
        """The order of tokens and batch; None if unknown."""
        order = "".join(axes)
        square = any(len({*mask.shape}) == 1 for mask in self._masks.values())
        if (square and not self._ordered) or BATCH not in order or order == BATCH:
            return None
        return not order.startswith(BATCH)

    def _sequence(self, axes: Axes, trace: Trace) -> str | None:
        """Whose tokens these are. If they got lost on the way: those of the only sequence."""
        names = {axis.replace(BATCH, "") for axis in axes} - {""}
        if axes and not names:
            names = {trace.sequence(name) for name in self._tokens() if trace.alive(name)}
        return trace.sequence(*names) if len(names) == 1 else None

    def _tokens(self) -> set[str]:
        return self._batch.keys() - self._masks.keys()

    def _bound(self, name: str, trace: Trace) -> str | None:
        """The sequence that a mask is of: what it met, or what alone came to a module with it."""
        if trace.sequence(name) in map(trace.sequence, self._tokens()):
            return trace.sequence(name)
        others = {trace.sequence(mask) for mask in self._masks if mask != name}
        calls = [call for call in trace.calls if name in {a.source for a in call}]
        for call in calls:
            mine = next(argument for argument in call if argument.source == name)
            found = [a for a in call if self._may_belong(a, mine, trace)]
            sequences = {trace.sequence(a.source) for a in found} - others
            if len(sequences) > 1:  # as the encoder_attention_mask is of encoder_hidden_states
                stem = re.sub("(attention_|key_padding_)?mask$", "", mine.parameter).strip("_")
                same = [a for a in found if stem and a.parameter.startswith(stem)]
                sequences &= {trace.sequence(a.source) for a in same}
            if len(sequences) == 1:
                return trace.join(name, *sequences)
        # No module got it: then it is of the only tensor that it can be of.
        shape = sorted(self._masks[name].shape)
        fits = {n for n in self._tokens() if sorted(self._batch[n].shape[:2]) == shape}
        return trace.join(name, *fits) if len(fits) == 1 and not calls else None

    def _may_belong(self, argument: Argument, mask: Argument, trace: Trace) -> bool:
        same = argument.size == mask.size and argument.source in self._tokens()
        return same and trace.alive(argument.source)

    def _check_calls(self, trace: Trace) -> None:
        """Refuse a mask that modules are called with, but which does not count as they count."""
        while trace.masks:
            parameter, name, passed = trace.masks.pop()
            if not parameter.endswith(KNOWN_MASKS) or not is_mask(passed):
                continue
            kept = passed == 0 if parameter.endswith(INVERTED_MASK) else passed != 0
            used = self._masks.get(name) if self._is_known(name) else None
            # Zeros alone may be an additive mask without padding, of which nothing follows.
            if used is None and bool(kept.all()):
                self._foreign = not self._masks  # later batches may have padding
            elif bool(kept.any()):
                self._check_call(parameter, name, used, kept)

    def _check_call(self, parameter: str, name: str, used: Tensor | None, kept: Tensor) -> None:
        given = self._batch.get(name)
        if given is None or not is_mask(given):
            if not self._masks:
                raise StatisticsError(
                    f"the model gets padding as {parameter!r}, which is no key of the batch: pass "
                    "mask=, a function of the batch that gives what is kept, or None to count all"
                )
        elif kept.numel() == given.numel() and (
            used is None or not torch.equal(used.reshape(kept.shape), kept)
        ):
            meaning = int(torch.equal(given.reshape(kept.shape).bool(), kept))
            raise StatisticsError(
                f"the model gets {name!r} as {parameter!r}, so that its {1 - meaning} is padding, "
                f"which collect was not told: pass mask=lambda batch: batch[...] == {meaning} of "
                "it, or mask=None to count everything"
            )
