"""Forwards in two threads while a third one attaches and detaches: none may be wrong.

    python benchmarks/threads.py                            60 s; exits with 1 if any was wrong
    python benchmarks/threads.py --against ../other-tree    and forwards beside another checkout's

A forward is right if it gives what the layer gives with the edit that stays, or with both. Beside
another checkout, two processes time the same forwards in turn, so that both meet the same machine,
in the processor's time, of which whoever else runs there takes less.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import rankedit as rk

HERE = Path(__file__).resolve().parent.parent
# (in, out, tokens, keys; 0 for a static edit of rank 4)
SIZES = ((64, 64, 16, 1), (768, 320, 154, 1), (768, 1280, 616, 4), (768, 768, 154, 0))


def problem(width: int, out: int, tokens: int, keys: int) -> tuple[nn.Linear, rk.Edit, Tensor]:
    """A layer, an edit of it, and what the layer reads."""
    generator = torch.Generator().manual_seed(keys)
    layer = nn.Linear(width, out)
    nn.init.normal_(layer.weight, std=width**-0.5, generator=generator)
    inputs = torch.randn(2, tokens // 2, width, generator=generator)
    if not keys:
        up, down = (torch.randn(s, generator=generator) / 99 for s in ((out, 4), (4, width)))
        return layer, rk.LowRank(up, down), inputs
    key, target = (torch.randn(keys, size, generator=generator) for size in (width, out))
    gate = rk.Sigmoid(0.1, 0.5)
    return layer, rk.GatedEdit(key, target, rk.Metric.identity(width), gate), inputs


# ------------------------------------------------------------------------------------- the stress


FAULTS = ("wrong", "without a graph", "errors")


def stress(seconds: float) -> dict[str, int]:
    """Counts of forwards, of wrong ones, of lost graphs, of errors and of changes."""
    layer, stays, x = problem(*SIZES[0])
    comes = rk.LowRank(torch.ones(64, 1), torch.ones(1, 64) / 64)
    rk.attach(layer, stays)
    right = [layer(x).detach()]
    with rk.attach(layer, comes):
        right.append(layer(x).detach())
    counts, lock, stop = Counter(), threading.Lock(), time.monotonic() + seconds

    def forward() -> list[str]:
        y = layer(x)
        fits = any(torch.allclose(y, other, rtol=1e-4, atol=1e-4) for other in right)
        found = {"forwards": True, "wrong": not fits, "without a graph": not y.requires_grad}
        return [name for name, noted in found.items() if noted]

    def change() -> list[str]:
        with rk.attach(layer, comes):
            return ["changes"]

    def often(act: Callable[[], list[str]]) -> None:
        while time.monotonic() < stop:
            try:
                found = act()
            except Exception as error:
                found = ["errors"]
                print(repr(error), file=sys.stderr)
            with lock:
                counts.update(found)

    threads = [threading.Thread(target=often, args=(act,)) for act in (forward, forward, change)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {name: counts[name] for name in ("forwards", "changes", *FAULTS)}


# -------------------------------------------------------------------------------- beside another


def serve() -> None:
    """Time forwards on request: a line with a size's number in, seconds for one forward out."""
    torch.set_num_threads(1)
    layers = []
    for size in SIZES:
        layer, edit, x = problem(*size)
        rk.attach(layer, edit)
        layers.append((layer, x))
    with torch.no_grad():
        for line in sys.stdin:
            layer, x = layers[int(line)]
            best = float("inf")
            for _ in range(5):
                started = time.process_time()
                for _ in range(8):
                    layer(x)
                best = min(best, (time.process_time() - started) / 8)
            print(best, flush=True)


def compare(other: Path, rounds: int) -> dict[str, float]:
    """Print and give the median, over rounds, of our time for a forward over the other's."""
    workers = []
    for root in (HERE, other.resolve()):
        environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(Path(__file__).resolve()), "--serve"]
        workers.append(
            subprocess.Popen(
                command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        )

    def timed(worker: subprocess.Popen[str], size: int) -> float:
        assert worker.stdin is not None
        assert worker.stdout is not None
        worker.stdin.write(f"{size}\n")
        worker.stdin.flush()
        return float(worker.stdout.readline())

    ratios: dict[str, float] = {}
    for index, (width, out, tokens, keys) in enumerate(SIZES):
        found = []
        for number in range(rounds):
            order = workers if number % 2 else workers[::-1]  # who comes first has no advantage
            times = {id(worker): timed(worker, index) for worker in order}
            found.append(times[id(workers[0])] / times[id(workers[1])])
        kind = f"{keys} keys" if keys else "static"
        size = f"{width}→{out}, {tokens} tokens, {kind}"
        ratios[size] = statistics.median(found)
        print(f"{size}: {ratios[size]:.3f} of the other's time", flush=True)
    for worker in workers:
        worker.communicate()
    return ratios


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="how long (default: 60)")
    parser.add_argument("--against", type=Path, help="another checkout, to time forwards beside")
    parser.add_argument("--rounds", type=int, default=40, help="timings of each size")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve()
        return 0
    # Some of the attachments come and go between two forwards.
    warnings.filterwarnings("ignore", "attach: .* to the layer alone", rk.RankeditWarning)
    counts = stress(options.seconds)
    print(json.dumps(counts), flush=True)
    if options.against:
        compare(options.against, options.rounds)
    return int(any(counts[name] for name in FAULTS))


if __name__ == "__main__":
    raise SystemExit(main())
