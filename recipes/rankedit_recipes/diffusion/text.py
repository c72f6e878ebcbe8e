"""From prompts to what a denoiser is given, and where a word stands in it.

Everything goes through the pipeline's own `encode_prompt`, so that clip skip, two text encoders,
prompt cleaning and any sequence length are what they are at generation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from rankedit_recipes.diffusion.errors import PipelineError

Pipeline = Any  # any diffusers pipeline that turns a prompt into prompt embeddings
Tokenizer = Any
Tokens = Literal["all", "eos", "content"]


@dataclass(frozen=True)
class Encoded:
    """Prompts as a denoiser takes them.

    Attributes:
        embeds: `[batch, tokens, width]`.
        mask: `[batch, tokens]`, one for what is read; None where everything is.
        pooled: `[batch, width]` of pipelines that have it, else None.
    """

    embeds: Tensor
    mask: Tensor | None = None
    pooled: Tensor | None = None

    def rows(self, index: Tensor | Sequence[int]) -> Encoded:
        """Some of the prompts, in the order asked for."""
        at = torch.as_tensor(index, device=self.embeds.device)
        mask = None if self.mask is None else self.mask[at]
        pooled = None if self.pooled is None else self.pooled[at]
        return Encoded(self.embeds[at], mask, pooled)


class Encoder(NamedTuple):
    """One of a pipeline's text encoders.

    Attributes:
        suffix: of its name and its tokenizer's: `""`, `"_2"` or `"_3"`.
        model: the encoder.
        tokenizer: what cuts its prompts.
    """

    suffix: str
    model: Any
    tokenizer: Tokenizer


class Texts:
    """What a pipeline makes of prompts.

    Nothing is kept: words that are put in exchange the tokenizers, and offloading moves encoders.

    Args:
        pipe: the pipeline.
    """

    def __init__(self, pipe: Pipeline) -> None:
        self.pipe = pipe

    @property
    def encoders(self) -> list[Encoder]:
        """The text encoders with their tokenizers.

        Raises:
            PipelineError: the pipeline has none.
        """
        found = []
        for suffix in ("", "_2", "_3"):
            model = getattr(self.pipe, f"text_encoder{suffix}", None)
            tokenizer = getattr(self.pipe, f"tokenizer{suffix}", None)
            if model is not None and tokenizer is not None:
                found.append(Encoder(suffix, model, tokenizer))
        if not found:
            raise PipelineError(
                f"diffusion: {type(self.pipe).__name__} has no text encoder; load it with its "
                "text_encoder and tokenizer, and pass prompt embeddings only when generating."
            )
        return found

    @property
    def tokenizer(self) -> Tokenizer:
        """The first encoder's; where there are several they cut alike, which `positions` checks."""
        return self.encoders[0].tokenizer

    @property
    def device(self) -> torch.device:
        """Where the pipeline computes, offloading included."""
        # Under offloading `pipe.device` is where weights wait, not where they run.
        device = getattr(self.pipe, "_execution_device", None)
        return torch.device(device if device is not None else self.pipe.device)

    def encode(self, prompts: Sequence[str]) -> Encoded:
        """Prompts through the text encoders; gradients flow if they are enabled.

        Raises:
            PipelineError: no prompt is given.
        """
        if isinstance(prompts, str) or not prompts:
            raise PipelineError(
                f"encode: a list of at least one prompt is expected, got {prompts!r}."
            )
        needed = {}
        # Stable Diffusion 3 has no defaults for the prompts of its other encoders (diffusers 0.36).
        if len(self.encoders) == 3 or hasattr(self.pipe, "tokenizer_3"):
            needed = {"prompt_2": None, "prompt_3": None}
        result = self.pipe.encode_prompt(
            prompt=list(prompts),
            device=self.device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=False,
            **needed,
        )
        return encoded_of(result)

    def positions(self, prompts: Sequence[str], words: str, length: int) -> list[list[int]]:
        """Where a word stands in what cross-attention reads, for each prompt; every occurrence.

        Of a phrase of several tokens it is the last one: there a causal text encoder has seen the
        whole phrase, and it is the noun.

        Args:
            prompts: the prompts.
            words: a word, or a phrase.
            length: number of positions that are read (`Encoded.embeds.shape[1]`).

        Raises:
            PipelineError: the pipeline's tokenizers put the word at different places.
        """
        tables = []
        for _, _, tokenizer in self.encoders:
            wanted = word_tokens(tokenizer, words)
            ids, _ = token_table(tokenizer, prompts, length)
            tables.append([_ends(row, wanted) for row in ids])
        if any(table != tables[0] for table in tables):
            raise PipelineError(
                f"positions: the tokenizers of {type(self.pipe).__name__} put {words!r} at "
                f"different places of {list(prompts)[:2]!r}, {[table[:2] for table in tables]}; "
                "choose a word that both split alike."
            )
        return tables[0]

    def required_positions(
        self, prompts: Sequence[str], words: str, length: int
    ) -> list[list[int]]:
        """`positions`, where every prompt must have the word.

        Raises:
            PipelineError: names the prompt that lacks it, or has it cut off.
        """
        found = self.positions(prompts, words, length)
        for prompt, places in zip(prompts, found, strict=True):
            if not places:
                raise PipelineError(
                    f"diffusion: {words!r} is not among the {length} tokens that are read of the "
                    f"prompt {prompt!r}; put it in, or nearer to the beginning."
                )
        return found

    def token_mask(self, prompts: Sequence[str], encoded: Encoded, tokens: Tokens) -> Tensor:
        """Which positions count, `[batch, tokens]` boolean.

        Args:
            prompts: the prompts.
            encoded: the prompts, encoded.
            tokens: `"all"` that cross-attention reads, padding included where it reads that;
                `"eos"`: the prompt with its begin and end tokens; `"content"`: the words alone.

        Raises:
            PipelineError: another policy.
        """
        batch, length = encoded.embeds.shape[:2]
        read = torch.ones(batch, length, dtype=torch.bool)
        if encoded.mask is not None:
            read = encoded.mask.bool().cpu()
        if tokens == "all":
            return read
        if tokens not in ("eos", "content"):
            raise PipelineError(
                f"token_mask: tokens must be 'all', 'eos' or 'content', got {tokens!r}."
            )
        tokenizer = self.tokenizer
        ids, mask = token_table(tokenizer, prompts, length)
        if tokens == "content":
            special = torch.tensor(tokenizer.all_special_ids)
            mask = mask & ~torch.isin(torch.tensor(ids), special)
        return mask & read


