"""The encodings that carry a concept, each beside the one that it is to act like.

Every context is encoded twice, with the word and with what it is to become. Tokens before the word
stand at the same places in both; the word's are aligned from its last one, what follows with what
follows. Of several text encoders whose encodings stand one behind the other (Stable Diffusion 3)
each is aligned by itself, and has keys of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rankedit_recipes.concepts.contexts import (
    ATTRIBUTES,
    THINGS,
    filled,
    nearest_words,
    readable,
)
from rankedit_recipes.concepts.errors import ConceptsError
from rankedit_recipes.concepts.prompts import Prompt, aligned_to, read_prompts
from rankedit_recipes.concepts.requests import Request
from rankedit_recipes.concepts.settings import Settings
from rankedit_recipes.diffusion.parts import Parts
from rankedit_recipes.diffusion.text import word_tokens

# Tokens of a prompt that carry a concept, at most; CLIP's length. Encoders that read both ways put
# something of every word into hundreds of tokens that fill a prompt up.
_MOST = 77


@dataclass(frozen=True, eq=False)
class Rows:
    """A concept's keys, and what they are to act like.

    Attributes:
        keys: `[n, in]`, float64 on the CPU.
        guides: `[n, in]`.
        word: which of them are of the word's last token, `[n]` boolean.
        block: which encoder each is of, `[n]`; None where all are of the same ones.
    """

    keys: Tensor
    guides: Tensor
    word: Tensor
    block: Tensor | None = None

    @property
    def mean_key(self) -> Tensor:
        """`[1, in]`: the mean over the word's last tokens."""
        return self.keys[self.word].mean(0, keepdim=True)


def templates_of(parts: Parts, request: Request, settings: Settings) -> list[str]:
    """The contexts of a request.

    Raises:
        ConceptsError: the model knows the words of none.
    """
    if not settings.contexts and not request.contexts:
        return ["{}"]
    given = request.contexts or (ATTRIBUTES if request.about == "attribute" else THINGS)
    known = readable(parts.text, given)
    if not known:
        raise ConceptsError(
            f"edit: the model knows the words of none of the contexts of {request.name!r}; give "
            f"contexts=['a photo of a {{}}', ...] in its own words."
        )
    return known


def check_words(parts: Parts, words: Sequence[str]) -> None:
    """Refuse words that the model does not know, whose encodings say nothing.

    Raises:
        ConceptsError: names them.
    """
    for suffix, _, tokenizer in parts.text.encoders:
        unknown = [w for w in words if tokenizer.unk_token_id in word_tokens(tokenizer, w)]
        lost = [w for w in words if not word_tokens(tokenizer, w)]
        if unknown or lost:
            raise ConceptsError(
                f"edit: tokenizer{suffix} does not know {', '.join(map(repr, unknown + lost))}; "
                "give words of the model's language."
            )


def read_request(parts: Parts, request: Request, settings: Settings) -> Rows:
    """The keys of a request and their guides, over its words and contexts."""
    check_words(parts, [*request.words, *request.to])
    templates = templates_of(parts, request, settings)
    several = len(request.to) > 1
    given = nearest(parts, request, templates) if several else "".join(request.to)
    beside = settings.neighbours and not request.to
    rows = []
    for word in request.words:
        goals = _beside(parts, request, word, settings) if beside else [given]
        rows += _of_word(parts, word, goals, templates, settings, beyond=bool(beside))
    keys, guides, said, block = (torch.cat(column) for column in zip(*rows, strict=True))
    return Rows(keys, guides, said, block if bool(block.any()) else None)


