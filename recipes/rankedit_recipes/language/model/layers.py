"""Which projections to edit: by rule, by number, or by name."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from typing import TypeAlias

from torch import nn

import rankedit as rk
from rankedit_recipes.language.errors import LanguageError
from rankedit_recipes.language.model.blocks import Block, block_list, find_blocks
from rankedit_recipes.language.settings import Settings

Layers: TypeAlias = int | str | re.Pattern[str] | Sequence[int] | Sequence[str] | None

TRACED = "traced"
"""Instead of layers: what a causal trace of the requests finds."""

# One block of so many shares an edit, for methods that use several: 5 of 32, 1 of 6.
_SHARING = 6


def all_blocks(model: nn.Module, layers: Layers = None) -> list[Block]:
    """The blocks of a model with their down-projections, or with the projections that are named.

    Args:
        model: a causal model of transformers.
        layers: what `choose_blocks` takes. Names and patterns put the projections that they match
            in the place of what is found by structure.

    Raises:
        LanguageError: a block has no single down-projection, or several projections of one block
            are named, or one that is in none; or `"traced"`, for which there must be requests.
    """
    if layers == TRACED:
        raise LanguageError(
            f"language: layers={TRACED!r} needs requests to trace, which this call does not have; "
            "pass layers=locate(model, tokenizer, facts)."
        )
    if not _named(layers):
        return find_blocks(model)
    stem, modules = block_list(model)
    chosen = rk.select(model, layers)  # type: ignore[arg-type]
    parameters = {name for name, _ in model.named_parameters()}
    expert = next((name for name in chosen if name.rpartition(".")[0] in parameters), None)
    if expert is not None:
        raise LanguageError(
            f"language: {expert!r} is one expert of a mixture, which reads the tokens that are "
            "routed to it and no others, so that a fact has no key there; pass layers= the names "
            "of projections that read every token (a shared expert, the attention's output)."
        )
    names = [f"{stem}.{index}" for index in range(len(modules))]
    # With the dot behind it: block 1 does not own what block 10 holds.
    owners = {name: next((n for n in names if name.startswith(f"{n}.")), "") for name in chosen}
    doubled = [name for name, owner in owners.items() if list(owners.values()).count(owner) > 1]
    lost = [name for name, owner in owners.items() if not owner]
    if lost or doubled:
        raise LanguageError(
            f"language: layers must name one projection in each block of '{stem}', got "
            f"{(lost or doubled)[:4]}, {'in no block' if lost else 'several in one block'}."
        )
    return [Block(names.index(owner), owner, name, direct=True) for name, owner in owners.items()]


def choose_blocks(blocks: Sequence[Block], layers: Layers, settings: Settings) -> list[Block]:
    """The blocks to edit, from the lowest.

    Args:
        blocks: what `all_blocks` found for the same layers.
        layers: numbers of blocks (from 0; negative from the end), or what names projections: all of
            those are edited. None for the method's rule: the last one is number `depth` times the
            number of blocks, and methods that use several blocks use one for each six. `"traced"`
            is for calls that have requests; see `rankedit_recipes.language.locate`.
        settings: the method.

    Warns:
        RankeditWarning: fewer blocks than the method's rule has.

    Raises:
        LanguageError: a number that no block has, or several blocks of which one normalises what
            the projection gives, so that a shift of the residual stream cannot be shared.
    """
    chosen = _by_rule(blocks, settings) if layers is None else blocks_at(blocks, layers)
    # A shift is shared by adding parts of it to the stream; a norm between would change its length.
    indirect = [block.name for block in chosen if not block.direct]
    if len(chosen) > 1 and indirect:
        raise LanguageError(
            f"language: '{indirect[0]}' normalises what its projection gives, so that an edit "
            f"cannot be shared by {len(chosen)} blocks; pass layers= one number."
        )
    if len(chosen) > 1 and not settings.consistent:
        raise LanguageError("language: consistent=False edits one block; pass layers= one number.")
    return chosen


def _by_rule(blocks: Sequence[Block], settings: Settings) -> list[Block]:
    last = min(len(blocks) - 1, round(settings.depth * len(blocks)))
    wanted = _wanted(blocks, settings)
    window = range(max(0, last - wanted + 1), last + 1)
    barred = [number for number in window if not blocks[number].direct]
    # What the lower ones share must come through to the last one as they give it.
    chosen = [last] if last in barred else [n for n in window if n > max(barred, default=-1)]
    if len(chosen) < wanted:
        why = f"there are no more up to '{blocks[last].name}', where the depth of the method is"
        if barred:
            why = _normalises(blocks[barred[-1]])
        _warn_of_fewer(settings, len(chosen), wanted, f"{why}; pass layers={chosen} to accept it")
    return [blocks[number] for number in chosen]


def _normalises(block: Block) -> str:
    return f"'{block.name}' normalises what its projection gives, so that none can be shared by it"


def _warn_of_fewer(settings: Settings, count: int, wanted: int, why: str) -> None:
    warnings.warn(
        f"language: {settings.method!r} edits {count} of {wanted} neighbouring blocks, which "
        f"changes each more, and other facts with it: {why}, or other numbers of blocks.",
        rk.RankeditWarning,
        stacklevel=5,
    )


def blocks_at(blocks: Sequence[Block], layers: Layers) -> list[Block]:
    """The blocks that numbers say, or all where `all_blocks` found those that names say.

    Raises:
        LanguageError: a number that no block has.
    """
    return list(blocks) if _named(layers) else _numbered(blocks, layers)


def shared_count(blocks: Sequence[Block], settings: Settings) -> int:
    """How many neighbouring blocks share an edit by a method's rule, wherever they lie.

    Warns:
        RankeditWarning: one, because a block that normalises what its projection gives cannot
            share.
    """
    wanted = _wanted(blocks, settings)
    indirect = [block for block in blocks if not block.direct]
    if not indirect or wanted == 1:
        return wanted
    why = f"{_normalises(indirect[0])}; pass layers= one number to accept it"
    _warn_of_fewer(settings, 1, wanted, why)
    return 1


def _wanted(blocks: Sequence[Block], settings: Settings) -> int:
    return min(settings.layers, max(1, round(len(blocks) / _SHARING)))


def _named(layers: Layers) -> bool:
    if isinstance(layers, (str, re.Pattern)):
        return True
    return isinstance(layers, Sequence) and any(isinstance(layer, str) for layer in layers)


def _numbered(blocks: Sequence[Block], layers: Layers) -> list[Block]:
    given = [layers] if isinstance(layers, int) else list(layers)  # type: ignore[arg-type]
    count = len(blocks)
    numbers = [n for n in given if isinstance(n, int) and -count <= n < count]
    if not numbers or len(numbers) < len(given):
        raise LanguageError(
            f"language: layers must be numbers of blocks from {-count} to {count - 1}, or name "
            f"projections, got {layers!r:.80}."
        )
    # From the lowest, whatever the order: what a lower block takes over is what a higher one sees.
    return [blocks[number] for number in sorted({n % count for n in numbers})]
