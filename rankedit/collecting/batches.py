"""What `collect` makes of a batch: how to run it, its mask, and a digest of the first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Generic, TypeAlias, TypeVar

from torch import Tensor, nn

from rankedit.collecting.digests import batch_digest
from rankedit.errors import StatisticsError
from rankedit.shapes import describe

Batch = TypeVar("Batch")
Mask: TypeAlias = str | Callable[[Batch], Tensor | None] | None

DEFAULT_MASK = "attention_mask"


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


def mask_of(mask: Mask[Batch], batch: Batch) -> Tensor | None:
    """The mask of a batch as booleans, True for what is no padding.

    Raises:
        StatisticsError: the batch has no such key, or it holds something that is no mask.
    """
    if mask is None:
        return None
    if isinstance(mask, str):
        found: object = batch.get(mask) if isinstance(batch, Mapping) else None
        if found is None and mask != DEFAULT_MASK:
            keys = list(batch) if isinstance(batch, Mapping) else type(batch).__name__
            raise StatisticsError(
                f"collect: mask={mask!r} must be a key of every batch, got {keys}; pass a function "
                "of the batch, or None to count everything."
            )
    else:
        found = mask(batch)
    if found is None:
        return None
    if not isinstance(found, Tensor) or not bool(((found == 0) | (found == 1)).all()):
        raise StatisticsError(
            "collect: a mask must be a tensor of ones (kept) and zeros (padding), got "
            f"{describe(found)}; for an additive mask pass mask=lambda batch: batch[...] == 0."
        )
    return found.bool()
