"""How well each block tells subjects apart, measured on tokens drawn at random.

An edit answers to a subject's key: what the down-projection reads at the subject's last token. It
reaches the subject in other texts as far as the keys there agree, and reaches other subjects as far
as their keys overlap with it. Both are measured in one pass over 64 short rows, in which 16
subjects of three tokens stand behind 4 beginnings; eight subjects end like the other eight. Random
tokens do for names: they order the blocks of a real model as names do, with and without a
covariance (docs/decisions/blocks-by-measurement.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rankedit_recipes.language.errors import LanguageError
from rankedit_recipes.language.model.blocks import Block
from rankedit_recipes.language.model.running import (
    Hook,
    embedding_device,
    first_tensor,
    hooked,
    quiet,
)

_SUBJECTS, _BEGINNINGS = 16, 4
_LONG, _BEFORE = 3, 6  # tokens
# As for extreme vectors in statistics: no Gaussian vector is so much longer than the usual one.
_SINK = 5.0
# Of keys with one last token in common. The first block of a model hardly sees more than that.
_SAME = 0.95


@dataclass(frozen=True)
class Measured:
    """What a survey found of one block.

    Attributes:
        agreement: mean cosine between the keys of one subject behind different beginnings.
        overlap: root mean square cosine between the keys of different subjects.
        alike: mean cosine between the keys of subjects that end with the same token.
        longest: length of the longest vector that is read, in lengths of the usual one.
    """

    agreement: float
    overlap: float
    alike: float
    longest: float

    @property
    def apart(self) -> float:
        """How far the keys of one subject agree beyond those of different ones."""
        return self.agreement - self.overlap

    @property
    def sink(self) -> bool:
        """Whether some token is an attention sink here: directions that an edit leaves alone."""
        return not self.longest <= _SINK

    @property
    def unfit(self) -> bool:
        """Whether it has a sink, or knows a subject by its last token alone."""
        return self.sink or not self.alike <= _SAME

    def __str__(self) -> str:
        marks = [", a sink"] * self.sink + [", last tokens alone"] * (self.alike > _SAME)
        return (
            f"keys of one subject agree by {self.agreement:.2f}, those of different ones overlap "
            f"by {self.overlap:.2f}{''.join(marks)}"
        )


def survey(model: nn.Module, blocks: Sequence[Block]) -> list[Measured]:
    """Agreement and overlap of keys in each of the blocks.

    Raises:
        LanguageError: the model has no input embeddings, or does not run a block's projection on
            every token.
    """
    words = getattr(getattr(model, "get_input_embeddings", lambda: None)(), "num_embeddings", None)
    if not isinstance(words, int):
        raise LanguageError(
            "survey: expected a causal language model of transformers, got "
            f"{type(model).__name__} without input embeddings; pass layers= the names of "
            "projections."
        )
    ids = _rows(words).to(embedding_device(model))
    found: dict[str, Measured] = {}
    hooks = [(model.get_submodule(b.down), _noting(b.down, ids, found)) for b in blocks]
    with quiet(model), hooked(*hooks):
        model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    lost = [block.down for block in blocks if block.down not in found]
    if lost:
        raise LanguageError(
            f"survey: {type(model).__name__} does not run {lost[0]!r} on every token; pass layers= "
            "the names of projections."
        )
    return [found[block.down] for block in blocks]


def explained(model: nn.Module, blocks: Sequence[Block]) -> Iterator[str]:
    """A line for each block: what was found of it."""
    for block, found in zip(blocks, survey(model, blocks), strict=True):
        yield f"  chosen {block.name}: {found}"


def _rows(words: int) -> Tensor:
    """`[subjects · beginnings, tokens]`."""
    generator = torch.Generator().manual_seed(0)
    subjects = torch.randint(words, (_SUBJECTS, 1, _LONG), generator=generator)
    subjects[_SUBJECTS // 2 :, :, -1] = subjects[: _SUBJECTS // 2, :, -1]
    before = torch.randint(words, (1, _BEGINNINGS, _BEFORE), generator=generator)
    shape = (_SUBJECTS, _BEGINNINGS, -1)
    return torch.cat([before.expand(shape), subjects.expand(shape)], 2).flatten(0, 1)


def _noting(name: str, ids: Tensor, found: dict[str, Measured]) -> Hook:
    def hook(_module: nn.Module, args: object, _output: object) -> None:
        read = first_tensor(args)
        if read is not None and read.shape[:-1].numel() == ids.numel():
            found[name] = _measured(read.detach().reshape(*ids.shape, -1).float())

    return hook


def _measured(read: Tensor) -> Measured:
    keys = read[:, -1].reshape(_SUBJECTS, _BEGINNINGS, -1)
    # A key of zeros has no direction: its cosines are 0.
    keys = keys / keys.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(keys.dtype).tiny)
    # [subjects, subjects] behind each beginning, and [beginnings, beginnings] of each subject.
    between, within = torch.einsum("sbd,tbd->bst", keys, keys), keys @ keys.mT
    one = torch.eye(_SUBJECTS, dtype=torch.bool, device=read.device)
    twins = one.roll(_SUBJECTS // 2, 0)
    itself = torch.eye(_BEGINNINGS, dtype=torch.bool, device=read.device)
    lengths = read.norm(dim=-1)
    return Measured(
        agreement=float(within[:, ~itself].mean()),
        overlap=float(between[:, ~(one | twins)].square().mean().sqrt()),
        alike=float(between[:, twins].mean()),
        longest=float(lengths.max() / lengths[:, 1:].median()),
    )
