"""Prompts as a denoiser takes them, and what `encode_prompt` of a pipeline returned."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rankedit_recipes.diffusion.calls import Path, named, rows_of
from rankedit_recipes.diffusion.errors import PipelineError


@dataclass(frozen=True)
class Encoded:
    """Prompts as a denoiser takes them.

    Attributes:
        embeds: `[batch, tokens, width]`.
        mask: `[batch, tokens]`, one for what is read; None where everything is.
        pooled: `[batch, width]` of pipelines that have it, else None.
        tokens: what each text encoder was given, at the places of `embeds`, `[batch, tokens]` on
            the CPU. Pipelines rewrite prompts before they tokenise them (words of several vectors,
            cleaned captions, instructions), so that where a word stands is known here and not from
            the prompt. Empty where it is not known.
        further: what else the denoiser is given of the prompts, by where it stands in its call, and
            whether that has a row for each prompt; see `calling`.
    """

    embeds: Tensor
    mask: Tensor | None = None
    pooled: Tensor | None = None
    tokens: tuple[Tensor, ...] = ()
    further: Mapping[Path, tuple[Any, bool]] = field(default_factory=dict)

    def rows(self, index: Tensor | Sequence[int]) -> Encoded:
        """Some of the prompts, in the order asked for.

        Raises:
            PipelineError: the denoiser is given something of all prompts together.
        """
        whole = [path for path, (_, by_row) in self.further.items() if not by_row]
        if whole:
            raise PipelineError(
                f"diffusion: the denoiser's {named(whole[0])!r} is of all prompts of a batch "
                "together, so that single ones cannot be taken from it."
            )
        at = torch.as_tensor(index, device=self.embeds.device)
        mask = None if self.mask is None else self.mask[at]
        pooled = None if self.pooled is None else self.pooled[at]
        tokens = tuple(table[at.cpu()] for table in self.tokens)
        further = {p: (rows_of(v, at), True) for p, (v, _) in self.further.items()}
        return Encoded(self.embeds[at], mask, pooled, tokens, further)


class Heard(list[Tensor]):
    """Tokens that text encoders were given, `[batch, length]` each, in the encoders' order.

    Attributes:
        hidden: for each encoder what it gave with a vector for each token.
    """

    def __init__(self) -> None:
        super().__init__()
        self.hidden: list[list[Tensor]] = []

    def at(self, embeds: Tensor) -> tuple[Tensor, ...]:
        """The tokens at the places of `embeds`; none if it is not known which those are."""
        found = [_at(t, h, embeds) for t, h in zip(self, self.hidden, strict=True)]
        known = [table for table in found if table is not None]
        return tuple(known) if len(known) == len(found) else ()


# Encodings are cast to another precision on their way, at most to bfloat16.
_SAME = 1e-2
# Where nothing of the encoder stands: no token has this number.
_NONE = -1


def _at(table: Tensor, hidden: Sequence[Tensor], embeds: Tensor) -> Tensor | None:
    # Several pictures of one prompt are copies of one encoding, one after another.
    times, rest = divmod(len(embeds), len(table))
    if rest or not times:
        return None
    embeds = embeds[::times]
    if table.shape == embeds.shape[:2]:
        return table
    fitting = [h for h in hidden if h.shape[:2] == table.shape and h.shape[2] == embeds.shape[2]]
    for states in fitting:
        given, read = states.detach().float(), embeds.detach().float().to(states.device)
        # Pipelines leave instructions out that stand before a prompt, and what fills it up: what is
        # left is found again by what it is.
        distance, place = torch.cdist(read, given).min(2)
        known = (distance <= _SAME * read.norm(dim=2)).cpu()
        if known.any(1).all():
            return torch.where(known, table.gather(1, place.cpu()), _NONE)
    return None


def vectors_in(output: object) -> Iterator[Tensor]:
    """What a text encoder gives with a vector for each token."""
    if isinstance(output, Tensor):
        if output.ndim == 3:
            yield output
    elif isinstance(output, (Mapping, list, tuple)):
        for inner in output.values() if isinstance(output, Mapping) else output:
            yield from vectors_in(inner)


def encoded_of(result: Sequence[Any], tokens: Sequence[Tensor] = ()) -> Encoded:
    """What `encode_prompt` returned, told apart by shape: pipelines differ in what comes second.

    Args:
        result: of `encode_prompt`.
        tokens: what the encoders were given meanwhile; see `Texts.heard`.
    """
    embeds = result[0]
    given = tokens.at(embeds) if isinstance(tokens, Heard) else tuple(tokens)
    # Stable Diffusion gives the negative embeddings second, PixArt and Sana the mask of the tokens:
    # only a mask has one number for each token (diffusers 0.42).
    second = result[1] if len(result) > 1 else None
    if second is not None and second.shape == embeds.shape[:2]:
        return Encoded(embeds, mask=second, tokens=given)
    # XL gives the pooled text third; a third entry of three dimensions is a negative embedding.
    third = result[2] if len(result) > 2 else None
    pooled = third if third is not None and third.ndim == 2 else None
    return Encoded(embeds, pooled=pooled, tokens=given)


def negative_of(result: Sequence[Any]) -> Encoded | None:
    """The negative prompts in what `encode_prompt` returned, if there are any."""
    # By shape again: PixArt and Sana give the mask between the two (diffusers 0.42).
    places = [i for i, part in enumerate(result) if i and _like(part, result[0])]
    if not places:
        return None
    embeds = result[places[0]]
    after = result[places[0] + 1] if len(result) > places[0] + 1 else None
    masked = isinstance(after, Tensor) and after.shape == embeds.shape[:2]
    return Encoded(embeds, mask=after if masked else None)


def _like(part: object, embeds: Tensor) -> bool:
    return isinstance(part, Tensor) and part.ndim == 3 and part.shape[-1] == embeds.shape[-1]


def at_positions(embeds: Tensor, places: Sequence[Sequence[int]]) -> Tensor:
    """Rows `[n, width]` of `embeds [batch, tokens, width]` at the places given for each prompt."""
    # One by one, for prompts differ in how often they have the word.
    rows = [embeds[index, place] for index, found in enumerate(places) for place in found]
    return torch.stack(rows)
