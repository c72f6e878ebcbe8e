"""Where a picture attends to a word: maps, and how much of the picture the word takes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from rankedit_recipes.diffusion.parts import Parts
from rankedit_recipes.sandbox.images.judge import judge
from rankedit_recipes.sandbox.images.vocabulary import CATEGORIES
from torch import Tensor
from torch.nn.functional import interpolate

from personalisation.prompts import Prompt

GRID = 12


@dataclass
class Recorder:
    """Plain attention of diffusers, which also keeps its probabilities.

    Attributes:
        prompts: in a batch, after as many unconditional ones.
        total: sum over layers and steps of the mean over heads, `[prompts, tokens, GRID, GRID]`.
        calls: how many were added.
    """

    prompts: int
    total: Tensor | float = 0.0
    calls: int = field(default=0)

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, *_: Any, **__: Any
    ) -> Tensor:
        """Attend."""
        query = attn.head_to_batch_dim(attn.to_q(hidden_states))
        key = attn.head_to_batch_dim(attn.to_k(encoder_hidden_states))
        value = attn.head_to_batch_dim(attn.to_v(encoder_hidden_states))
        found = attn.get_attention_scores(query, key)
        self._keep(found, attn.heads)
        made: Tensor = attn.batch_to_head_dim(found @ value)
        return attn.to_out[1](attn.to_out[0](made))

    def _keep(self, found: Tensor, heads: int) -> None:
        pixels, tokens = found.shape[1:]
        edge = round(pixels**0.5)
        mean = found.reshape(-1, heads, pixels, tokens).mean(1)[-self.prompts :]
        maps = mean.transpose(1, 2).reshape(self.prompts, tokens, edge, edge).cpu()
        self.total = self.total + interpolate(maps.float(), (GRID, GRID), mode="bilinear")
        self.calls += 1

    @property
    def maps(self) -> Tensor:
        """The mean `[prompts, tokens, GRID, GRID]`; over tokens it adds up to 1."""
        return self.total / self.calls


@contextlib.contextmanager
def recorded(pipe: Any, prompts: int) -> Iterator[Recorder]:
    """Record the attention on the text while pictures of so many prompts are made."""
    recorder = Recorder(prompts)
    owners = {name.rpartition(".")[0] for name in Parts(pipe).targets.keys}
    before = dict(pipe.unet.attn_processors)
    changed = {
        name: recorder if name.removesuffix(".processor") in owners else processor
        for name, processor in before.items()
    }
    pipe.unet.set_attn_processor(changed)
    try:
        yield recorder
    finally:
        pipe.unet.set_attn_processor(before)


def word_maps(pipe: Any, maps: Tensor, texts: list[str], word: str) -> Tensor:
    """The maps `[prompts, GRID, GRID]` of a word, summed over its occurrences."""
    parts = Parts(pipe)
    places = parts.text.positions(parts.text.encode(texts), word)
    return torch.stack([own[found].sum(0) for own, found in zip(maps, places, strict=True)])


def studied(
    world: Any, concept: Any, phrase: str, asked: list[tuple[Prompt, int]], word: str = ""
) -> dict[str, Any]:
    """Maps of a word that stands for a concept, beside the pictures, and two shares.

    Args:
        world: the study's world, with the concept in its pipeline.
        concept: the concept.
        phrase: what prompts say.
        asked: prompts with a second object, and seeds; one batch.
        word: the word in it whose attention is meant; the phrase itself if not given.

    Returns:
        `maps`, `pixels`; `taken`: mean attention of a pixel that the word takes; `inside`: the part
        of it that falls into the box of the concept's object, as the judge finds it.
    """
    with recorded(world.sampler, len(asked)) as recorder:
        pixels = world.draw(asked, phrase)
    texts = [prompt.text.format(phrase) for prompt, _ in asked]
    maps = word_maps(world.sampler, recorder.maps, texts, word or phrase)
    verdict = judge(world.judges.finder, pixels)
    boxes = verdict.boxes[:, CATEGORIES.index(concept.category)]
    inside = (maps * _box_masks(boxes)).sum((1, 2)) / maps.sum((1, 2))
    return {
        "maps": [[[round(v, 4) for v in row] for row in one] for one in maps.tolist()],
        "pixels": pixels.tolist(),
        "texts": texts,
        "taken": maps.mean((1, 2)).tolist(),
        "inside": inside.tolist(),
    }


def _box_masks(boxes: Tensor) -> Tensor:
    """Ones inside boxes (centre and diameter), `[n, GRID, GRID]`."""
    middle = (torch.arange(GRID) + 0.5) / GRID
    x, y, half = boxes[:, 0, None], boxes[:, 1, None], boxes[:, 2, None] / 2
    across, down = (middle - x).abs() <= half, (middle - y).abs() <= half
    return (down[:, :, None] & across[:, None, :]).float()
