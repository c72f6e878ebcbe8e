"""How much of the memory a search takes, from the texts and the model's widths; nothing is run.

Of the tokens that are run, those behind the subjects are many times, for the gradient; those before
them are run once, and leave keys and values (see `model.beginnings`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rankedit_recipes.language.model.tokens import Tokenizer
from rankedit_recipes.language.requests import Request
from rankedit_recipes.language.searching.values import chunked, texts_of
from rankedit_recipes.language.settings import Settings

# Numbers kept for the gradient, by a token in a block above the edited one: of Llama, counted. What
# the MLP multiplies and its gate (3 of its width); what norms and attention read (5 of the stream).
_MLP, _STREAM = 3, 5
# Beside these, by the peak of a process, in numbers: keys and values of all tokens with the copies
# that runs get, what an MLP is at in the one run of all tokens, and logits with their gradients.
# 123 to 516 MB were measured and 126 to 525 are said, of widths 64 and 256 (MLPs 256 to 1,024), 5
# and 13 blocks, 500 and 20,000 words.
_COPIES, _RUN, _LOGITS = 2.3, 4, 5


@dataclass(frozen=True)
class Sizes:
    """Of the largest chunk of a search.

    Attributes:
        rows: texts that are run together.
        whole: tokens of the longest.
        behind: tokens from the subject on, at most.
        places: tokens of a target at most, whose logits are looked at.
    """

    rows: int
    whole: int
    behind: int
    places: int


@dataclass(frozen=True)
class Widths:
    """Of a model.

    Attributes:
        blocks: how many it has.
        above: those above the one whose value is searched for.
        stream: of the residual stream.
        inner: of what the widest down-projection reads.
        kept: of keys and values of one token in one block, together.
        words: of the vocabulary.
        bytes: of one number.
    """

    blocks: int
    above: int
    stream: int
    inner: int
    kept: int
    words: int
    bytes: int


def sizes_of(tokenizer: Tokenizer, requests: Sequence[Request], settings: Settings) -> Sizes:
    """The texts of a search before there are any: contexts stand before them, of known lengths.

    Args:
        tokenizer: the model's.
        requests: what would be searched for.
        settings: how; `contexts` and `tokens` of it count.
    """
    texts = texts_of(tokenizer, settings.asked(requests), ())
    before, rows = max(settings.contexts, default=0), 2 + len(settings.contexts)
    longest = [max(before + len(bare.ids), len(essence.ids)) for bare, essence in texts]
    chunks = chunked(longest, [rows] * len(texts), settings.tokens)
    chunk = max(chunks, key=lambda some: len(some) * longest[some[-1]])
    # The last token of a target is read by nobody, and not run.
    behind = max(len(text.ids) - 1 - text.subject for i in chunk for text in texts[i])
    places = max(len(text.target) for i in chunk for text in texts[i])
    return Sizes(rows * len(chunk), max(longest[i] for i in chunk), behind, places)


def saved_numbers(sizes: Sizes, widths: Widths) -> int:
    """Numbers that are kept for the gradient, beside the weights."""
    token = _MLP * widths.inner + _STREAM * widths.stream
    rows = widths.above * (sizes.behind * token + sizes.whole * widths.kept)
    return sizes.rows * (rows + sizes.places * widths.words)


def search_bytes(sizes: Sizes, widths: Widths) -> float:
    """What a search takes at most, beside the model."""
    kept = _COPIES * widths.blocks * widths.kept
    more = sizes.whole * (kept + _RUN * widths.inner)
    logits = 4 * _LOGITS * sizes.places * widths.words  # in float32
    return widths.bytes * (saved_numbers(sizes, widths) + sizes.rows * more) + sizes.rows * logits
