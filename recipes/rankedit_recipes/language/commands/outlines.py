"""A model by its sizes, of which memory is planned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import rankedit as rk
from rankedit_recipes.command_line.boundary import one_line
from rankedit_recipes.command_line.choices import ModelChoice
from rankedit_recipes.command_line.quiet import quiet_imports
from rankedit_recipes.language.commands.loading import source_of_weights
from rankedit_recipes.language.errors import LanguageError
from rankedit_recipes.language.model.blocks import Block
from rankedit_recipes.language.model.layers import all_blocks


@dataclass(frozen=True)
class Outline:
    """A model by its sizes.

    Attributes:
        kind: its class.
        blocks: with the widths of what their down-projections read.
        widths: these, by number of block.
        numbers: how many weights it has.
        stream: width of the residual stream.
        words: how many the vocabulary has.
    """

    kind: str
    blocks: tuple[Block, ...]
    widths: tuple[int, ...]
    numbers: int
    stream: int
    words: int


def outline_of(choice: ModelChoice) -> Outline:
    """A model's sizes, by its configuration alone: no weight is read.

    Raises:
        LanguageError: it cannot be opened, or has no blocks with a projection back to the stream.
    """
    with quiet_imports():
        from transformers import AutoConfig, AutoModelForCausalLM
    if choice.is_sandbox:
        from rankedit_recipes.sandbox import facts

        return measured_outline(facts.load_model())
    name, more = source_of_weights(choice)
    try:
        config = AutoConfig.from_pretrained(name, **more)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except Exception as error:  # of transformers: nearly anything, for damaged and foreign folders
        raise LanguageError(
            f"language: the model '{choice.name}' cannot be outlined: {one_line(error)}. Give "
            "--model a folder that transformers wrote, or a name on the hub."
        ) from error
    return sizes_of(model)


def measured_outline(model: nn.Module) -> Outline:
    """The sizes of a model that is loaded, whose blocks are found by running it."""
    blocks = all_blocks(model)
    views = [rk.Projection(model.get_submodule(block.down)) for block in blocks]
    return outlined(model, blocks, [view.in_features for view in views])


def outlined(model: nn.Module, blocks: Sequence[Block], widths: Sequence[int]) -> Outline:
    """The sizes of a model whose blocks and widths are known."""
    stream, words = _stream_of(model)
    numbers = sum(parameter.numel() for parameter in model.parameters())
    return Outline(type(model).__name__, tuple(blocks), tuple(widths), numbers, stream, words)


def _stream_of(model: nn.Module) -> tuple[int, int]:
    """Widths of the residual stream and of the vocabulary, 0 where the configuration is silent."""
    config: Any = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    return int(getattr(text, "hidden_size", 0)), int(getattr(text, "vocab_size", 0))


def sizes_of(model: nn.Module) -> Outline:
    """A model's sizes by the shapes of its weights, which may be on the meta device.

    Raises:
        LanguageError: no list of blocks, or a block without a projection back to the stream.
    """
    stream, _ = _stream_of(model)
    lists = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.ModuleList)]
    stem, members = max(lists, key=lambda found: len(found[1]), default=("", nn.ModuleList()))
    blocks, widths = [], []
    for index, member in enumerate(members):
        # By widths alone: which of a block's projections writes for its MLP is found by running it.
        writing = {n: w for n, m in member.named_modules() if (w := _reads(m, stream))}
        if not writing:
            raise LanguageError(
                f"language: '{stem}.{index}' of {type(model).__name__} has no projection of its "
                "own that writes to the residual stream (experts in one tensor?), so that its "
                "statistics cannot be planned; give --layers names, without --dry-run."
            )
        name = max(reversed(writing), key=writing.__getitem__)
        blocks.append(Block(index, f"{stem}.{index}", f"{stem}.{index}.{name}", direct=True))
        widths.append(writing[name])
    return outlined(model, blocks, widths)


def _reads(module: nn.Module, stream: int) -> int:
    """The width that a projection reads if it writes one of `stream`, else 0."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, torch.Tensor) or weight.ndim != 2 or any(module.children()):
        return 0
    # transformers' Conv1D keeps its weight as [in, out].
    read, written = weight.shape if type(module).__name__ == "Conv1D" else weight.shape[::-1]
    return int(read) if written == stream and not isinstance(module, nn.Embedding) else 0
