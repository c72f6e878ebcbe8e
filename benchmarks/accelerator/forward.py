"""A forward through a gated edit against the plain layer: eager, compiled, under CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

import rankedit as rk
from accelerator.kept import Place, Row, check_close

# By model: the widths of projections of the text, and how many tokens of it a step reads.
WIDTHS = {
    "SD 1.5": ((768, 320), (768, 1280), 2 * 77),
    "SDXL": ((2048, 640), (2048, 1280), 2 * 77),
    "Flux": ((3072, 3072), (4096, 3072), 512),
}
TARGET = 1.05


def units(place: Place) -> dict[str, Callable[[], Row]]:
    """One for each width and way to run."""
    ways = ("eager", "compiled", *(["CUDA graph"] if place.cuda else []))
    found: dict[str, Callable[[], Row]] = {}
    for model, (*sizes, tokens) in WIDTHS.items():
        for size in sizes[:1] if place.small else sizes:
            for way in ways:
                name = f"{model}, {size[0]}→{size[1]}, {way}"
                found[name] = lambda s=size, t=tokens, w=way: measured(place, *s, t, w)
    return found


def measured(place: Place, width: int, out: int, tokens: int, way: str) -> Row:
    """Ratio of the edited layer's time to the plain one's."""
    generator = torch.Generator().manual_seed(0)
    layer, plain = nn.Linear(width, out, bias=False), nn.Linear(width, out, bias=False)
    nn.init.normal_(layer.weight, std=width**-0.5, generator=generator)
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(1, tokens, width, generator=generator)
    keys, targets = x[0, :4].clone(), torch.randn(4, out, generator=generator)
    edit = rk.GatedEdit(keys, targets, rk.Metric.identity(width), rk.Sigmoid(0.5, 0.1))
    with torch.no_grad():
        bare, added = plain(x).double(), _added(plain, edit, x)
    rights = [bare + strength * added for strength in (1.0, 0.3)]
    layer, plain, x = (part.to(place.device) for part in (layer, plain, x))
    with torch.no_grad(), rk.attach(layer, edit) as attachment:
        calls = {}
        for name, module in (("ours", layer), ("plain", plain)):
            calls[name] = _call(place, module, x, way)
        errors = []
        for strength, right in zip((1.0, 0.3), rights, strict=True):
            attachment.set(strength=strength)
            if way == "CUDA graph":  # a graph keeps the addresses that it was recorded with
                calls["ours"] = _call(place, layer, x, way)
            # Products on cards may be in TF32 where somebody allowed it.
            errors.append(check_close("the edited forward", calls["ours"](), right, 1e-3))
        return {"error": f"{max(errors):.1g}", **place.against(*calls.values()), "target": TARGET}


def _added(layer: nn.Module, edit: rk.GatedEdit, x: Tensor) -> Tensor:
    """What the gated edit adds, in float64, from its definition."""
    keys, rows = edit.keys.double(), x.double()
    parts = torch.linalg.solve(keys @ keys.T, keys @ rows.mT).mT
    return edit.opening(x) @ edit.targets.double() - parts @ keys @ layer.weight.double().T


def _call(place: Place, module: nn.Module, x: Tensor, way: str) -> Callable[[], Tensor]:
    if way == "eager":
        return lambda: module(x)
    if way == "compiled":
        backend = "inductor" if place.cuda else "aot_eager"  # without minutes of a C++ compiler
        compiled = torch.compile(module, backend=backend, fullgraph=True)
        compiled(x)
        return lambda: compiled(x)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            module(x)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = module(x)

    def replay() -> Tensor:
        graph.replay()
        return output

    return replay
