"""Leave out what stands before the subjects: a shift at a subject changes nothing there.

In a causal model a token sees those before it by their keys and values in each layer's attention.
These are computed once and given to every further run, as generating does with its cache.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from rankedit_recipes.language.model.running import logits_at, quiet
from rankedit_recipes.language.model.tokens import Batch


@dataclass(frozen=True)
class Continued(Batch):
    """Rows of tokens from each subject on, behind keys and values of what is before it.

    Subjects are at 0 then. The beginnings lie left of one column, the shorter ones padded before.

    Attributes:
        model: whose keys and values they are.
        kept: of each layer, keys and values `[all rows, heads, columns, width]`.
        before: `[rows, columns]`, 1 for tokens and 0 for padding.
        rows: which of all rows these are.
    """

    model: nn.Module
    kept: tuple[tuple[Tensor, Tensor], ...]
    before: Tensor
    rows: Tensor

    @property
    def rounding(self) -> float:
        """By how much the logits may differ from those of whole rows, relative to the largest."""
        # Other sums in another order; in half precision each layer rounds them to 3 digits.
        return 1e-4 if self.kept[0][0].element_size() > 2 else 2e-2

    def chosen(self, rows: Tensor) -> Continued:
        """Some of the rows."""
        fields = ("ids", "mask", "subjects", "before", "rows")
        return replace(self, **{name: getattr(self, name)[rows] for name in fields})

    def arguments(self) -> dict[str, Any]:
        """What a causal model of transformers takes, with a cache of its own for each run."""
        from transformers import DynamicCache

        cache = DynamicCache()
        for number, (keys, values) in enumerate(self.kept):
            # A run appends to what it is given: it gets copies.
            cache.update(keys[self.rows], values[self.rows], number)
        places = self.before.sum(1, keepdim=True) + torch.arange(
            self.ids.shape[1], device=self.ids.device
        )
        found = {
            "input_ids": self.ids,
            "attention_mask": torch.cat([self.before, self.mask], 1),
            "past_key_values": cache,
            "use_cache": True,
        }
        # Counted over tokens, not over padding, where a model can be told.
        named = "position_ids" in signature(self.model.forward).parameters
        return {**found, "position_ids": places} if named else found


@dataclass(frozen=True)
class Kept(Batch):
    """Whole rows, of which a run keeps keys and values in a cache."""

    cache: Any

    def arguments(self) -> dict[str, Any]:
        """What a causal model of transformers takes."""
        return {**super().arguments(), "past_key_values": self.cache, "use_cache": True}


def continued(model: nn.Module, batch: Batch, places: Tensor) -> tuple[Continued, Tensor] | None:
    """Rows from their subjects on, and the logits `[rows, k, words]` of whole rows at some places.

    Args:
        model: a causal model of transformers, as it is before anything is shifted.
        batch: whole rows.
        places: `[rows, k]`, where somebody looks, at or behind the subjects.

    Returns:
        None if nothing is before any subject. Whether the model gives the same logits from the
        subjects on is to be tried: some keep something else than keys and values.
    """
    from transformers import DynamicCache

    subjects, columns = batch.subjects, int(batch.subjects.max())
    if not columns:
        return None
    # Plain, whatever the model's own is: layers of a window would drop tokens.
    cache = DynamicCache()
    whole = Kept(batch.ids, batch.mask, batch.subjects, cache)
    with quiet(model):
        logits = logits_at(model, whole, places)
    ends = places.amax(1)
    columns_of = torch.arange(columns, device=subjects.device)
    source = columns_of[None] - (columns - subjects[:, None])
    before = (source >= 0).long()
    kept = tuple(
        (_moved(layer.keys, source), _moved(layer.values, source)) for layer in cache.layers
    )
    length = int((ends - subjects).max()) + 1
    spots = subjects[:, None] + torch.arange(length, device=subjects.device)
    inside = spots <= ends[:, None]
    spots = spots.clamp_max(batch.ids.shape[1] - 1)
    short = Continued(
        ids=batch.ids.gather(1, spots),
        mask=(batch.mask.gather(1, spots) * inside).long(),
        subjects=torch.zeros_like(subjects),
        model=model,
        kept=kept,
        before=before,
        rows=torch.arange(len(subjects), device=subjects.device),
    )
    return short, logits


def _moved(kept: Tensor, source: Tensor) -> Tensor:
    """Keys or values `[rows, heads, columns, width]` with each row's last token in one column."""
    # Padding holds those of some token: it must be finite, for what is masked is multiplied by 0.
    index = source.clamp_min(0).to(kept.device)[:, None, :, None]
    return kept.gather(2, index.expand(-1, kept.shape[1], -1, kept.shape[3]))
