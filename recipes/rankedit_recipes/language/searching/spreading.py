"""From a shift of the residual stream to keys and values of the projections that are to make it.

The key of a fact in a block is what the block's projection reads at the subject's last token, the
mean over the contexts. What it lacks there is its share of the shift. Both come from the same
forward pass over the same contexts, in every block.

A share that a lower block takes over changes what higher blocks read. MEMIT (Meng et al., arXiv
2210.07229, algorithm 1) runs the model with the lower blocks edited for the whole batch; then the
keys of one fact depend on which other facts there are, and on their order. Here the lower blocks'
outputs are shifted, at this fact's subject, by what solving for this fact alone would give. Keys
and values of a fact depend on nothing but the fact, so that facts can be added and taken out in any
order, in any number of batches, with the same result.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

import rankedit as rk
from rankedit_recipes.language.model.blocks import Block
from rankedit_recipes.language.model.running import Seen, embedding_device, look
from rankedit_recipes.language.model.tokens import Batch, Tokenizer, tokenised
from rankedit_recipes.language.requests import Request
from rankedit_recipes.language.searching.agreement import least_cosines
from rankedit_recipes.language.settings import Settings


@dataclass(frozen=True)
class Facts:
    """What n requests ask of each edited projection, in float32 on the CPU.

    Attributes:
        requests: the requests.
        keys: by projection `[n, in]`.
        lacking: by projection, what it is to give more for the keys `[n, out]`.
        bare: keys after the bare prompt, where a method divides by them.
        agreement: by projection `[n]`, the smallest cosine under the metric between the keys of two
            contexts; empty for facts that were kept in a folder.
    """

    requests: tuple[Request, ...]
    keys: dict[str, Tensor]
    lacking: dict[str, Tensor]
    bare: dict[str, Tensor]
    agreement: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.requests)


def spread(
    model: nn.Module,
    tokenizer: Tokenizer,
    requests: Sequence[Request],
    shifts: Tensor,
    blocks: Sequence[Block],
    metrics: Mapping[str, rk.Metric],
    settings: Settings,
    *,
    prefixes: Sequence[str] = (),
) -> Facts:
    """Keys and values of requests whose shift of the last block's output is known.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        requests: n of them.
        shifts: `[n, width]`, found at the last of the blocks.
        blocks: those to edit, from the lowest.
        metrics: by projection, what a change costs.
        settings: how the shift is shared.
        prefixes: what stands before the prompts, beside nothing.
    """
    reading = Reading(model, tokenizer, requests, blocks, settings, prefixes)
    keys: dict[str, Tensor] = {}
    lacking: dict[str, Tensor] = {}
    bare: dict[str, Tensor] = {}
    moved: dict[str, Tensor] = {}
    agreement: dict[str, Tensor] = {}
    goal = torch.zeros(0)
    for number, block in enumerate(blocks):
        seen = reading.look(block, moved)
        stream = reading.mean(seen.stream[blocks[-1].name])
        # From the unedited stream, once: what lower blocks bring is then subtracted from it.
        goal = stream + shifts if number == 0 else goal
        remaining = len(blocks) - number
        divisor = remaining if settings.spread == "even" else math.sqrt(remaining)
        name = block.down
        keys[name] = reading.mean(seen.read[name])
        agreement[name] = least_cosines(seen.read[name], reading.each, metrics[name])
        # The bare prompt is the first of each request's contexts.
        bare[name] = seen.read[name][:: reading.each].clone()
        # A single block's share is the shift itself, without the rounding of the stream.
        missing = shifts if len(blocks) == 1 else goal - stream
        lacking[name] = missing / divisor
        if remaining > 1:  # nothing that is looked at lies above the last one
            layer = model.get_submodule(name)
            moved[name] = _moved(layer, keys[name], lacking[name], metrics[name], settings)
    return Facts(tuple(requests), keys, lacking, {} if settings.consistent else bare, agreement)


def _moved(
    layer: object, keys: Tensor, lacking: Tensor, metric: rk.Metric, settings: Settings
) -> Tensor:
    """What keys get more `[n, out]` if each is solved for alone."""
    if not settings.solver:
        # The closed form gives a lonely key the share e/(e + s) of what it lacks, e = k A kᵀ.
        energy = metric.energy(keys)
        met = (energy / (energy + settings.softness).clamp_min(1e-300)).float().cpu()
        return lacking * met[:, None]
    rows = []
    for number in range(len(keys)):
        key = keys[number : number + 1]
        ledger = settings.ledger(layer, metric)
        ledger.add("alone", key, rk.linear_output(layer, key) + lacking[number : number + 1])
        rows.append(rk.linear_output(ledger.edit().delta(), key.double()))
    return torch.cat(rows).float().cpu()


class Reading:
    """The contexts of requests, and what the model reads at their subjects.

    Attributes:
        each: number of contexts of each request.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Tokenizer,
        requests: Sequence[Request],
        blocks: Sequence[Block],
        settings: Settings,
        prefixes: Sequence[str],
    ) -> None:
        # The bare prompt first, which `Settings.bare` weighs by itself.
        starts = ["", *prefixes]
        self.each = len(starts)
        self._model, self._blocks, self._tokens = model, blocks, settings.tokens
        # What follows the subject cannot be seen there.
        self._texts = [
            text.up_to_subject()
            for text in tokenised(
                tokenizer,
                [(asked, start) for asked in settings.asked(requests) for start in starts],
                targets=False,
            )
        ]  # fmt: skip
        self._weights = settings.shares(self.each)

    def mean(self, rows: Tensor) -> Tensor:
        """The mean over contexts `[n, width]` of rows `[n·each, width]`."""
        # Summed in float64, so that the result is rounded once.
        grouped = rows.double().reshape(-1, self.each, rows.shape[-1])
        return torch.einsum("c,ncw->nw", self._weights, grouped).float()

    def look(self, block: Block, moved: Mapping[str, Tensor]) -> Seen:
        """What is read in one block, and the stream behind the last one, with shifts below.

        Args:
            block: whose projection to look at.
            moved: by projection, what its output is shifted by for each request `[n, out]`.
        """
        names = [*moved, block.down]
        projections = {name: self._model.get_submodule(name) for name in names}
        last = self._blocks[-1].name
        behind = {last: self._model.get_submodule(last)}
        device = embedding_device(self._model)
        parts = []
        for rows in self._parts():
            batch = Batch.of([self._texts[i] for i in rows], device)
            facts = torch.tensor(rows) // self.each
            shifts = {name: shift[facts] for name, shift in moved.items()}
            parts.append(
                look(self._model, batch, projections=projections, blocks=behind, shifts=shifts)
            )
        return Seen(
            {block.down: torch.cat([part.read[block.down] for part in parts])},
            {block.down: torch.cat([part.given[block.down] for part in parts])},
            {last: torch.cat([part.stream[last] for part in parts])},
        )

    def _parts(self) -> list[list[int]]:
        """Rows to run together, of at most so many tokens."""
        # Rows are padded to the longest, so that all count as that long.
        longest = max(len(text.ids) for text in self._texts)
        size = max(1, self._tokens // longest)
        return [
            list(range(start, min(start + size, len(self._texts))))
            for start in range(0, len(self._texts), size)
        ]
