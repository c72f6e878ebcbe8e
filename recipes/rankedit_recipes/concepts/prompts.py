"""Prompts as projections read them: where each text encoder's tokens stand, and words in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rankedit_recipes.concepts.errors import ConceptsError
from rankedit_recipes.diffusion.encoded import Encoded, Heard
from rankedit_recipes.diffusion.parts import Parts
from rankedit_recipes.diffusion.standing import Block, blocks
from rankedit_recipes.diffusion.text import Tokenizer, word_places

# Prompts that are encoded at a time.
_BATCH = 64


@dataclass(frozen=True, eq=False)
class Span:
    """Where one text encoder's encodings stand in a prompt.

    Attributes:
        start: row of the first one that is no padding.
        stop: one past the last row.
        places: first and last row of each occurrence of the word that was looked for.
    """

    start: int
    stop: int
    places: tuple[tuple[int, int], ...] = ()

    @property
    def ends(self) -> tuple[int, ...]:
        """Rows of the word's last token."""
        return tuple(end for _, end in self.places)

    @property
    def size(self) -> int:
        """Tokens of the word; 0 of none."""
        return self.places[0][1] - self.places[0][0] + 1 if self.places else 0


@dataclass(frozen=True, eq=False)
class Prompt:
    """One prompt as it is read.

    Attributes:
        text: the prompt.
        vectors: `[tokens, in]` that are read, float64 on the CPU.
        spans: of each encoder whose encodings have rows of their own.
    """

    text: str
    vectors: Tensor
    spans: tuple[Span, ...]

    @property
    def ends(self) -> tuple[int, ...]:
        """Rows of the last token of the word that was looked for, by all encoders."""
        return tuple(end for span in self.spans for end in span.ends)

    @property
    def word(self) -> Tensor:
        """Which rows those are, `[tokens]` boolean."""
        found = torch.zeros(len(self.vectors), dtype=torch.bool)
        found[list(self.ends)] = True
        return found

    @property
    def block(self) -> Tensor:
        """Which span each row is of, `[tokens]`."""
        starts = torch.tensor([span.stop for span in self.spans[:-1]], dtype=torch.long)
        return torch.bucketize(torch.arange(len(self.vectors)), starts, right=True)


@torch.no_grad()
def read_prompts(parts: Parts, prompts: Sequence[str], words: Sequence[str]) -> list[Prompt]:
    """Prompts as projections read them, and where their words stand; an empty word is nowhere.

    Raises:
        PipelineError: a word is cut off, or it is not known where it stands.
    """
    # First, for whoever asks runs the encoders on other prompts, which would be heard as these.
    _ = parts.targets
    found = []
    for start in range(0, len(prompts), _BATCH):
        part, asked = prompts[start : start + _BATCH], words[start : start + _BATCH]
        with parts.text.heard() as heard:
            encoded = parts.text.encode(list(part))
        reads = parts.reads(encoded).detach().cpu().double()
        mask = parts.text.token_mask(encoded, "all")
        found_at = spans_of(parts, heard, encoded, part, asked)
        for index, prompt in enumerate(part):
            read = mask[index].nonzero().flatten()
            if int(read[-1]) + 1 != len(read):
                raise ConceptsError(
                    f"edit: {type(parts.pipe).__name__} reads a prompt's tokens with gaps, or "
                    "fills prompts up before they begin; not supported."
                )
            spans = tuple(replace(s, stop=min(s.stop, len(read))) for s in found_at[index])
            found.append(Prompt(prompt, reads[index, : len(read)], spans))
    return found


