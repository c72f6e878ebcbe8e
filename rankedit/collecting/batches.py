"""What `collect` makes of a batch: how to run it, its tensors by name, its masks, and a digest."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from typing import Generic, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from rankedit.collecting.digests import batch_digest
from rankedit.errors import RankeditWarning, ShapeError, StatisticsError
from rankedit.shapes import Inputs, check_has_data, describe

Batch = TypeVar("Batch")
Mask: TypeAlias = str | Callable[[Batch], Tensor | None] | None

DEFAULT_MASK = "attention_mask"
# torch's own layers mark what is left out; all others that end so mark what is kept.
INVERTED_MASK = "key_padding_mask"
KNOWN_MASKS = (DEFAULT_MASK, INVERTED_MASK)


def default_call(model: nn.Module) -> Callable[[object], object]:
    """How `collect` runs a batch if it is not told."""

    def call(batch: object) -> object:
        if isinstance(batch, Mapping):
            return model(**batch)
        if isinstance(batch, (tuple, list)):
            return model(*batch)
        return model(batch)

    return call


class Noted(Generic[Batch]):
    """Batches as they are, and a digest of the first."""

    def __init__(self, batches: Iterable[Batch]) -> None:
        self._batches = batches
        self.first = ""

    def __iter__(self) -> Iterator[Batch]:
        for batch in self._batches:
            self.first = self.first or batch_digest(batch)
            yield batch


def named_tensors(batch: object, parameters: Sequence[str]) -> dict[str, Tensor]:
    """The tensors of a batch by key, by the parameter that each is passed as, or by number."""
    if isinstance(batch, Mapping):
        items = {str(key): item for key, item in batch.items()}
    else:
        values = batch if isinstance(batch, (tuple, list)) else (batch,)
        names = [*parameters[: len(values)], *map(str, range(len(parameters), len(values)))]
        items = dict(zip(names, values, strict=True))
    found = {}
    for name, item in items.items():
        if isinstance(item, Tensor):
            found[name] = item
        elif isinstance(item, (Mapping, tuple, list)):
            inner = named_tensors(item, ())
            found |= {f"{name}.{key}": tensor for key, tensor in inner.items()}
    return found


def is_mask(tensor: Tensor) -> bool:
    """Whether a tensor has the form of a mask `[batch, tokens]`: of ones and zeros."""
    if tensor.is_meta or tensor.ndim < 2 or set(tensor.shape[1:-1]) - {1}:
        return False
    return bool(((tensor == 0) | (tensor == 1)).all())


def checked_mask(found: object) -> Tensor:
    """A mask as booleans, True for what is kept; one of 4 axes `[b, 1, 1, t]` as `[b, t]`.

    Raises:
        StatisticsError: it is no mask.
        ShapeError: it is on the meta device.
    """
    check_has_data("collect", "a mask", found)
    if not isinstance(found, Tensor) or not bool(((found == 0) | (found == 1)).all()):
        raise StatisticsError(
            "collect: a mask must be a tensor of ones (kept) and zeros (padding), got "
            f"{describe(found)}; for an additive mask pass mask=lambda batch: batch[...] == 0."
        )
    flat = found.ndim > 2 and not set(found.shape[1:-1]) - {1}
    return (found.reshape(found.shape[0], -1) if flat else found).bool()


def check_padding(
    masks: Mapping[str, Tensor], pairs: Container[str], padding: Container[str]
) -> None:
    """Refuse masks of pairs of tokens, which are as large as those of padding in some batches.

    Args:
        masks: by name, those without a name the caller's own.
        pairs: names of those that were seen used for pairs.
        padding: names of those that were seen used for rows of the batch.

    Raises:
        StatisticsError: it is of pairs, or nothing tells and it looks like one.
    """
    for name, mask in masks.items():
        shape = mask.shape[0] if mask.ndim == 2 and len({*mask.shape}) == 1 else 0
        shapes = (mask, mask.T) if shape > 1 else ()
        causal = any(torch.equal(m, m.tril()) and bool(m.diag().all()) for m in shapes)
        if name and (name in pairs or (causal and name not in padding and not mask.all())):
            raise StatisticsError(
                f"collect: {name!r} is, or may be, no mask of padding but one [tokens, tokens], of "
                "which token sees which; pass mask=None to count everything, or a function of the "
                "batch that gives the padding."
            )


def padded_left(mask: Tensor) -> bool:
    """Whether a row of a mask begins with padding and has something behind it."""
    return mask.ndim == 2 and bool((~mask[:, :1] & mask.any(1, keepdim=True)).any())


def warn_of_positions(tables: Sequence[str]) -> None:
    """Say that tables of places, by name, counted padding on the left."""
    if tables:
        warnings.warn(
            f"collect: a batch is padded on the left, and {tables[0]!r} gives places that count "
            "the padding: words are read as if they stood further back in the text. Pass "
            "position_ids=(mask.cumsum(-1) - 1).clamp(min=0) in the batch, or pad on the right.",
            RankeditWarning,
            stacklevel=7,
        )


def fitted(mask: Tensor, x: Inputs, tokens_first: bool | None) -> Tensor:  # noqa: FBT001
    """A mask `[batch, tokens]` in the shape of the vectors, which a model may have rearranged.

    Args:
        mask: the mask.
        x: the vectors `[..., in]`.
        tokens_first: whether the tokens come before the batch in x; None if nobody knows.

    Raises:
        ShapeError: it has another number of entries, or nobody knows their order.
    """
    wanted = x.shape[:-1]
    if mask.numel() != wanted.numel():
        raise ShapeError(
            f"the mask must have one entry for each vector, but it is {describe(mask)} and the "
            f"projection reads {describe(x)}; pass mask=None, or a function that gives the mask "
            "of what these projections read, and collect others apart"
        )
    if mask.ndim != 2 or 1 in mask.shape:
        return mask.reshape(wanted)  # one order only
    square = mask.shape[0] == mask.shape[1]
    if tokens_first is None and not square and sorted(mask.shape) == sorted(wanted):
        tokens_first = mask.shape != wanted
    if tokens_first is None and not bool(mask.all()):
        raise ShapeError(
            f"the mask {describe(mask)} does not tell which of the vectors {describe(x)} are "
            "padding: their order was changed where it cannot be followed, or there are as many "
            "tokens as examples; pass a function that gives the mask in their shape, batches "
            "with another number of examples, or mask=None"
        )
    # A function may give it in the shape of the vectors, which then says the same.
    turned = tokens_first and not (mask.shape == wanted and not square)
    return (mask.mT if turned else mask).reshape(wanted)