def _of_word(
    parts: Parts,
    word: str,
    goals: Sequence[str],
    templates: Sequence[str],
    settings: Settings,
    *,
    beyond: bool,
) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Keys, guides, which keys are of the word's last token, and of which encoder, by context.

    Args:
        parts: of the pipeline.
        word: the concept's.
        goals: what stands in its place in the other prompts, whose mean counts; `""` for nothing.
        templates: the contexts.
        settings: the method.
        beyond: go further than the goals, by the method's setting.
    """

    def read(said: str) -> list[Prompt]:
        return read_prompts(parts, [filled(t, said) for t in templates], [said] * len(templates))

    others = {goal: read(goal) for goal in goals}
    rows = []
    for index, source in enumerate(read(word)):
        prompts = [others[goal][index] for goal in goals]
        aligned = [other.vectors[aligned_to(source, other)] for other in prompts]
        further = settings.beyond if beyond else 0.0
        rows.append(_paired(source, torch.stack(aligned).mean(0), settings, further))
    return rows


def _beside(parts: Parts, request: Request, phrase: str, settings: Settings) -> list[str]:
    """The words that may stand in a word's place, by their embeddings; none of its own forms.

    Each word of a phrase gets a neighbour of its own, for each may carry the concept, and all that
    stands behind it stays where it is.
    """
    known = sorted({own for word in request.words for own in word.split()})
    near = [
        nearest_words(parts.text, word, settings.neighbours, without=known)
        for word in phrase.split()
    ]
    if not all(near):
        raise ConceptsError(
            f"edit: no word near {phrase!r} is known that could stand in its place; give "
            "to='...', a word that it becomes."
        )
    return [" ".join(words) for words in zip(*near, strict=False)]


def _paired(
    source: Prompt, guides: Tensor, settings: Settings, beyond: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Keys, guides, which keys are of the word's last token, and of which encoder."""
    keys, word = source.vectors, source.word
    chosen = chosen_of(settings, word, carried_rows(source, guides, settings))
    guides = guides + beyond * (guides - keys)
    return keys[chosen], guides[chosen], word[chosen], source.block[chosen]


def carried_rows(source: Prompt, guides: Tensor, settings: Settings) -> Tensor:
    """Which tokens of a prompt change with its word, `[tokens]` boolean."""
    found = torch.zeros(len(source.vectors), dtype=torch.bool)
    for span in source.spans:
        rows = slice(span.start, span.stop)
        # By encoder: one's encodings may be far longer than another's.
        found[rows] = carrying(source.vectors[rows], guides[rows], settings.carried)
    return found


def chosen_of(settings: Settings, word: Tensor, carried: Tensor) -> Tensor:
    """Which tokens of a prompt are keys, `[tokens]` boolean.

    Args:
        settings: the method.
        word: which are of the word's last token.
        carried: which change with the word.
    """
    if settings.tokens == "last":
        return word
    return carried | word if settings.tokens == "carried" else torch.ones_like(word)


def carrying(keys: Tensor, others: Tensor, least: float) -> Tensor:
    """Which tokens change when the word does, by at least a share of the largest change.

    Nothing is known of how a text encoder reads: before the word nothing changes where it reads
    from left to right, and where it reads both ways that is seen here.
    """
    change = (keys - others).norm(dim=1)
    found = change >= least * change.max().clamp_min(1e-300)
    if int(found.sum()) > _MOST:
        found &= change >= change.topk(_MOST).values[-1]
    return found


def nearest(parts: Parts, request: Request, templates: Sequence[str]) -> str:
    """Of the words that a concept may become, the one whose encodings are the nearest to it."""
    means = [_mean_keys(parts, word, templates).flatten() for word in (request.name, *request.to)]
    apart = [float((mean - means[0]).norm()) for mean in means[1:]]
    return request.to[apart.index(min(apart))]


def read_held(parts: Parts, request: Request, settings: Settings) -> Tensor:
    """What is kept of held concepts: for each word one key, in contexts their mean, `[h, in]`.

    One for each encoder that has rows of its own.
    """
    check_words(parts, request.words)
    templates = templates_of(parts, request, settings)
    return torch.cat([_mean_keys(parts, word, templates) for word in request.words])


def _mean_keys(parts: Parts, word: str, templates: Sequence[str]) -> Tensor:
    """By encoder the mean over contexts of what a word's last token is read as."""
    read = read_prompts(parts, [filled(t, word) for t in templates], [word] * len(templates))
    count = len(read[0].spans)
    return torch.stack(
        [torch.stack([p.vectors[p.spans[i].ends[-1]] for p in read]).mean(0) for i in range(count)]
    )


def read_empty(parts: Parts, seed: int = 0) -> Tensor:
    """The empty prompt: its first encoding, and up to three centres of the others, `[n, in]`."""
    from scipy.cluster.vq import kmeans2

    [prompt] = read_prompts(parts, [""], [""])
    rest = prompt.vectors[1:]
    if len(rest) <= 3:
        return prompt.vectors
    centres, labels = kmeans2(rest.numpy(), 3, minit="++", seed=seed)
    used = sorted(set(labels.tolist()))
    return torch.cat([prompt.vectors[:1], torch.from_numpy(centres[used])])
