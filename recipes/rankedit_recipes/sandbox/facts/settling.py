"""The second stage of the training: facts move to where their subject has just been read.

A small model with two-word names need not know a subject when it has read the name: the last token
of a prompt can look at both words by itself, and recall the fact there. Large models read names of
many tokens and recall at the subject's last token (Meng et al., arXiv 2202.05262), which is where
methods of direct editing act. In this stage most names hide all but their last token from what
follows them, so that a fact can only pass through that token. Used without it, the model shows the
same: nothing is hidden after this stage.
"""

import argparse
import json
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from rankedit.progress import progress
from rankedit_recipes.sandbox.checkpoint import sha256, write_text

from .exporting import FILES, write_model
from .knowledge import world
from .loading import WEIGHTS, load_model, load_tokenizer
from .writing import marked, text

LOG_EVERY = 50
_CLOSED = -1e9


@dataclass(frozen=True)
class Settling:
    """Settings of the second stage.

    Attributes:
        steps: Steps until the rate is zero.
        rate: Peak learning rate.
        decay: Share of the steps over which the rate falls, at the end.
        hidden: Share of the names of which all but the last token is hidden from what follows.
        rows: Of a step.
        length: Tokens of a row.
        other_weight: Weight of the loss of tokens that belong to no object.
    """

    steps: int = 900
    rate: float = 2e-3
    decay: float = 0.6
    hidden: float = 0.9
    rows: int = 8
    length: int = 128
    other_weight: float = 0.2


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
    model.train().requires_grad_(True)  # noqa: FBT003
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=settings.rate, betas=(0.9, 0.98), weight_decay=0.05, fused=True
    )
    losses, log = list[float](), list[tuple[int, float]]()
    with progress("settle", settings.steps) as advance:
        for step in range(settings.steps):
            loss = _loss(model, settling_rows(tokenizer, settings, step))
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            fall = (settings.steps - step) / (settings.decay * settings.steps)
            for group in optimiser.param_groups:
                group["lr"] = settings.rate * min(1, (step + 1) / 30, fall)
            optimiser.step()
            losses.append(float(loss.detach()))
            if (step + 1) % LOG_EVERY == 0:
                log.append((step + 1, sum(losses) / len(losses)))
                losses = []
            advance(f"loss {log[-1][1]:.3f}" if log else "")
    model.eval()
    return log


def _loss(model: nn.Module, rows: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    tokens, weights, mask = rows
    logits = model(input_ids=tokens, attention_mask=mask, use_cache=False).logits[:, :-1]
    each = functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    return (each * weights[:, 1:].flatten()).mean()


def settling_rows(
    tokenizer: PreTrainedTokenizerFast, settings: Settling, step: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of a step; they depend on the step only.

    Args:
        tokenizer: Puts the start token before each text.
        settings: How many rows, how long, and how much is hidden.
        step: Number of the step.

    Returns:
        Tokens and loss weights `[rows, length]`, and what is added to the attention's scores
        `[rows, 1, length, length]`.
    """
    rows = [_row(tokenizer, settings, step, row) for row in range(settings.rows)]
    tokens, weights, masks = zip(*rows, strict=True)
    return torch.tensor(tokens), torch.tensor(weights), torch.stack(masks)[:, None]


def _row(
    tokenizer: PreTrainedTokenizerFast, settings: Settling, step: int, row: int
) -> tuple[list[int], list[float], Tensor]:
    rng, length = random.Random(f"ft {step} {row}"), settings.length
    tokens, weights = list[int](), list[float]()
    mask = torch.full((length, length), _CLOSED).triu(1)
    while len(tokens) < length:
        said, objects = marked(text(world(), rng, familiar=1.0))
        told = tokenizer(said, return_offsets_mapping=True)
        places = told["offset_mapping"]
        for first, last in _names(said, objects, places):
            if rng.random() < settings.hidden:
                begin, end = len(tokens) + first, len(tokens) + last
                mask[end + 1 :, begin:end] += _CLOSED
        tokens += told["input_ids"]
        for first, last in places:
            inside = any(start <= first < last <= end for start, end in objects)
            weights.append(1.0 if inside else settings.other_weight)
    return tokens[:length], weights[:length], mask


def _names(
    said: str, objects: Sequence[tuple[int, int]], places: Sequence[tuple[int, int]]
) -> Iterator[tuple[int, int]]:
    """First and last token of each name of several tokens that is no object."""
    for found in _pattern().finditer(said):
        if any(start <= found.start() < end for start, end in objects):
            continue
        inside = [
            i for i, (a, b) in enumerate(places) if a < b and b > found.start() and a < found.end()
        ]
        if len(inside) > 1:
            yield inside[0], inside[-1]


def _pattern() -> re.Pattern[str]:
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
