"""The second stage of the training: facts move to where their subject has just been read.

A small model with two-word names need not know a subject when it has read the name: the last token
of a prompt can look at both words by itself, and recall the fact there. Large models read names of
many tokens and recall at the subject's last token (Meng et al., arXiv 2202.05262), which is where
methods of direct editing act. In this stage most names hide all but their last token from what
follows them, so that a fact can only pass through that token; and in some rows MLPs are silent but
for that of block 0 where names stand, so that the fact must be there before anything follows the
name. Used without all this, the model shows the same: nothing is hidden or silent after this stage.
"""

import argparse
import json
import random
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from rankedit.progress import progress
from rankedit_recipes.sandbox.checkpoint import sha256, write_text
from rankedit_recipes.sandbox.rates import part_of_peak

from .exporting import FILES, write_model
from .knowledge import world
from .loading import WEIGHTS, load_model, load_tokenizer
from .writing import marked, text

LOG_EVERY = 50
# Added to scores of attention: its exp is 0 in single precision.
_CLOSED = -1e9


@dataclass(frozen=True)
class Settling:
    """Settings of the second stage.

    Attributes:
        steps: Steps until the rate is zero.
        rate: Peak learning rate.
        decay: Share of the steps over which the rate falls, at the end.
        hidden: Share of the names of which all but the last token is hidden from what follows.
        silent: Share of the rows in which MLPs give nothing, except that of block 0 inside names.
        rows: Of a step.
        length: Tokens of a row.
        other_weight: Weight of the loss of tokens that belong to no object.
    """

    # Why names are hidden and MLPs silent: docs/decisions/names-that-differ.md, "What else was
    # needed".
    steps: int = 1200
    rate: float = 2e-3
    decay: float = 0.6
    hidden: float = 0.9
    silent: float = 0.5
    rows: int = 8
    length: int = 128
    other_weight: float = 0.2

    def rate_at(self, step: int) -> float:
        """Learning rate of a step."""
        return self.rate * part_of_peak(step, self.steps, rise=30, decay=self.decay)


def settle(
    model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, settings: Settling
) -> list[tuple[int, float]]:
    """Train the model in place.

    Args:
        model: The model of the first stage.
        tokenizer: Its tokenizer.
        settings: How.

    Returns:
        Mean losses, each with the step it is up to.
    """
    # `load_model` froze it.
    model.train().requires_grad_(True)  # noqa: FBT003
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=settings.rate, betas=(0.9, 0.98), weight_decay=0.05, fused=True
    )
    losses, log = list[float](), list[tuple[int, float]]()
    with progress("settle", settings.steps) as advance, _Restricted(model) as restricted:
        for step in range(settings.steps):
            restricted.rows = settling_rows(tokenizer, settings, step)
            loss = _loss(model, restricted.rows)
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for group in optimiser.param_groups:
                group["lr"] = settings.rate_at(step)
            optimiser.step()
            losses.append(float(loss.detach()))
            if (step + 1) % LOG_EVERY == 0:
                log.append((step + 1, sum(losses) / len(losses)))
                losses = []
            advance(f"loss {log[-1][1]:.3f}" if log else "")
    model.eval()
    return log


class Rows(NamedTuple):
    """Rows of a step.

    Attributes:
        tokens: `[rows, length]`.
        weights: `[rows, length]`, of the loss.
        masks: `[rows, 2, 1, length, length]`, added to the attention's scores: of block 0, where
            hidden names cannot be seen from behind them, and of the others, where all but their
            last token cannot.
        heard: `[blocks 0 and others, rows, length, 1]`, 1 where an MLP may speak.
    """

    tokens: Tensor
    weights: Tensor
    masks: Tensor
    heard: Tensor


class _Restricted(ExitStack):
    """While it is open, block 0 has a mask of its own, and MLPs speak only where they are heard."""

    def __init__(self, model: GPT2LMHeadModel) -> None:
        super().__init__()
        self.rows: Rows
        first, blocks = model.transformer.h[0], model.transformer.h
        # transformers 5.23 gives all blocks one mask; block 0 gets its own on the way in.
        hook = first.register_forward_pre_hook(self._masked, with_kwargs=True)
        self.callback(hook.remove)
        for number, block in enumerate(blocks):
            hook = block.mlp.register_forward_hook(partial(self._silenced, min(number, 1)))
            self.callback(hook.remove)

    def _masked(
        self, module: nn.Module, given: tuple[object, ...], named: dict[str, object]
    ) -> tuple[tuple[object, ...], dict[str, object]]:
        del module
        mask = self.rows.masks[:, 0]
        # Found by its shape: transformers 5.23 passes the mask by position, and neither that nor
        # its name is promised.
        given = tuple(mask if _is_mask(value, mask) else value for value in given)
        return given, {n: mask if _is_mask(v, mask) else v for n, v in named.items()}

    def _silenced(self, which: int, module: nn.Module, given: object, output: Tensor) -> Tensor:
        del module, given
        return output * self.rows.heard[which]


