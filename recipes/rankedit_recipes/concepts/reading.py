"""The encodings that carry a concept, each beside the one that it is to act like.

Every context is encoded twice, with the word and with what it is to become. Tokens before the word
stand at the same places in both; the word's are aligned from its last one, what follows with what
follows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rankedit_recipes.concepts.contexts import ATTRIBUTES, THINGS, filled, readable
from rankedit_recipes.concepts.errors import ConceptsError
from rankedit_recipes.concepts.requests import Request
from rankedit_recipes.concepts.settings import Settings
from rankedit_recipes.diffusion.encoded import Encoded
from rankedit_recipes.diffusion.parts import Parts
from rankedit_recipes.diffusion.text import word_tokens

# Prompts that are encoded at a time.
_BATCH = 64


@dataclass(frozen=True, eq=False)
class Rows:
    """A concept's keys, and what they are to act like.

    Attributes:
        keys: `[n, in]`, float64 on the CPU.
        guides: `[n, in]`.
        word: which of them are of the word's last token, `[n]` boolean.
    """

    keys: Tensor
    guides: Tensor
    word: Tensor

    @property
    def mean_key(self) -> Tensor:
        """`[1, in]`: the mean over the word's last tokens."""
        return self.keys[self.word].mean(0, keepdim=True)


@dataclass(frozen=True, eq=False)
class Prompt:
    """One prompt as it is read.

    Attributes:
        text: the prompt.
        vectors: `[tokens, in]` that are read, float64 on the CPU.
        ends: places of the last token of the word that was looked for.
    """

    text: str
    vectors: Tensor
    ends: tuple[int, ...]


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


@torch.no_grad()
def read_prompts(parts: Parts, prompts: Sequence[str], words: Sequence[str]) -> list[Prompt]:
    """Prompts as projections read them, and where their words stand; an empty word is nowhere.

    Raises:
        PipelineError: a word is cut off, or it is not known where it stands.
    """
    found = []
    for start in range(0, len(prompts), _BATCH):
        part, asked = prompts[start : start + _BATCH], words[start : start + _BATCH]
        encoded = parts.text.encode(list(part))
        reads = parts.reads(encoded).detach().cpu().double()
        mask = parts.text.token_mask(encoded, "all")
        for index, (prompt, word) in enumerate(zip(part, asked, strict=True)):
            read = mask[index].nonzero().flatten()
            if int(read[-1]) + 1 != len(read):
                raise ConceptsError(
                    f"edit: {type(parts.pipe).__name__} reads a prompt's tokens with gaps, or "
                    "fills prompts up before they begin; not supported."
                )
            ends = _ends(parts, prompt, _row(encoded, index), word) if word else ()
            found.append(Prompt(prompt, reads[index, : len(read)], ends))
    return found


def _row(encoded: Encoded, index: int) -> Encoded:
    # Not `rows`, which needs more of an encoding than where its words stand.
    tokens = tuple(table[index : index + 1] for table in encoded.tokens)
    return Encoded(encoded.embeds[index : index + 1], tokens=tokens)


def _ends(parts: Parts, prompt: str, encoded: Encoded, word: str) -> tuple[int, ...]:
    return tuple(parts.text.required_positions([prompt], encoded, word)[0])


def read_request(parts: Parts, request: Request, settings: Settings) -> Rows:
    """The keys of a request and their guides, over its words and contexts."""
    check_words(parts, [*request.words, *request.to])
    templates = templates_of(parts, request, settings)
    goal = nearest(parts, request, templates) if len(request.to) > 1 else "".join(request.to)
    pairs = [(word, template) for word in request.words for template in templates]
    sources = read_prompts(parts, [filled(t, w) for w, t in pairs], [w for w, _ in pairs])
    guides = read_prompts(parts, [filled(t, goal) for _, t in pairs], [goal] * len(pairs))
    sizes = {word: _size(parts, word) for word in (*request.words, goal)}
    rows = [
        _paired(source, guide, sizes[word], sizes[goal], settings)
        for source, guide, (word, _) in zip(sources, guides, pairs, strict=True)
    ]
    return Rows(*(torch.cat(column) for column in zip(*rows, strict=True)))


def _size(parts: Parts, word: str) -> int:
    return len(word_tokens(parts.text.tokenizer, word)) if word else 0


def _paired(
    source: Prompt, guide: Prompt, size: int, goal: int, settings: Settings
) -> tuple[Tensor, Tensor, Tensor]:
    """Keys, guides, and which keys are of the word's last token, of one context."""
    aligned = alignment(len(source.vectors), source.ends, size, goal, len(guide.vectors))
    keys, guides = source.vectors, guide.vectors[aligned]
    word = torch.zeros(len(keys), dtype=torch.bool)
    word[list(source.ends)] = True
    chosen = word if settings.tokens == "last" else torch.ones_like(word)
    if settings.tokens == "carried":
        chosen = carrying(keys, guides, settings.carried) | word
    return keys[chosen], guides[chosen], word[chosen]


def carrying(keys: Tensor, others: Tensor, least: float) -> Tensor:
    """Which tokens change when the word does, by at least a share of the largest change.

    Nothing is known of how a text encoder reads: before the word nothing changes where it reads
    from left to right, and where it reads both ways that is seen here.
    """
    change = (keys - others).norm(dim=1)
    return change >= least * change.max().clamp_min(1e-300)


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


def nearest(parts: Parts, request: Request, templates: Sequence[str]) -> str:
    """Of the words that a concept may become, the one whose encodings are the nearest to it."""
    means = []
    for word in (request.name, *request.to):
        read = read_prompts(parts, [filled(t, word) for t in templates], [word] * len(templates))
        means.append(torch.stack([p.vectors[p.ends[-1]] for p in read]).mean(0))
    apart = [float((mean - means[0]).norm()) for mean in means[1:]]
    return request.to[apart.index(min(apart))]


def read_held(parts: Parts, request: Request, settings: Settings) -> Tensor:
    """What is kept of held concepts: for each word one key, in contexts their mean, `[h, in]`."""
    check_words(parts, request.words)
    templates = templates_of(parts, request, settings)
    rows = []
    for word in request.words:
        read = read_prompts(parts, [filled(t, word) for t in templates], [word] * len(templates))
        rows.append(torch.stack([p.vectors[p.ends[-1]] for p in read]).mean(0))
    return torch.stack(rows)


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
