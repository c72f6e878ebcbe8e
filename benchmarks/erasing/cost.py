"""What an edit costs at full size: seconds of the processor and peak memory, beside UCE's loop.

The denoisers are built from the published configurations without memory; their cross-attention
projections, which are all that an edit touches, get random weights. Encodings are random: solving
takes as long whatever they are. Each side runs in a process of its own, on one thread. The peer is
the published loop, an explicit inverse for each projection, in float32; ours is in float64.
"""

import multiprocessing
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.erasing.units import Unit
from benchmarks.erasing.world import World

_SD15: dict[str, Any] = {"cross_attention_dim": 768, "attention_head_dim": 8, "sample_size": 64}
_SDXL: dict[str, Any] = {
    "sample_size": 128, "cross_attention_dim": 2048, "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10), "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True, "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip
MODELS = {"Stable Diffusion 1.5": _SD15, "Stable Diffusion XL": _SDXL}
HELD = 50
# Projections that the peer's loop is timed on; its time is in proportion, for each is by itself.
_TIMED = {"Stable Diffusion 1.5": 8, "Stable Diffusion XL": 4}


def projections(name: str) -> tuple[list[tuple[int, int]], int]:
    """Shapes `(out, in)` of a model's cross-attention projections, and all its parameters."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        model = UNet2DConditionModel(**MODELS[name])
    shapes = [
        (layer.out_features, layer.in_features)
        for place, layer in model.named_modules()
        if place.endswith(("attn2.to_k", "attn2.to_v"))
    ]
    return shapes, sum(p.numel() for p in model.parameters())


def _layers(shapes: Sequence[tuple[int, int]]) -> list[nn.Module]:
    torch.manual_seed(0)
    return [nn.Linear(inside, outside, bias=False) for outside, inside in shapes]


def _encodings(width: int, concepts: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    keys, guides, held = (
        torch.randn(count, width, generator=generator) for count in (concepts, concepts, HELD)
    )
    return keys, guides, held


def _ours(shapes: Sequence[tuple[int, int]], concepts: int) -> dict[str, float]:
    from rankedit_recipes.concepts import METHODS
    from rankedit_recipes.concepts.reading import Rows
    from rankedit_recipes.concepts.solving import Kept, solved

    import rankedit as rk
    from benchmarks.erasing.published import uce_

    layers = _layers(shapes)
    keys, guides, held = _encodings(shapes[0][1], concepts)
    rows = [
        Rows(k[None].double(), g[None].double(), torch.ones(1, dtype=torch.bool))
        for k, g in zip(keys, guides, strict=True)
    ]

    def work() -> list[rk.LowRank]:
        found = solved(rows, Kept(held.double()), METHODS["uce"])
        changed = found.up.T.contiguous()
        # As `Edited.edits` does, in its numbers.
        return [rk.LowRank(rk.linear_output(m, changed).T.double(), found.down) for m in layers]

    told, edits = _measured(work)
    first = layers[0].weight.detach().clone()
    uce_(layers[:1], list(keys), list(guides), list(held))
    delta = edits[0].delta()
    told["apart"] = float((layers[0].weight - first - delta).norm() / delta.norm())
    return told


def _theirs(shapes: Sequence[tuple[int, int]], concepts: int) -> dict[str, float]:
    from benchmarks.erasing.published import uce_

    keys, guides, held = _encodings(shapes[0][1], concepts)
    layers = _layers(shapes)
    told, _ = _measured(lambda: uce_(layers, list(keys), list(guides), list(held)))
    return told


def _measured(work: Callable[[], Any]) -> tuple[dict[str, float], Any]:
    """Seconds of the processor and megabytes at the peak, above what was there."""
    # The first products of a process load libraries; both sides have done that then.
    torch.linalg.inv(torch.eye(64))
    torch.linalg.cholesky(torch.eye(64, dtype=torch.float64))
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    before, start = _resident("VmRSS"), time.process_time()
    found = work()
    seconds = time.process_time() - start
    return {"seconds": seconds, "megabytes": _resident("VmHWM") - before}, found


def _resident(name: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) / 1e3 for line in lines if line.startswith(name))


def _alone(work: Callable[..., dict[str, float]], *given: object) -> dict[str, float]:
    """In a new process with one thread, so that neither side finds what the other has loaded."""
    with multiprocessing.get_context("spawn").Pool(1, torch.set_num_threads, (1,)) as pool:
        return pool.apply(work, given)


def _cost(name: str, concepts: int) -> Unit:
    def work(_world: World, _: Path) -> dict[str, Any]:
        shapes, parameters = projections(name)
        chosen = shapes[:: len(shapes) // _TIMED[name]][: _TIMED[name]]
        ours = _alone(_ours, shapes, concepts)
        theirs = _alone(_theirs, chosen, concepts)
        theirs["seconds"] *= len(shapes) / len(chosen)
        width = shapes[0][1]
        return {
            "of": "cost", "model": name, "concepts": concepts, "ours": ours, "published": theirs,
            "timed": len(chosen), "projections": len(shapes),
            # Keys, guides, the map's two factors and held keys, in float64, as `Edited.save` has.
            "file": 8 * width * (4 * concepts + HELD), "weights": 2 * parameters,
        }  # fmt: skip

    return Unit(f"cost-{name}-{concepts}", work)


def costs() -> list[Unit]:
    """One concept and a hundred, beside 50 that are held."""
    return [_cost(name, count) for name in MODELS for count in (1, 100)]
