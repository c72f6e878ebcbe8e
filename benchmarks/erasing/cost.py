"""What an edit costs at full size: cross-attention projections of random weights, nothing else.

Widths are those of the published configurations; encodings are random, for solving takes as long
whatever they are. The peer is UCE's published loop, an explicit inverse for each projection, in
float32; ours is in float64, and gives the same change.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from rankedit_recipes.concepts import METHODS
from rankedit_recipes.concepts.reading import Rows
from rankedit_recipes.concepts.solving import Kept, solved
from torch import nn

import rankedit as rk
from benchmarks.erasing.published import uce_

# Output widths of key projections, one for each block of transformers; values have the same.
SD15 = (768, (320,) * 5 + (640,) * 5 + (1280,) * 6)
SDXL = (2048, (640,) * 10 + (1280,) * 60)
MODELS = {"Stable Diffusion 1.5": SD15, "Stable Diffusion XL": SDXL}
HELD = 50


def cost(name: str, concepts: int, most: int = 0) -> dict[str, object]:
    """Seconds of both for a number of concepts beside 50 that are held.

    Args:
        name: of the model.
        concepts: how many are erased.
        most: projections that the peer's loop is timed on, of all; 0 for all. Its time is in
            proportion, for each projection is done by itself.
    """
    width, outputs = MODELS[name]
    generator = torch.Generator().manual_seed(0)
    layers = [nn.Linear(width, out, bias=False) for out in outputs for _ in range(2)]
    keys, guides, held = (
        torch.randn(count, width, generator=generator) for count in (concepts, concepts, HELD)
    )
    chosen = layers[:: max(1, len(layers) // most)] if most else layers
    plain = [layer.weight.detach().clone() for layer in chosen]
    rows = [
        Rows(k[None].double(), g[None].double(), torch.ones(1, dtype=torch.bool))
        for k, g in zip(keys, guides, strict=True)
    ]

    def ours() -> list[rk.LowRank]:
        found = solved(rows, Kept(held.double()), METHODS["uce"])
        changed = found.up.T.contiguous().float()
        return [rk.LowRank(rk.linear_output(m, changed).T.double(), found.down) for m in layers]

    seconds, edits = _timed(ours)
    peer, _ = _timed(lambda: uce_(chosen, list(keys), list(guides), list(held)))
    places = range(0, len(layers), max(1, len(layers) // most)) if most else range(len(layers))
    apart = max(
        float((layer.weight - weight - edits[i].delta()).norm() / edits[i].delta().norm())
        for i, layer, weight in zip(places, chosen, plain, strict=True)
    )
    return {
        "model": name, "concepts": concepts, "ours": seconds,
        "published": peer * len(layers) / len(chosen), "timed": len(chosen), "of": len(layers),
        "apart": apart, "file": 8 * (2 * width * concepts * 2 + HELD * width),
        "weights": 4 * width * 2 * sum(outputs),
    }  # fmt: skip


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    found = work()
    return time.perf_counter() - start, found
