"""`collect` against the bare forward, and `solve_edit` on the card against the processor."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

import rankedit as rk
from accelerator.kept import Place, Row, check_close

TARGET = 1.25  # of the bare forward, at width 4,096


def collecting(place: Place) -> dict[str, Callable[[], Row]]:
    """One for each width and precision of products."""
    widths = (96, 256) if place.small else (1536, 4096, 8192, 14336)
    return {
        f"width {width}, {products} products": lambda w=width, p=products: _collect(place, w, p)
        for width in widths
        for products in ("float32", "float64")
    }


def _collect(place: Place, width: int, products: str) -> Row:
    # A block of a language model: up, and back down from what is watched.
    inner = max(64, width // 4)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(inner, width), nn.SiLU(), nn.Linear(width, inner))
    batches = [torch.randn(4, 64 if place.small else 512, inner) for _ in range(4)]
    dtype = torch.bfloat16 if place.cuda else torch.float32

    def moments(of: nn.Module, given: list[torch.Tensor]) -> torch.Tensor:
        return rk.collect(of, "2", given, products=products, progress=False)["2"].matrix

    wide = torch.nn.functional.silu(model[0].double()(batches[0].double())).flatten(0, 1)
    right = wide.T @ wide / len(wide)
    model.float()
    here, given = model.to(place.device), [batch.to(place.device) for batch in batches]
    error = check_close("a second moment", moments(here, given[:1]), right, 1e-4)
    here, given = here.to(dtype), [batch.to(dtype) for batch in given]

    def bare() -> None:
        with torch.no_grad():
            for batch in given:
                here(batch)

    return {
        "error": f"{error:.1g}",
        **place.against(lambda: moments(here, given), bare, 9),
        **({"target": TARGET} if width == 4096 else {}),
    }


def solving(place: Place) -> dict[str, Callable[[], Row]]:
    """One for each number of keys."""
    counts = (1, 10, 100) if place.small else (1, 10, 100, 1000, 10_000)
    return {f"{count} keys": lambda n=count: _solve(place, n) for count in counts}


def _in_float64(
    layer: nn.Linear, keys: Tensor, values: Tensor, tokens: Tensor, softness: float
) -> Tensor:
    """`ΔW = Rᵀ K (Kᵀ K + s C)⁻¹`, dense and without the library: C is the mean of `x xᵀ`."""
    keys, wide = keys.double(), tokens.double()
    lacking = values.double() - keys @ layer.weight.detach().double().T
    moment = wide.T @ wide / len(wide)
    system = keys.T @ keys + softness * moment
    return torch.linalg.solve(system, keys.T @ lacking).T


def _solve(place: Place, count: int) -> Row:
    width, out = (128, 64) if place.small else (4096, 4096)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(2 * width, width, generator=generator)
    keys, values = (torch.randn(count, size, generator=generator) for size in (width, out))
    layer = nn.Linear(width, out, bias=False)
    metric = rk.Metric.from_moment(rk.SecondMoment(width).update(tokens))
    moment = rk.SecondMoment(width, device=place.device).update(tokens.to(place.device))
    there = rk.Metric.from_moment(moment)
    # More keys than dimensions have no equality: all are softened, as MEMIT does.
    softness = 1.0

    def on_processor() -> rk.LowRank:
        return rk.solve_edit(layer, keys, values, metric, softness=softness)

    right = _in_float64(layer, keys, values, tokens, softness)
    moved = nn.Linear(width, out, bias=False).to(place.device)
    moved.load_state_dict(layer.state_dict())
    given = keys.to(place.device), values.to(place.device)

    def on_device() -> rk.LowRank:
        return rk.solve_edit(moved, *given, there, softness=softness)

    found = on_device()
    error = check_close("a solved edit", found.delta().cpu().float() @ tokens[:64].T,
                        right.float() @ tokens[:64].T, 1e-3)  # fmt: skip
    return {"error": f"{error:.1g}", **place.against(on_device, on_processor, 3)}