def spans_of(
    parts: Parts, heard: Heard, encoded: Encoded, prompts: Sequence[str], words: Sequence[str]
) -> list[tuple[Span, ...]]:
    """Where each encoder's encodings stand, and a word in them, for each prompt.

    Raises:
        PipelineError: a word is cut off, or it is not known where it stands.
    """
    if encoded.tokens or not parts.targets.entrances:
        return [
            (_whole(parts, encoded, index, prompt, word),)
            for index, (prompt, word) in enumerate(zip(prompts, words, strict=True))
        ]
    found: list[dict[int, Span]] = [{} for _ in prompts]
    for block in blocks(parts.text, heard, encoded.embeds):
        for index, (prompt, word) in enumerate(zip(prompts, words, strict=True)):
            span = _in_block(parts, block, index, prompt, word)
            # Encoders side by side in the same rows (CLIP's two) are one.
            if found[index].setdefault(span.start, span).ends != span.ends:
                raise ConceptsError(
                    f"edit: the tokenizers of {type(parts.pipe).__name__} put {word!r} at "
                    f"different places of {prompt!r}; choose a word that they split alike."
                )
    return [tuple(spans[start] for start in sorted(spans)) for spans in found]


def _whole(parts: Parts, encoded: Encoded, index: int, prompt: str, word: str) -> Span:
    """All rows of a prompt, in which every encoder has the same places."""
    length, tokenizer = encoded.embeds.shape[1], parts.text.tokenizer
    tokens = tuple(table[index : index + 1] for table in encoded.tokens)
    if word:
        # Not `rows`, which needs more of an encoding than where its words stand.
        one = Encoded(encoded.embeds[index : index + 1], tokens=tokens)
        parts.text.required_positions([prompt], one, word)
    row = tokens[0][0].tolist() if tokens else []
    places = tuple(word_places(row, tokenizer, word)) if word else ()
    return Span(_leading(row, tokenizer), length, places)


def _in_block(parts: Parts, block: Block, index: int, prompt: str, word: str) -> Span:
    """The rows of one encoder.

    Raises:
        ConceptsError: it does not read the word.
    """
    row, start = block.table[index].tolist(), block.start
    places = word_places(row, block.tokenizer, word) if word else []
    if word and not places:
        raise ConceptsError(
            f"edit: {word!r} is not among the {len(row)} tokens that text_encoder{block.suffix} "
            f"of {type(parts.pipe).__name__} reads of {prompt!r}; put it nearer to the beginning."
        )
    own = tuple((start + first, start + last) for first, last in places)
    return Span(start + _leading(row, block.tokenizer), start + len(row), own)


def _leading(row: Sequence[int], tokenizer: Tokenizer) -> int:
    """How many tokens fill a prompt up before it begins."""
    if getattr(tokenizer, "padding_side", "right") != "left":
        return 0
    return next((i for i, token in enumerate(row) if token != tokenizer.pad_token_id), 0)


def aligned_to(source: Prompt, other: Prompt) -> Tensor:
    """For each token of a prompt its place in the one that has another word there, or none."""
    # What fills prompts up in front stands for itself.
    found = torch.arange(len(source.vectors)).clamp(max=len(other.vectors) - 1)
    for own, its in zip(source.spans, other.spans, strict=True):
        ends = [end - own.start for end in own.ends]
        length, most = own.stop - own.start, its.stop - its.start
        found[own.start : own.stop] = its.start + alignment(length, ends, own.size, its.size, most)
    return found


def alignment(length: int, ends: Sequence[int], size: int, goal: int, most: int) -> Tensor:
    """For each of a prompt's places the place in the other prompt.

    Args:
        length: of the prompt.
        ends: where the last token of each occurrence of its word is.
        size: tokens of the word.
        goal: tokens of what stands there in the other prompt; 0 for nothing.
        most: length of the other prompt.

    Example:
        >>> alignment(6, [2], 2, 1, 6).tolist()  # begin, two tokens of the word, three behind
        [0, 1, 1, 2, 3, 4]
    """
    found, shift, place = [], 0, 0
    for end in ends:
        start = end - size + 1
        found += [at + shift for at in range(place, start)]
        # From the last token, which is the noun; what the other word lacks is its first one. Where
        # it is nothing, the token before stands in for it.
        first = start + shift if goal else start + shift - 1
        last = start + shift + goal - 1
        found += [max(first, last - (end - at)) for at in range(start, end + 1)]
        place, shift = end + 1, shift + goal - size
    found += [at + shift for at in range(place, length)]
    return torch.tensor(found).clamp(0, most - 1)
