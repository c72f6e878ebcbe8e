"""From prompts to what a denoiser is given, and where a word stands in it.

Everything goes through the pipeline itself, so that clip skip, two text encoders, prompt cleaning
and any sequence length are what they are at generation.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from rankedit_recipes.diffusion.asked import asked_denoiser
from rankedit_recipes.diffusion.calling import smallest
from rankedit_recipes.diffusion.encoded import Encoded, Heard, encoded_of, vectors_in
from rankedit_recipes.diffusion.errors import PipelineError

Pipeline = Any  # any diffusers pipeline that turns a prompt into prompt embeddings
Tokenizer = Any
Given: TypeAlias = tuple[Any, ...]  # arguments of a call of an encoder
Names: TypeAlias = dict[str, Any]
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
        found = self._found()
        if not found:
            raise PipelineError(
                f"diffusion: {type(self.pipe).__name__} has no text encoder; load it with its "
                "text_encoder and tokenizer, and pass prompt embeddings only when generating."
            )
        return found

    def _found(self) -> list[Encoder]:
        found = []
        for suffix in ("", "_2", "_3"):
            model = getattr(self.pipe, f"text_encoder{suffix}", None)
            tokenizer = getattr(self.pipe, f"tokenizer{suffix}", None)
            if model is not None and tokenizer is not None:
                found.append(Encoder(suffix, model, tokenizer))
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
        before = _for_recipe.set(True)
        try:
            return self._encoded(prompts)
        finally:
            _for_recipe.reset(before)

    def _encoded(self, prompts: Sequence[str]) -> Encoded:
        denoiser = asked_denoiser(self.pipe)
        if denoiser is not None:
            return self._as_generating(denoiser, prompts)
        with self.heard() as tokens:
            result = self.pipe.encode_prompt(
                prompt=list(prompts),
                device=self.device,
                num_images_per_prompt=1,
                do_classifier_free_guidance=False,
            )
        return encoded_of(result, tokens)

    def _as_generating(self, denoiser: torch.nn.Module, prompts: Sequence[str]) -> Encoded:
        """What the denoiser is given of prompts, by the pipeline's own call.

        Pipelines differ in how they encode prompts, and change them on the way.
        """
        known = smallest(self.pipe, denoiser)
        with self.heard() as tokens:
            call = known.asking.first_calls(prompts)[0]
        encoded = known.encoded(call, tokens)
        learning = torch.is_grad_enabled() and any(map(_learned, self._found()))
        if learning and not encoded.embeds.requires_grad:
            raise PipelineError(
                f"encode: {type(self.pipe).__name__} encodes prompts without gradients, so that "
                "no word can be learned on it."
            )
        return encoded

    @contextlib.contextmanager
    def heard(self) -> Iterator[Heard]:
        """Notes what the text encoders are given first, and give, until the block ends.

        First, because pipelines encode the prompts before the negative ones.
        """
        heard = Heard()
        found: dict[str, tuple[Tensor, list[Tensor]]] = {}
        with contextlib.ExitStack() as stack:
            for suffix, model, _ in self._found():

                def note(
                    _: object, args: Given, kwargs: Names, output: object, at: str = suffix
                ) -> None:
                    given = kwargs.get("input_ids", args[0] if args else None)
                    if isinstance(given, Tensor) and at not in found:
                        found[at] = (given.detach().cpu(), list(vectors_in(output)))

                handle = model.register_forward_hook(note, with_kwargs=True)
                stack.callback(handle.remove)
            yield heard
        # In the encoders' order, which need not be that of their calls.
        for suffix in sorted(found):
            heard.append(found[suffix][0])
            heard.hidden.append(found[suffix][1])

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
            places = [word_places(row, tokenizer, words) for row in ids.tolist()]
            tables.append([[end for _, end in own] for own in places])
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
                    f"are read of the prompt {prompt!r}; put it in, or nearer to the beginning. "
                    "Pipelines that clean captions take words in brackets out: use one without."
                )
        return found

    def lost(self, words: Sequence[str]) -> list[str]:
        """Words in the pipeline that it takes out of prompts before it encodes them.

        Stable Diffusion takes none out and is not asked.
        """
        if asked_denoiser(self.pipe) is None:
            return []
        with torch.no_grad():
            return [w for w in words if not self.positions(self.encode([f"a {w}"]), w)[0]]

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
        """Tokens by encoder at the positions that are read, `[batch, tokens]`."""
        if not encoded.tokens:
            raise PipelineError(
                f"diffusion: {type(self.pipe).__name__} was not seen to make its embeddings of "
                "what its text encoder gave, so that it is not known where words stand; give "
                "prompts and not embeddings."
            )
        return list(encoded.tokens)


def _learned(encoder: Encoder) -> bool:
    """Whether a word of an encoder is being learned; see `words`."""
    rows = vars(encoder.model.get_input_embeddings()).get("_new_rows", {})
    return any(row.requires_grad for row, _ in rows.values())


def word_tokens(tokenizer: Tokenizer, words: str) -> list[int]:
    """Token numbers of a word or a phrase inside a text, without special tokens."""
    return list(tokenizer(words, add_special_tokens=False).input_ids)


def word_places(row: list[int], tokenizer: Tokenizer, words: str) -> list[tuple[int, int]]:
    """First and last place of every occurrence of a word or a phrase among a text's tokens."""
    # Byte-level tokenizers and Gemma's have other tokens for a word behind a space than for the
    # first one of a text.
    forms = {tuple(word_tokens(tokenizer, f"{before}{words}")) for before in ("", " ")}
    # A phrase is searched for as its tokens, not as letters: "cat" must not be found in "category".
    found: dict[int, int] = {}
    for wanted in sorted(forms, key=len):
        size = len(wanted)
        starts = range(len(row) - size + 1) if size else ()
        # The longer form last, which begins with what only it has.
        found |= {i + size - 1: i for i in starts if tuple(row[i : i + size]) == wanted}
    return [(start, end) for end, start in sorted(found.items())]


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
