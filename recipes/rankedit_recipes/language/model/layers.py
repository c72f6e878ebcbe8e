"""Which projections to edit: by rule, by number, or by name."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterable, Sequence
from typing import TypeAlias

from torch import nn

import rankedit as rk
from rankedit_recipes.language.errors import LanguageError
from rankedit_recipes.language.model.blocks import Block, block_list, find_blocks
from rankedit_recipes.language.model.surveying import survey
from rankedit_recipes.language.settings import Settings

Layers: TypeAlias = int | str | re.Pattern[str] | Sequence[int] | Sequence[str] | None

TRACED = "traced"
"""Instead of layers: what a causal trace of the requests finds."""

# Facts are brought to the subject's last token in the lower blocks of every model that was traced.
_LOWER = 1 / 2
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


def choose_blocks(
    model: nn.Module, blocks: Sequence[Block], layers: Layers, settings: Settings
) -> list[Block]:
    """The blocks to edit, from the lowest.

    Args:
        model: the model that they are of.
        blocks: what `all_blocks` found for the same layers.
        layers: numbers of blocks (from 0; negative from the end), or what names projections: all of
            those are edited. None for what `default_blocks` says. `"traced"` is for calls that have
            requests; see `rankedit_recipes.language.locate`.
        settings: the method.

    Warns:
        RankeditWarning: fewer blocks than the method's rule has.

    Raises:
        LanguageError: a number that no block has, or several blocks of which one normalises what
            the projection gives, so that a shift of the residual stream cannot be shared.
    """
    if layers is None:
        chosen = default_blocks(model, blocks, settings)
    else:
        chosen = blocks_at(blocks, layers)
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


def default_blocks(model: nn.Module, blocks: Sequence[Block], settings: Settings) -> list[Block]:
    """The blocks that a method edits where none are asked for.

    Methods that use several blocks use one for each six, next to each other. With a `depth` the
    last one lies there. Without, they are those of the lower half whose keys tell subjects apart
    best (`survey`), and none that has an attention sink or reads last tokens alone, if that can be.

    Warns:
        RankeditWarning: fewer blocks than that, because one normalises what its projection gives.
    """
    wanted = _wanted(blocks, settings)
    if settings.depth is not None:
        return _by_depth(blocks, settings, settings.depth, wanted)
    lower = blocks[: max(wanted, math.ceil(_LOWER * len(blocks)))]
    runs = _runs(lower, wanted)
    if len(runs[0]) < wanted:
        barred = next(block for block in lower if not block.direct)
        why = f"{_normalises(barred)}; pass layers= the numbers of blocks"
        _warn_of_fewer(settings, len(runs[0]), wanted, why)
    found = dict(zip([block.index for block in lower], survey(model, lower), strict=True))

    def unlike(run: Iterable[Block]) -> tuple[int, float]:
        seen = [found[block.index] for block in run]
        return sum(one.unfit for one in seen), -sum(one.apart for one in seen)

    return list(min(runs, key=unlike))  # the lowest of those that are equally good


def _runs(blocks: Sequence[Block], wanted: int) -> list[Sequence[Block]]:
    """Neighbouring blocks that can share an edit: so many, or as many as there are."""
    if wanted == 1:
        return [[block] for block in blocks]
    for count in range(wanted, 1, -1):
        runs = [blocks[i : i + count] for i in range(len(blocks) - count + 1)]
        if sharing := [run for run in runs if all(block.direct for block in run)]:
            return sharing
    return [[block] for block in blocks]


def _by_depth(
    blocks: Sequence[Block], settings: Settings, depth: float, wanted: int
) -> list[Block]:
    last = min(len(blocks) - 1, round(depth * len(blocks)))
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
    given = list(layers) if isinstance(layers, Iterable) else [layers]
    count = len(blocks)
    # By exact type: `layers=True` is a mistake, and to `isinstance` block 1.
    numbers = [n for n in given if type(n) is int and -count <= n < count]
    if not numbers or len(numbers) < len(given):
        raise LanguageError(
            f"language: layers must be numbers of blocks from {-count} to {count - 1}, or name "
            f"projections, got {layers!r:.80}."
        )
    # From the lowest, whatever the order: what a lower block takes over is what a higher one sees.
    return [blocks[number] for number in sorted({n % count for n in numbers})]
