"""Prompts as a denoiser takes them, and what `encode_prompt` of a pipeline returned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Encoded:
    """Prompts as a denoiser takes them.

    Attributes:
        embeds: `[batch, tokens, width]`.
        mask: `[batch, tokens]`, one for what is read; None where everything is.
        pooled: `[batch, width]` of pipelines that have it, else None.
        tokens: what each text encoder was given, `[batch, length]` on the CPU. Pipelines rewrite
            prompts before they tokenise them (words of several vectors, cleaned captions), so that
            where a word stands is known here and not from the prompt.
    """

    embeds: Tensor
    mask: Tensor | None = None
    pooled: Tensor | None = None
    tokens: tuple[Tensor, ...] = ()

    def rows(self, index: Tensor | Sequence[int]) -> Encoded:
        """Some of the prompts, in the order asked for."""
        at = torch.as_tensor(index, device=self.embeds.device)
        mask = None if self.mask is None else self.mask[at]
        pooled = None if self.pooled is None else self.pooled[at]
        tokens = tuple(table[at.cpu()] for table in self.tokens)
        return Encoded(self.embeds[at], mask, pooled, tokens)


def encoded_of(result: Sequence[Any], tokens: Sequence[Tensor] = ()) -> Encoded:
    """What `encode_prompt` returned, told apart by shape: pipelines differ in what comes second.

    Args:
        result: of `encode_prompt`.
        tokens: what the encoders were given meanwhile; see `Texts.heard`.
    """
    embeds, given = result[0], tuple(tokens)
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
