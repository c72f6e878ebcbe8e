"""From prompts to what a denoiser is given, and where a word stands in it.

Everything goes through the pipeline's own `encode_prompt`, so that clip skip, two text encoders,
prompt cleaning and any sequence length are what they are at generation.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from rankedit_recipes.diffusion.encoded import Encoded, encoded_of
from rankedit_recipes.diffusion.errors import PipelineError

Pipeline = Any  # any diffusers pipeline that turns a prompt into prompt embeddings
Tokenizer = Any
Tokens = Literal["all", "eos", "content"]
_for_recipe = contextvars.ContextVar("for_recipe", default=False)


def encoding_for_recipe() -> bool:
    """Whether `encode_prompt` runs for a recipe's own reading, and not for a picture."""
    return _for_recipe.get()


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
        # A text is a sequence too: of letters.
        if isinstance(prompts, str) or not prompts:
            raise PipelineError(
                f"encode: a list of at least one prompt is expected, got {prompts!r}."
            )
        needed = {}
        # Stable Diffusion 3 has no defaults for the prompts of its other encoders (diffusers 0.36).
        if len(self.encoders) == 3 or hasattr(self.pipe, "tokenizer_3"):
            needed = {"prompt_2": None, "prompt_3": None}
        before = _for_recipe.set(True)
        try:
            with self.heard() as tokens:
                result = self.pipe.encode_prompt(
                    prompt=list(prompts),
                    device=self.device,
                    num_images_per_prompt=1,
                    do_classifier_free_guidance=False,
                    **needed,
                )
        finally:
            _for_recipe.reset(before)
        return encoded_of(result, tokens)

    @contextlib.contextmanager
    def heard(self) -> Iterator[list[Tensor]]:
        """Notes what the text encoders are given first, in their order, until the block ends.

        First, because pipelines encode the prompts before the negative ones.
        """
        tables: list[Tensor] = []
        found: dict[str, Tensor] = {}
        with contextlib.ExitStack() as stack:
            for suffix, model, _ in self.encoders:

                def note(_: object, args: Any, kwargs: Any, suffix: str = suffix) -> None:  # noqa: ANN401
                    given = kwargs.get("input_ids", args[0] if args else None)
                    if isinstance(given, Tensor):
                        found.setdefault(suffix, given.detach().cpu())

                handle = model.register_forward_pre_hook(note, with_kwargs=True)
                stack.callback(handle.remove)
            yield tables
        # In the encoders' order, which need not be that of their calls.
        tables += [found[suffix] for suffix in sorted(found)]

    def positions(self, encoded: Encoded, words: str) -> list[list[int]]:
        """Where a word stands in what cross-attention reads, for each prompt; every occurrence.

        Of a phrase of several tokens it is the last one: there a causal text encoder has seen the
        whole phrase, and it is the noun.

        Args:
            encoded: the prompts.
            words: a word, or a phrase.

        Raises:
            PipelineError: the pipeline's tokenizers put the word at different places, or it is not
                known what was tokenised.
        """
        tables = []
        for (_, _, tokenizer), ids in zip(self.encoders, self._read_tokens(encoded), strict=False):
            wanted = word_tokens(tokenizer, words)
            tables.append([_ends(row, wanted) for row in ids.tolist()])
        if any(table != tables[0] for table in tables):
            raise PipelineError(
                f"positions: the tokenizers of {type(self.pipe).__name__} put {words!r} at "
                f"different places, {[table[:2] for table in tables]}; choose a word that both "
                "split alike."
            )
        return tables[0]

    def required_positions(
        self, prompts: Sequence[str], encoded: Encoded, words: str
    ) -> list[list[int]]:
        """`positions`, where every prompt must have the word.

        Raises:
            PipelineError: names the prompt that lacks it, or has it cut off.
        """
        found = self.positions(encoded, words)
        for prompt, places in zip(prompts, found, strict=True):
            if not places:
                raise PipelineError(
                    f"diffusion: {words!r} is not among the {encoded.embeds.shape[1]} tokens that "
                    f"are read of the prompt {prompt!r}; put it in, or nearer to the beginning."
                )
        return found

    def token_mask(self, encoded: Encoded, tokens: Tokens) -> Tensor:
        """Which positions count, `[batch, tokens]` boolean.

        Args:
            encoded: the prompts.
            tokens: `"all"` that cross-attention reads, padding included where it reads that;
                `"eos"`: the prompt with its begin and end tokens; `"content"`: the words alone.

        Raises:
            PipelineError: another policy.
        """
        batch, length = encoded.embeds.shape[:2]
        read = torch.ones(batch, length, dtype=torch.bool)
        if encoded.mask is not None:
            # On the CPU, where the tokens are.
            read = encoded.mask.bool().cpu()
        if tokens == "all":
            return read
        if tokens not in ("eos", "content"):
            raise PipelineError(
                f"token_mask: tokens must be 'all', 'eos' or 'content', got {tokens!r}."
            )
        tokenizer, ids = self.tokenizer, self._read_tokens(encoded)[0]
        mask = ~_padding(ids, tokenizer)
        if tokens == "content":
            mask = mask & ~torch.isin(ids, torch.tensor(tokenizer.all_special_ids))
        return mask & read

    def names(self, encoded: Encoded) -> list[str]:
        """The tokens of the first prompt, as the first tokenizer writes them."""
        ids = self._read_tokens(encoded)[0][0]
        return list(self.tokenizer.convert_ids_to_tokens(ids.tolist()))

    def _read_tokens(self, encoded: Encoded) -> list[Tensor]:
        """Tokens by encoder at the positions that are read, `[batch, length]`."""
        length = encoded.embeds.shape[1]
        if not encoded.tokens:
            raise PipelineError(
                f"diffusion: {type(self.pipe).__name__} was not seen to call its text encoder, so "
                "that it is not known where words stand; give prompts and not embeddings."
            )
        # Sana puts instructions before the prompt and reads the beginning and the last places only
        # (diffusers 0.42); others read all.
        return [
            table
            if table.shape[1] <= length
            else torch.cat([table[:, :1], table[:, 1 - length :]], 1)
            for table in encoded.tokens
        ]


def word_tokens(tokenizer: Tokenizer, words: str) -> list[int]:
    """Token numbers of a word or a phrase inside a text, without special tokens."""
    return list(tokenizer(words, add_special_tokens=False).input_ids)


def _ends(row: list[int], wanted: list[int]) -> list[int]:
    size = len(wanted)
    # A phrase is searched for as its tokens, not as letters: "cat" must not be found in "category".
    starts = range(len(row) - size + 1)
    return [start + size - 1 for start in starts if size and row[start : start + size] == wanted]


def _padding(ids: Tensor, tokenizer: Tokenizer) -> Tensor:
    """Which of `ids [batch, length]` fill a text up, at the tokenizer's side; boolean."""
    fill = ids == tokenizer.pad_token_id
    left = getattr(tokenizer, "padding_side", "right") == "left"
    run = fill.flip(1) if not left else fill
    trailing = run.long().cumprod(1).bool()
    # Where texts are filled up with their end token (CLIP), the first of the run is the end itself.
    if tokenizer.pad_token_id == tokenizer.eos_token_id and not left:
        end = trailing.sum(1, keepdim=True) - 1
        trailing = trailing & (torch.arange(ids.shape[1])[None] != end)
    return trailing if left else trailing.flip(1)
