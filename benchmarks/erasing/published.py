"""UCE as published (Gandikota et al., arXiv 2308.14761, equation 7): the peer, a loop of inverses.

Written from the formula, for one projection at a time, with the defaults of the authors' code:
λ 0.5 and weights of 1, in the numbers of the weights.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from rankedit_recipes.concepts.contexts import filled
from rankedit_recipes.diffusion.parts import Parts
from torch import Tensor, nn

LAMBDA = 0.5


@torch.no_grad()
def uce_(
    layers: Iterable[nn.Module], erased: Sequence[Tensor], guides: Sequence[Tensor],
    kept: Sequence[Tensor],
) -> None:  # fmt: skip
    """Edit weights in place; encodings are `[in]`."""
    for layer in layers:
        weight = layer.weight
        first = LAMBDA * weight
        second = LAMBDA * torch.eye(weight.shape[1])
        for key, guide in zip(erased, guides, strict=True):
            first = first + (weight @ guide)[:, None] @ key[None]
            second = second + key[:, None] @ key[None]
        for key in kept:
            first = first + (weight @ key)[:, None] @ key[None]
            second = second + key[:, None] @ key[None]
        layer.weight.copy_(first @ torch.inverse(second))


@torch.no_grad()
def last(parts: Parts, word: str) -> Tensor:
    """The last token's encoding of a word alone; of nothing the first one's."""
    encoded = parts.text.encode([filled("{}", word)])
    place = parts.text.positions(encoded, word)[0][-1] if word else 0
    return parts.reads(encoded)[0, place]


@contextmanager
def published(
    pipe: object, goals: Sequence[tuple[str, str]], held: Sequence[str] = ()
) -> Iterator[None]:
    """UCE's edit in the weights of a pipeline for the length of the block.

    Args:
        pipe: the pipeline.
        goals: words, and what each is to become; an empty word for nothing.
        held: words that are preserved.
    """
    parts = Parts(pipe)
    layers = list(parts.projections.values())
    before = [layer.weight.detach().clone() for layer in layers]
    kept = [last(parts, other) for other in held]
    keys, guides = ([last(parts, pair[i]) for pair in goals] for i in (0, 1))
    uce_(layers, keys, guides, kept)
    try:
        yield
    finally:
        with torch.no_grad():
            for layer, weight in zip(layers, before, strict=True):
                layer.weight.copy_(weight)
