"""Which blocks to edit, found by a causal trace instead of by the depth that papers give."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from rankedit_recipes.language.evaluating.tracing import LAST_OF_SUBJECT, parts_of, trace
from rankedit_recipes.language.model.layers import TRACED, Layers, all_blocks, shared_count
from rankedit_recipes.language.model.tokens import Tokenizer
from rankedit_recipes.language.requests import Request
from rankedit_recipes.language.settings import Settings

# The mean over so many facts hardly moves any more, and each takes hundreds of rows.
FACTS = 50


def locate(
    model: nn.Module,
    tokenizer: Tokenizer,
    facts: Sequence[Request],
    count: int = 1,
    *,
    own: bool = False,
    noise: float = 3.0,
    disturbances: int = 5,
    seed: int = 0,
    progress: bool = True,
) -> list[int]:
    """Neighbouring blocks whose MLPs bring back most of a fact at its subject's last token.

    The subject's embeddings are disturbed, so that the model forgets the answer; then what one MLP
    gave at the subject's last token is put back. See `trace`.

    Args:
        model: a causal model of transformers, unedited.
        tokenizer: its fast tokenizer.
        facts: what the model knows: the target is its present answer. Some tens suffice.
        count: how many blocks; the neighbouring ones with the largest sum are taken.
        own: take what the model itself says next for the answers, instead of the targets.
        noise: see `trace`.
        disturbances: see `trace`.
        seed: see `trace`.
        progress: show it.

    Returns:
        Numbers of blocks from the lowest, as `edit` takes them for `layers`.

    Raises:
        LanguageError: no facts, or as many blocks as the model does not have.
    """
    downs = [block.down for block in all_blocks(model)]
    # Blocks and attention, too, would take three times as long, and other tokens ten times.
    mlps = {"mlp": parts_of(model, downs)["mlp"]}
    found = trace(
        model, tokenizer, facts, mlps,
        noise=noise, disturbances=disturbances, seed=seed, own=own,
        places=(LAST_OF_SUBJECT,), progress=progress,
    )  # fmt: skip
    return found.best(count)


def resolved(
    model: nn.Module,
    tokenizer: Tokenizer,
    requests: Sequence[Request],
    layers: Layers,
    settings: Settings,
    *,
    progress: bool = True,
) -> Layers:
    """Layers as they are, or for `"traced"` those that a trace of the requests finds.

    The requests' targets are not what the model knows: its own answers to their prompts are traced,
    those of the first `FACTS` requests. As many blocks are found as the method edits.
    """
    if layers != TRACED:
        return layers
    count = shared_count(all_blocks(model), settings)
    asked = settings.asked(requests[:FACTS])
    return locate(model, tokenizer, asked, count, own=True, progress=progress)
