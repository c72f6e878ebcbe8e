"""In which rows of a prompt's embeddings a word stands, whatever encoders they are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from rankedit_recipes.diffusion.encoded import Heard
from rankedit_recipes.diffusion.errors import PipelineError
from rankedit_recipes.diffusion.text import Texts, Tokenizer, word_tokens

# Encodings are cast to another precision on their way, at most to bfloat16.
_SAME = 1e-2
# So many numbers of a first vector tell where an encoding may lie in wider ones.
_PROBE = 4


def standing(texts: Texts, heard: Heard, embeds: Tensor, word: str) -> list[list[int]]:
    """Rows in which a word stands, for each prompt: those of all encoders, every occurrence.

    Pipelines put encodings one behind the other (SD3: CLIP's, then T5's), and those of two encoders
    side by side; encoders whose vectors are not among the embeddings (CLIP's of Flux) have no rows.

    Args:
        texts: of the pipeline.
        heard: what the encoders were given and gave.
        embeds: `[batch, rows, width]`.
        word: one that every encoder's tokenizer has as one token.

    Raises:
        PipelineError: a tokenizer splits the word, or no encoder's vectors are found.
    """
    found: list[set[int]] = [set() for _ in range(len(embeds))]
    for block in blocks(texts, heard, embeds):
        tokens = word_tokens(block.tokenizer, word)
        if len(tokens) != 1:
            raise PipelineError(
                f"diffusion: tokenizer{block.suffix} cuts {word!r} into {len(tokens)} tokens, "
                "where one is needed that stands for all of it; choose a word of one token."
            )
        # Several pictures of one prompt are copies of one encoding, one after another.
        times = len(embeds) // len(block.table)
        for prompt, place in (block.table == tokens[0]).nonzero().tolist():
            for row in range(prompt * times, (prompt + 1) * times):
                found[row].add(block.start + place)
    return [sorted(rows) for rows in found]


@dataclass(frozen=True, eq=False)
class Block:
    """One encoder's vectors among the embeddings.

    Attributes:
        suffix: of the encoder's name.
        tokenizer: of the encoder.
        table: what it was given, `[batch, tokens]`.
        start: row of its first vector; those of two encoders may begin in the same row.
    """

    suffix: str
    tokenizer: Tokenizer = field(repr=False)
    table: Tensor = field(repr=False)
    start: int


def blocks(texts: Texts, heard: Heard, embeds: Tensor) -> list[Block]:
    """The encoders whose vectors are among the embeddings; CLIP's of Flux are not.

    Raises:
        PipelineError: there is none.
    """
    every = [
        Block(suffix, tokenizer, table, start)
        for (suffix, _, tokenizer), table, hidden in zip(
            texts.encoders, heard, heard.hidden, strict=True
        )
        if (start := _start(hidden, embeds)) is not None
    ]
    if not every:
        raise PipelineError(
            f"diffusion: {type(texts.pipe).__name__} was not seen to make its embeddings of what "
            "its text encoders gave, so that it is not known where words stand; not supported."
        )
    return every


def _start(hidden: Sequence[Tensor], embeds: Tensor) -> int | None:
    """The row from which on an encoder's vectors stand in the embeddings; None if they do not."""
    for states in hidden:
        times, rest = divmod(len(embeds), len(states))
        if rest or not times or states.shape[1] > embeds.shape[1]:
            continue
        if states.shape[2] > embeds.shape[2]:
            continue
        given = states.detach().float()
        read = embeds.detach()[::times].float().to(given.device)
        windows = read[0].unfold(1, _PROBE, 1)
        apart = (windows - given[0, 0, :_PROBE]).norm(dim=2)
        near = apart <= _SAME * float(given[0, 0, :_PROBE].norm())
        for row, column in near.nonzero().tolist():
            part = read[:, row : row + given.shape[1], column : column + given.shape[2]]
            if part.shape == given.shape and (part - given).norm() <= _SAME * given.norm():
                return int(row)
    return None
