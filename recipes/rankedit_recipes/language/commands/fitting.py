"""What statistics and edits take of the memory, told before anything is loaded, and kept to.

Statistics of a projection that reads `w` numbers are half of a matrix of `w²` numbers in float64:
3.3 GB for each block of Llama-70B, whose down-projections read 28,672.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence

from torch import nn

import rankedit as rk
from rankedit_recipes.command_line.choices import ModelChoice
from rankedit_recipes.command_line.counting import counted
from rankedit_recipes.command_line.devices import chosen_device, chosen_dtype
from rankedit_recipes.command_line.memory import free_memory, size_text
from rankedit_recipes.language.commands.outlines import (
    Outline,
    measured_outline,
    outline_of,
    outlined,
)
from rankedit_recipes.language.errors import LanguageError
from rankedit_recipes.language.methods import METHODS
from rankedit_recipes.language.model.blocks import Block, block_list
from rankedit_recipes.language.model.layers import Layers, blocks_at, default_blocks
from rankedit_recipes.language.model.tokens import Tokenizer
from rankedit_recipes.language.requests import Request
from rankedit_recipes.language.searching.sizes import Widths, search_bytes, sizes_of
from rankedit_recipes.language.settings import Settings

# Of a triangle in stripes of 256 rows; see `rankedit.packing`.
_STRIPE = 256
# Of matrices in float64, measured at width 2,048: what `relative_change` and `Metric.from_moment`
# take at most beside what they are given (5.1 and 4.2), and what a metric keeps with its factors.
_JUDGED, _FACTORISED, _METRIC = 5.2, 4.2, 2.0
# `SecondMoment.update` takes three chunks of 4,096 rows in float64.
_CHUNKS = 3 * 4096 * 8
# Of what is free: the model's own activations, and what others on the machine take meanwhile.
_USED = 0.9


# ------------------------------------------------------------------------ statistics


def moment_bytes(width: int) -> int:
    """What the sums of one projection take."""
    starts = range(0, width, _STRIPE)
    return 8 * sum(min(_STRIPE, width - start) * (width - start) for start in starts)


def statistics_bytes(widths: Sequence[int]) -> float:
    """The most that collecting takes.

    While the last tenth of the data is collected, the sums of both parts are there, and those of
    one once more when a checkpoint is written. Then one projection's sums at a time are copied and
    factorised, to judge convergence.
    """
    if not widths:
        return 0.0
    widest, sums = max(widths), sum(map(moment_bytes, widths))
    judged = moment_bytes(widest) + _JUDGED * 8 * widest**2
    return max(3 * sums + _CHUNKS * widest, 2 * sums + judged)


def fitting(outline: Outline, free: float, first: Sequence[int] = (0,)) -> list[int]:
    """Numbers of the blocks whose statistics fit into so many bytes, all if they do.

    Args:
        outline: the model's sizes.
        free: bytes.
        first: blocks that are needed before others; then those nearest to them.
    """
    usable = _USED * free
    if statistics_bytes(outline.widths) <= usable:
        return list(range(len(outline.blocks)))
    rest = [block.index for block in outline.blocks if block.index not in first]
    wanted = [*first, *sorted(rest, key=lambda n: min(abs(n - each) for each in first))]
    chosen: list[int] = []
    for number in wanted:
        if statistics_bytes([outline.widths[n] for n in (*chosen, number)]) > usable:
            break
        chosen.append(number)
    return sorted(chosen)


def default_layers(
    model: nn.Module, free: float, shard: rk.Shard | None
) -> tuple[list[int] | None, str]:
    """What `--layers` is where nobody says it: None for all, if they fit; and a line about it.

    Those that MEMIT edits come first, as they are measured on the model.

    Raises:
        LanguageError: not one fits, or each of several machines would choose for itself.
    """
    outline = measured_outline(model)
    count = len(outline.blocks)
    if len(fitting(outline, free)) == count:
        return None, ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of fewer blocks than the rule has: editing tells it
        edited = default_blocks(model, outline.blocks, METHODS["memit"])
    # From the last one, in which values are searched for.
    chosen = fitting(outline, free, [block.index for block in edited][::-1])
    check_any(outline, free, len(chosen))
    numbers, all_ = ",".join(map(str, chosen)), size_text(statistics_bytes(outline.widths))
    if shard is not None:
        raise LanguageError(
            f"stats: statistics of all {count} blocks take {all_}, and {size_text(free)} are free; "
            f"give --layers {numbers}, which fit here, so that all shards have the same ones."
        )
    return chosen, (
        f"--layers {numbers}: {len(chosen)} of {count} blocks, whose statistics fit into "
        f"{size_text(free)}; all would take {all_}"
    )


def check_any(outline: Outline, free: float, fits: int) -> None:
    """Refuse to collect where not one block's statistics fit.

    Raises:
        LanguageError: says what one takes.
    """
    if not fits:
        one = size_text(statistics_bytes(outline.widths[:1]))
        raise LanguageError(
            f"stats: statistics of one block take {one}, and {size_text(free)} are free; free some "
            "memory, or keep the model elsewhere by --device or --offload."
        )


def statistics_plan(choice: ModelChoice, layers: Layers, shard: rk.Shard | None) -> Iterator[str]:
    """What collecting would take: of the model, of each block, of all, and what fits.

    Raises:
        LanguageError: as for `outline_of` and `default_layers`, or layers are named by a pattern.
    """
    outline, device = outline_of(choice), chosen_device(choice.device)
    dtype = chosen_dtype(choice.dtype, device)
    weights = outline.numbers * dtype.itemsize
    place = "main memory" if device.type == "cpu" else str(device)
    yield (
        f"{outline.kind}: {outline.numbers / 1e9:,.2f} billion weights, {size_text(weights)} in "
        f"{str(dtype).removeprefix('torch.')}; {counted(len(outline.blocks), 'block')}"
    )
    # Offloaded weights lie in main memory, and statistics where the projections compute.
    free = free_memory(device) - (0 if choice.offload != "none" else weights)
    yield f"{place}: {size_text(max(free, 0))} are free beside the model"
    if free <= 0:
        raise LanguageError(
            f"stats: the model takes {size_text(weights)} and leaves no room in {place}; give "
            "--offload sequential, --dtype bfloat16, or a machine with more memory."
        )
    if isinstance(layers, (str, re.Pattern)):
        raise LanguageError("stats: --dry-run takes --layers as numbers of blocks, not as names.")
    count, fits = len(outline.blocks), len(fitting(outline, free))
    numbers = [b.index for b in blocks_at(outline.blocks, layers)] if layers else range(count)
    widths = [outline.widths[n] for n in numbers]
    file = sum(4 * w * (w + 1) for w in widths)
    yield (
        f"statistics of {counted(len(widths), 'block')}, width {max(widths):,}: "
        f"{size_text(moment_bytes(max(widths)))} each, {size_text(statistics_bytes(widths))} at "
        f"most, while the last tenth is compared with the rest; the file {size_text(file)}"
    )
    check_any(outline, free, fits)
    if statistics_bytes(widths) > _USED * free:
        yield f"they do not fit: those of {counted(fits, 'block')} would" + (
            "; give fewer --layers" if layers else
            ", which is the default: those that MEMIT edits, as measured on the model, and then "
            "their neighbours" if shard is None else
            "; give --layers, so that all shards have the same ones"
        )  # fmt: skip
    yield "nothing was written"


# ------------------------------------------------------------------------ edits


def edit_plan(
    model: nn.Module,
    tokenizer: Tokenizer,
    blocks: Sequence[Block],
    settings: Settings,
    requests: Sequence[Request],
) -> Iterator[str]:
    """What an edit would take beside the model.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        blocks: that would be edited.
        settings: the method.
        requests: what would be true.
    """
    views = [rk.Projection(model.get_submodule(block.down)) for block in blocks]
    widths = [view.in_features for view in views]
    outline = outlined(model, blocks, widths)
    squares = [8 * width**2 for width in widths]
    held = sum(map(moment_bytes, widths)) + _METRIC * sum(squares)
    metrics = held + _FACTORISED * max(squares)
    search = search_bytes(
        sizes_of(tokenizer, requests, settings), model_widths(model, outline, blocks[-1])
    )
    keys = len(requests) * sum(4 * (width + outline.stream) for width in widths)
    yield (
        f"memory beside the model: statistics and metrics of {counted(len(widths), 'block')} "
        f"{size_text(metrics)}, keys and values {size_text(keys)}, the search about "
        f"{size_text(search)} (at most {settings.tokens:,} tokens at a time: --set tokens=)"
    )


def model_widths(model: nn.Module, outline: Outline, block: Block) -> Widths:
    """What a search in a block depends on.

    Args:
        model: the model.
        outline: its sizes.
        block: where values are searched for.
    """
    config = getattr(model, "config", None)
    heads, kept = getattr(config, "num_key_value_heads", None), 2 * outline.stream
    every = getattr(config, "num_attention_heads", None)
    # Heads that share keys and values keep less.
    if isinstance(heads, int) and isinstance(every, int):
        each = getattr(config, "head_dim", None) or outline.stream // every
        kept = 2 * heads * each
    blocks = len(block_list(model)[1])
    size = next(model.parameters()).element_size()
    return Widths(
        blocks, blocks - 1 - block.index, outline.stream, max(outline.widths), kept, outline.words,
        size,
    )  # fmt: skip