def encoded_of(result: Sequence[Any]) -> Encoded:
    """What `encode_prompt` returned, told apart by shape: pipelines differ in what comes second."""
    embeds = result[0]
    # Stable Diffusion gives the negative embeddings second, PixArt and Sana the mask of the tokens:
    # only a mask has one number for each token (diffusers 0.42).
    second = result[1] if len(result) > 1 else None
    if second is not None and second.shape == embeds.shape[:2]:
        return Encoded(embeds, mask=second)
    # XL gives the pooled text third; a third entry of three dimensions is a negative embedding.
    third = result[2] if len(result) > 2 else None
    return Encoded(embeds, pooled=third if third is not None and third.ndim == 2 else None)


def token_table(
    tokenizer: Tokenizer, prompts: Sequence[str], length: int
) -> tuple[list[list[int]], Tensor]:
    """Token numbers of prompts, padded and cut as for the text encoder, and the mask of that."""
    table = tokenizer(
        list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    )
    return table.input_ids.tolist(), table.attention_mask.bool()


def word_tokens(tokenizer: Tokenizer, words: str) -> list[int]:
    """Token numbers of a word or a phrase inside a text, without special tokens."""
    return list(tokenizer(words, add_special_tokens=False).input_ids)


def _ends(row: list[int], wanted: list[int]) -> list[int]:
    size = len(wanted)
    # A phrase is searched for as its tokens, not as letters: "cat" must not be found in "category".
    starts = range(len(row) - size + 1)
    return [start + size - 1 for start in starts if size and row[start : start + size] == wanted]


def at_positions(embeds: Tensor, places: Sequence[Sequence[int]]) -> Tensor:
    """Rows `[n, width]` of `embeds [batch, tokens, width]` at the places given for each prompt."""
    rows = [embeds[index, place] for index, found in enumerate(places) for place in found]
    return torch.stack(rows)
