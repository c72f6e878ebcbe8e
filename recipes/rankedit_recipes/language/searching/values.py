"""Search what projections are to give for whole batches of facts in one optimisation.

The value of a fact is what the projection gives at the subject's last token plus a shift, found by
gradient so that the model goes on with the target after every context (Meng et al., arXiv
2202.05262, equation 4). The objective of one request never depends on another one: what is shared
is the forward pass. A request that is done leaves the batch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

import rankedit as rk
from rankedit.progress import progress as show_progress
from rankedit_recipes.language.model.beginnings import continued
from rankedit_recipes.language.model.blocks import Block
from rankedit_recipes.language.model.running import embedding_device, evaluating, logits_at, look
from rankedit_recipes.language.model.skipping import LowerBlocks, same
from rankedit_recipes.language.model.tokens import Batch, Text, Tokenizer, targets_of, tokenised
from rankedit_recipes.language.requests import Request
from rankedit_recipes.language.settings import Settings

# What must not change about a subject: the words that follow it here.
ESSENCE = "{} is a"


@dataclass(frozen=True)
class FoundValues:
    """The result of a search for n requests.

    Attributes:
        shifts: `[n, out]`, what the projection is to give more at the subject, float32.
        before: `[n]`, the objective at the start.
        after: `[n]`, the objective in the end.
        steps: `[n]`, how often each was evaluated.
        reasons: why each stopped; see `rankedit.LearnedValues`.
    """

    shifts: Tensor
    before: Tensor
    after: Tensor
    steps: Tensor
    reasons: tuple[str, ...]


def find_values(
    model: nn.Module,
    tokenizer: Tokenizer,
    requests: Sequence[Request],
    block: Block,
    settings: Settings,
    *,
    metric: rk.Metric | None = None,
    prefixes: Sequence[str] = (),
    progress: bool = True,
) -> FoundValues:
    """Search for what one block's projection is to give for each request.

    Args:
        model: the model.
        tokenizer: its fast tokenizer.
        requests: what is to be learned.
        block: the one to search in.
        settings: how.
        metric: what a change of the projection costs. With it the search sees the shift as the
            edit will give it: an edit for the mean key `k̄` gives a context with the key k the part
            `k A k̄ᵀ / k̄ A k̄ᵀ` of it. None to give every context all of it, as published.
        prefixes: what stands before the prompts, beside nothing.
        progress: show it.
    """
    texts = texts_of(tokenizer, settings.asked(requests), prefixes)
    parts: dict[int, tuple[FoundValues, int]] = {}
    longest = [max(len(text.ids) for text in rows) for rows in texts]
    chunks = chunked(longest, list(map(len, texts)), settings.tokens)
    # Dropout would make the objective of one request another one at each step.
    with evaluating(model), show_progress("values", len(chunks), shown=progress) as advance:
        for chunk in chunks:
            search = _Search(model, [texts[i] for i in chunk], block, settings, metric)
            found = search.run()
            # Chunks are sorted by length; results go back to the order of the requests.
            parts |= {number: (found, place) for place, number in enumerate(chunk)}
            advance(f"{len(parts):,} of {len(requests):,} facts")
    ordered = [parts[number] for number in range(len(requests))]
    return FoundValues(
        torch.stack([found.shifts[place] for found, place in ordered]),
        torch.stack([found.before[place] for found, place in ordered]),
        torch.stack([found.after[place] for found, place in ordered]),
        torch.stack([found.steps[place] for found, place in ordered]),
        tuple(found.reasons[place] for found, place in ordered),
    )


def texts_of(
    tokenizer: Tokenizer, requests: Sequence[Request], prefixes: Sequence[str]
) -> list[list[Text]]:
    """For each request its prompt with the target, bare and behind each prefix, and its essence."""
    starts = ["", *prefixes]
    whole = tokenised(
        tokenizer, [(request, start) for request in requests for start in starts], targets=True
    )
    # Only what follows the subject is looked at there: its target is never read.
    essences = [replace(request, prompt=ESSENCE) for request in requests]
    last = tokenised(tokenizer, [(essence, "") for essence in essences], targets=False)
    count = len(starts)
    return [[*whole[i * count : (i + 1) * count], last[i]] for i in range(len(requests))]


def chunked(longest: Sequence[int], rows: Sequence[int], tokens: int) -> list[list[int]]:
    """Requests to search for together: of like length, and of at most so many tokens.

    Args:
        longest: of each request, tokens of its longest text.
        rows: of each request, how many texts it has.
        tokens: of all texts of a chunk, padding included.
    """
    chunks: list[list[int]] = []
    # From the shortest: requests of like length are padded little.
    for number in sorted(range(len(longest)), key=lambda i: longest[i]):
        if not chunks or (len(chunks[-1]) + 1) * rows[number] * longest[number] > tokens:
            chunks.append([])
        chunks[-1].append(number)
    return chunks


class _Search:
    """One optimisation over a batch of requests; see `find_values`."""

    def __init__(
        self,
        model: nn.Module,
        texts: Sequence[Sequence[Text]],
        block: Block,
        settings: Settings,
        metric: rk.Metric | None,
    ) -> None:
        self._model, self._block, self._settings = model, block, settings
        self._metric, self._parts = metric, torch.zeros(0)
        self._count, self._each = len(texts), len(texts[0])
        device = embedding_device(model)
        flat = [text for rows in texts for text in rows]
        self._batch = Batch.of(flat, device)
        self._places, self._labels = (t.to(device) for t in targets_of(flat))
        self._active = torch.arange(self._count)
        self._losses = torch.zeros(self._count)
        self._essence: Tensor | None = None
        self._first = torch.zeros(self._count, dtype=torch.long)
        self._steps = torch.zeros(self._count, dtype=torch.long)
        # Only the stream from this block on changes; those below give the same at each step.
        self._lower = LowerBlocks([model.get_submodule(name) for name in block.below])
        self._skips = False

    def run(self) -> FoundValues:
        """Search."""
        self._lower.rows = None
        down = self._block.down
        # Before anything is shifted: what is recorded must be of the unedited model.
        self._shorten()
        scale, self._parts = self._looked()
        self._skips = self._lower.record(self._logits)
        found = rk.optimise_value(
            self._model,
            {down: rk.OutputSite(self._where, self._count, scale, self._factor)},
            self._loss,
            options=self._settings.search(),
            on_step=self._on_step,
        )
        totals = found.totals
        return FoundValues(
            (found.values[down] - found.initial[down]).float().cpu(),
            totals[0],
            totals[-1],
            self._steps,
            found.reasons,
        )

    def _looked(self) -> tuple[Tensor, Tensor]:
        """The anchor's length at each bare prompt, and each row's part of the shift."""
        down, block = self._block.down, self._block.name
        seen = look(
            self._model,
            self._batch,
            projections={down: self._model.get_submodule(down)},
            blocks={block: self._model.get_submodule(block)},
        )
        # Of the bare prompt: contexts must not change how far a value may move.
        anchor = seen.given[down] if self._settings.anchor == "output" else seen.stream[block]
        lengths = anchor[:: self._each].norm(dim=1)
        if self._metric is None:
            return lengths, torch.ones(len(anchor))
        read = seen.read[down].double().reshape(self._count, self._each, -1)
        mean = torch.einsum("c,ncw->nw", self._settings.shares(self._each - 1), read[:, :-1])
        # The essence's row is left out of the mean, and gets its own part as any context does.
        images = self._metric.guarded.solve(mean).cpu()
        parts = torch.einsum("ncw,nw->nc", read, images)
        return lengths, (parts / torch.einsum("nw,nw->n", mean, images)[:, None]).flatten().float()

    def _shorten(self) -> None:
        """Run only what a shift can change, if the model gives the same from there."""
        whole, places = self._batch, self._places
        try:
            found = continued(self._model, whole, places)
            if found is not None:
                self._batch, before = found
                self._places = (places - whole.subjects[:, None]).clamp_min(0)
                with torch.no_grad():
                    if same(self._logits(), before, found[0].rounding):
                        return
        # Models that keep something else may fail in any way: then whole rows are run.
        except Exception:
            pass
        self._batch, self._places = whole, places

    # ------------------------------------------------------------------ rows

    def _rows(self) -> Tensor:
        """Rows of the requests that go on."""
        starts = self._active[:, None] * self._each
        return (starts + torch.arange(self._each)).flatten().to(self._places.device)

    def _where(self) -> Tensor:
        rows = self._rows()
        batch = self._batch.chosen(rows)
        # -1 is where no request's shift is added.
        where = torch.full_like(batch.ids, -1)
        numbers = self._active.repeat_interleave(self._each).to(where)
        where[torch.arange(len(rows), device=where.device), batch.subjects] = numbers
        return where

    def _factor(self) -> Tensor:
        rows = self._rows()
        parts = self._parts.to(rows.device)[rows]
        return parts[:, None].expand(-1, self._batch.ids.shape[1])

    def _logits(self) -> Tensor:
        rows = self._rows()
        self._lower.rows = rows
        return logits_at(self._model, self._batch.chosen(rows), self._places[rows])

    # ------------------------------------------------------------------ objective

    def _loss(self) -> tuple[Tensor, Tensor]:
        """The mean loss of each request's target, and the logits behind its subject."""
        skipped: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if self._skips:
            skipped = self._lower.skipped()
        with skipped:
            logits = self._logits()
        labels = self._labels[self._rows()].to(logits.device)
        logits = logits.reshape(len(self._active), self._each, *logits.shape[1:])
        labels = labels.reshape(len(self._active), self._each, -1)[:, :-1]
        targets, essence = logits[:, :-1], logits[:, -1, 0]
        given = labels >= 0
        # Shorter targets are padded with the label -1, which `given` leaves out.
        chances = targets.log_softmax(-1).gather(-1, labels.clamp_min(0)[..., None])[..., 0]
        # Mean over the target's tokens (ROME's code): long targets do not outweigh the other terms.
        losses = -(chances * given).sum(-1) / given.sum(-1)
        self._count_first(targets, labels, given)
        return self._with_stopped(losses.mean(1), essence)

    def _with_stopped(self, losses: Tensor, essence: Tensor) -> tuple[Tensor, Tensor]:
        """All requests: those that stopped keep what they had last."""
        if self._essence is None:
            self._essence = essence.detach().clone()
            self._losses = losses.detach().clone()
        # Only the rows of requests that go on were run.
        active = self._active.to(losses.device)
        self._steps[self._active] += 1
        result = (
            self._losses.index_put((active,), losses),
            self._essence.index_put((active,), essence),
        )
        self._losses, self._essence = result[0].detach(), result[1].detach()
        return result

    def _count_first(self, targets: Tensor, labels: Tensor, given: Tensor) -> None:
        """For how many steps the targets have been the likeliest tokens after every context."""
        first = ((targets.detach().argmax(-1) == labels) | ~given).flatten(1).all(1).cpu()
        self._first[self._active] = torch.where(first, self._first[self._active] + 1, 0)

    def _on_step(self, report: rk.StepReport) -> Tensor:
        enough = self._settings.first_for
        # ENCORE's stop; 0 is for never, not for at once.
        told = (self._first >= enough) if enough else torch.zeros(self._count, dtype=torch.bool)
        going = ~(report.stopped | told)
        # With none left the search ends by itself; a batch of no rows would fail in the model.
        if bool(going.any()):
            self._active = torch.arange(self._count)[going]
        return told
