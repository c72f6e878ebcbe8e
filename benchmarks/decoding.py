"""A forward of one token through an edited layer against the plain one.

    python benchmarks/decoding.py

Language models spend their time in such forwards. Both layers run in turn in one process, of which
the processor's time is taken, so that whoever else runs on the machine takes less from the ratio;
results are checked against float64 first. Written to benchmarks/results/decoding.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import rankedit as rk
from rankedit.atomic import atomic_write

RESULTS = Path(__file__).resolve().parent / "results" / "decoding.json"
SIZES = ((576, 1536), (4096, 14336))
KINDS = ("static, rank 1", "static, rank 4", "gated, 1 key", "gated, 4 keys", "told")
TARGET = 1.10


def edit_of(kind: str, width: int, out: int) -> rk.Edit:
    """An edit of a kind, seeded."""
    generator = torch.Generator().manual_seed(0)
    number = int(next((word for word in kind.split() if word.isdigit()), 1))
    first, second = (torch.randn(number, size, generator=generator) for size in (width, out))
    if kind.startswith("static"):
        return rk.LowRank(second.T / 99, first)
    if kind.startswith("gated"):
        return rk.GatedEdit(first, second, rk.Metric.identity(width), rk.Sigmoid(0.1, 0.5))
    return rk.PlacedEdit(torch.stack([second, -second], 1), width)


def expected(layer: nn.Linear, edit: rk.Edit, x: Tensor) -> Tensor:
    """What the edited layer must give, in float64, from the definitions of the edits."""
    x, plain = x.double(), layer(x).double()
    if isinstance(edit, rk.LowRank):
        return plain + x @ edit.down.double().T @ edit.up.double().T
    if isinstance(edit, rk.GatedEdit):
        keys = edit.keys.double()
        parts = torch.linalg.solve(keys @ keys.T, keys @ x.mT.squeeze(0)).T
        lost = parts @ keys @ layer.weight.double().T
        return plain - lost + edit.opening(x) @ edit.targets.double()
    return plain + 0.4 * torch.tensor([0.75, 0.25]).double() @ edit.targets[0].double()


def seconds(call: Callable[[], object], times: int) -> float:
    """Of the processor, for one call."""
    started = time.process_time()
    for _ in range(times):
        call()
    return (time.process_time() - started) / times


def measured(kind: str, width: int, out: int, pairs: int) -> dict[str, object]:
    """The ratio of the edited layer's time to the plain one's, once the result is right."""
    layer, plain = nn.Linear(width, out), nn.Linear(width, out)
    plain.load_state_dict(layer.state_dict())
    edit, x = edit_of(kind, width, out), torch.randn(1, 1, width)
    times = max(1, 4_000_000 // (width * out))
    with torch.no_grad(), rk.attach(layer, edit) as attachment:
        if kind == "told":
            attachment.tell(rows=torch.tensor([[0.4]]), time=0.25)
        torch.testing.assert_close(
            layer(x).double(), expected(plain, edit, x), rtol=1e-4, atol=1e-3
        )
        ratios, ours = [], []
        for index in range(pairs):
            order = (layer, plain) if index % 2 else (plain, layer)  # who is first gains nothing
            took = {each: seconds(lambda each=each: each(x), times) for each in order}
            ratios.append(took[layer] / took[plain])
            ours.append(took[layer])
    low, median, high = statistics.quantiles(ratios, n=4)
    return {
        "layer": f"{width}→{out}",
        "edit": kind,
        "ratio": round(median, 3),
        "quartiles": [round(low, 3), round(high, 3)],
        "microseconds": round(1e6 * statistics.median(ours), 1),
        "target": TARGET,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=101, help="timings of each (default: 101)")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = []
    for width, out in SIZES:
        for kind in given.kinds:
            rows.append(measured(kind, width, out, given.pairs if width < 1000 else 21))
            print(rows[-1], flush=True)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(given.out) as part:
        part.write_text(json.dumps({"torch": torch.__version__, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