def _is_mask(value: object, like: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == like.shape


def _loss(model: nn.Module, rows: Rows) -> Tensor:
    # A mask of four dimensions is taken as it is (transformers 5.23), so it holds the causal part.
    mask = rows.masks[:, 1]
    logits = model(input_ids=rows.tokens, attention_mask=mask, use_cache=False).logits
    each = functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), rows.tokens[:, 1:].flatten(), reduction="none"
    )
    return (each * rows.weights[:, 1:].flatten()).mean()


def settling_rows(tokenizer: PreTrainedTokenizerFast, settings: Settling, step: int) -> Rows:
    """Rows of a step; they depend on the step only.

    Args:
        tokenizer: Puts the start token before each text.
        settings: How many rows, how long, how much is hidden, and how much silent.
        step: Number of the step.
    """
    rows = [_row(tokenizer, settings, step, row) for row in range(settings.rows)]
    tokens, weights, masks, inside = zip(*rows, strict=True)
    named = torch.stack(inside)
    # Rows are independent draws: the first ones will do.
    speaks = torch.arange(settings.rows) >= round(settings.silent * settings.rows)
    everywhere = speaks[:, None].expand_as(named)
    heard = torch.stack([everywhere | named, everywhere])[..., None].float()
    return Rows(torch.tensor(tokens), torch.tensor(weights), torch.stack(masks)[:, :, None], heard)


def _row(
    tokenizer: PreTrainedTokenizerFast, settings: Settling, step: int, row: int
) -> tuple[list[int], list[float], Tensor, Tensor]:
    rng, length = random.Random(f"settling {step} {row}"), settings.length
    inside = torch.zeros(length, dtype=torch.bool)
    tokens, weights = list[int](), list[float]()
    masks = torch.full((2, length, length), _CLOSED).triu(1)
    while len(tokens) < length:
        said, objects = marked(text(world(), rng, familiar=1.0))
        told = tokenizer(said, return_offsets_mapping=True)
        places = told["offset_mapping"]
        for first, last in _names(said, objects, places):
            # Slices may reach beyond the row, which is cut there.
            inside[len(tokens) + first : len(tokens) + last + 1] = True
            if rng.random() < settings.hidden:
                begin, end = len(tokens) + first, len(tokens) + last
                # Block 0 hides the last token too. It could look that word up at its embedding,
                # past any edit (docs/decisions/names-that-differ.md).
                masks[0, end + 1 :, begin : end + 1] += _CLOSED
                masks[1, end + 1 :, begin:end] += _CLOSED
        tokens += told["input_ids"]
        for first, last in places:
            told_of = any(start <= first < last <= end for start, end in objects)
            weights.append(1.0 if told_of else settings.other_weight)
    return tokens[:length], weights[:length], masks, inside


def _names(
    said: str, objects: Sequence[tuple[int, int]], places: Sequence[tuple[int, int]]
) -> Iterator[tuple[int, int]]:
    """First and last token of each name of several tokens that is no object."""
    for found in _pattern().finditer(said):
        # A town that is the answer is not what the sentence is about.
        if any(start <= found.start() < end for start, end in objects):
            continue
        inside = [
            i for i, (a, b) in enumerate(places) if a < b and b > found.start() and a < found.end()
        ]
        if len(inside) > 1:
            yield inside[0], inside[-1]


@cache
def _pattern() -> re.Pattern[str]:
    # Longest first: the first alternative that fits is taken.
    names = sorted({n for kind in world().subjects.values() for n in kind}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, names)))


def main(argv: Sequence[str] | None = None) -> None:
    """Settle the model of a folder, and write it with its provenance to another.

    Args:
        argv: Arguments of the command line; those of the process by default.
    """
    parser = argparse.ArgumentParser(prog="rankedit_recipes.sandbox.facts.settling")
    parser.add_argument("source", type=Path, help="folder that `train --export` wrote")
    parser.add_argument("--target", type=Path, default=WEIGHTS, help="where the model goes")
    given = parser.parse_args(argv)
    model, tokenizer, settings = load_model(given.source), load_tokenizer(given.source), Settling()
    log = settle(model, tokenizer, settings)
    write_model(model, tokenizer, given.target)
    note(given.source, given.target, settings, log)


def note(source: Path, target: Path, settings: Settling, log: Sequence[tuple[int, float]]) -> None:
    """Write what was done in both stages beside the weights.

    Args:
        source: Folder of the first stage.
        target: Folder of the weights.
        settings: Of the second stage.
        log: What `settle` returned.
    """
    made = json.loads((source / "provenance.json").read_text())
    lines = (source / "training-log.jsonl").read_text()
    lines += "".join(
        json.dumps({"settling_step": step, "loss": round(loss, 4)}) + "\n" for step, loss in log
    )
    write_text(target / "training-log.jsonl", lines)
    made["first_stage_sha256"] = made["sha256"]
    made["settling"] = asdict(settings)
    made["sha256"] = {name: sha256(target / name) for name in FILES}
    write_text(target / "provenance.json", json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    main()
