"""What editing is compared with: fine-tuning some weights, and a LoRA, on the requests alone."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from rankedit_recipes.language.evaluating.likelihoods import encode_pairs
from rankedit_recipes.language.requests import Request
from torch import Tensor, nn

# Meng et al., arXiv 2202.05262, appendix E.1: Adam, early stopping, 25 steps at most.
STEPS = 25
STOP_BELOW = 1e-2


@contextlib.contextmanager
def fine_tuned(
    model: nn.Module,
    tokenizer: Any,
    requests: Sequence[Request],
    names: Sequence[str],
    *,
    rate: float = 5e-4,
    limit: float = math.inf,
    steps: int = STEPS,
    batch: int = 32,
    seed: int = 0,
) -> Iterator[int]:
    """Weights of some modules trained on the requests; restored afterwards, bit for bit.

    `limit` is the largest change of any entry of a weight: FT+L of Meng et al. Gives the steps.
    """
    weights = [p for name in names for p in model.get_submodule(name).parameters() if p.ndim > 1]
    before = [weight.detach().clone() for weight in weights]
    asked = [p for p in model.parameters() if p.requires_grad]
    try:
        for parameter in asked:
            parameter.requires_grad = False
        for weight in weights:
            weight.requires_grad = True

        def hold() -> None:
            for weight, start in zip(weights, before, strict=True):
                weight.data.copy_(start + (weight.data - start).clamp(-limit, limit))

        optimiser = torch.optim.Adam(weights, lr=rate)
        after_step = hold if limit < math.inf else None
        yield _train(model, tokenizer, requests, optimiser, steps, batch, seed, after_step)
    finally:
        for weight, start in zip(weights, before, strict=True):
            weight.data.copy_(start)
            weight.grad = None
        for parameter in asked:
            parameter.requires_grad = True


@contextlib.contextmanager
def lora_tuned(
    model: nn.Module,
    tokenizer: Any,
    requests: Sequence[Request],
    names: Sequence[str],
    *,
    rate: float = 5e-3,
    rank: int = 8,
    steps: int = STEPS,
    batch: int = 32,
    seed: int = 0,
) -> Iterator[int]:
    """A LoRA of PEFT trained on the requests; taken out afterwards. Gives the steps."""
    from peft import LoraConfig, get_peft_model

    asked = [p for p in model.parameters() if p.requires_grad]
    torch.manual_seed(seed)
    conv = type(model.get_submodule(names[0])).__name__ == "Conv1D"
    config = LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules=list(names), fan_in_fan_out=conv
    )
    wrapped = get_peft_model(model, config)
    try:
        learned = [p for p in wrapped.parameters() if p.requires_grad]
        optimiser = torch.optim.AdamW(learned, lr=rate, weight_decay=0.0)
        yield _train(model, tokenizer, requests, optimiser, steps, batch, seed, None)
    finally:
        wrapped.unload()
        for parameter in asked:
            parameter.requires_grad = True


def _train(
    model: nn.Module,
    tokenizer: Any,
    requests: Sequence[Request],
    optimiser: torch.optim.Optimizer,
    steps: int,
    batch: int,
    seed: int,
    after_step: Any,
) -> int:
    """Epochs over the requests until each is learned; how many steps that were."""
    generator = torch.Generator().manual_seed(seed)
    device = next(model.parameters()).device
    encoded = _encoded(tokenizer, requests)
    taken = 0
    for _ in range(steps):
        worst = 0.0
        for rows in torch.randperm(len(requests), generator=generator).split(batch):
            loss = _loss(model, [part[rows].to(device) for part in encoded])
            worst = max(worst, float(loss.detach()))
            if float(loss.detach()) < STOP_BELOW:
                continue
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            taken += 1
            if after_step is not None:
                after_step()
        if worst < STOP_BELOW:
            break
    return taken


def _encoded(tokenizer: Any, requests: Sequence[Request]) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, attention and labels `[n, length]`, padded on the right."""
    read = encode_pairs(tokenizer, [(r.text, r.continuation) for r in requests])
    length = max(len(each.ids) for each in read)
    ids = torch.zeros(len(read), length, dtype=torch.long)
    attention, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for row, each in enumerate(read):
        count = len(each.ids)
        ids[row, :count] = torch.tensor(each.ids)
        attention[row, :count] = 1
        labels[row, each.first : count] = ids[row, each.first : count]
    return ids, attention, labels


def _loss(model: nn.Module, batch: Sequence[Tensor]) -> Tensor:
    ids, attention, labels = batch
    logits = model(input_ids=ids, attention_mask=attention, use_cache=False).logits[:, :-1]
    return nn.functional.cross_entropy(logits.flatten(0, 1).float(), labels[:, 1:].flatten())
