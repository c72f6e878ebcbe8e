"""Many edits: time and memory against their number, for a ledger and for a stream in a folder.

    python benchmarks/scale.py                      1,000, 10,000 and 100,000 facts; some minutes
    python benchmarks/scale.py --numbers 100 1000   others; what is known is not measured again

Keys and values are random, of the widths of a small language model's down-projection. Each number
runs in a process of its own, for its peak of memory is its own then (of /proc, which Linux has).
What is timed:

    ledger   `add` (of one, at that size), `add_lacking` of all, `names`, `remove` of one, `edit`
    stream   in a folder: facts entered by 1,000, 64 more, `list` as the command lists, `undo` of
             one; the folder opened again, an `undo` of one right after that, `edits` of a third
             opening, and `check`

The exponent is the slope of the logarithm of the time from one number to the next: 0 for what takes
as long whatever the number, 1 for what is in proportion to it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rankedit_recipes.language.commands.tasks import listed
from rankedit_recipes.language.editing import Engine
from rankedit_recipes.language.methods import METHODS
from rankedit_recipes.language.model.blocks import Block
from rankedit_recipes.language.requests import Request
from rankedit_recipes.language.searching.spreading import Facts
from rankedit_recipes.language.streams.stream import Stream
from torch import nn

import rankedit as rk
from rankedit.atomic import atomic_write

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks/results/scale.json"
NUMBERS = (1_000, 10_000, 100_000)
LAYER, WIDTHS = "down", (1536, 576)
TOGETHER, MORE, PROBES = 1000, 64, 20


class Words:
    """As much of a tokenizer as a stream asks for."""

    def get_vocab(self) -> dict[str, int]:
        """One word."""
        return {"a": 0}


class World:
    """A layer, what a change of it costs, and facts about it, as many as are asked for."""

    def __init__(self, widths: tuple[int, int]) -> None:
        self.width, self.out = widths
        self._generator = torch.Generator().manual_seed(0)
        self._mix = self.normal(self.width, self.width) / self.width**0.5
        self.model = nn.ModuleDict({LAYER: nn.Linear(self.width, self.out, bias=False)})
        data = self.normal(2 * self.width, self.width) @ self._mix
        self.metric = rk.Metric.from_moment(rk.SecondMoment(self.width).update(data))
        self.metric.guarded.solve(self._mix[:1])  # factorised once, before anything is timed

    def normal(self, *shape: int) -> torch.Tensor:
        """Random numbers."""
        return torch.randn(*shape, generator=self._generator)

    def facts(self, first: int, count: int) -> Facts:
        """Facts with numbers from `first` on."""
        requests = [
            Request("{} plays the", f"Person number {number}", "piano")
            for number in range(first, first + count)
        ]
        keys = self.normal(count, self.width) @ self._mix
        return Facts(tuple(requests), {LAYER: keys}, {LAYER: self.normal(count, self.out)}, {})

    def engine(self) -> Engine:
        """What a stream needs of a model."""
        settings = METHODS["memit"].shared_by(1)
        blocks = (Block(0, LAYER, LAYER, direct=True),)
        tokenizer: Any = Words()
        return Engine(self.model, tokenizer, settings, blocks, {LAYER: self.metric}, (), False)


def timed(act: Callable[[], object]) -> float:
    started = time.perf_counter()
    act()
    return time.perf_counter() - started


def memory(field: str) -> float:
    """Memory of this process in GB: `VmRSS`, now, or `VmHWM`, the most since `forget_peak`."""
    status = Path("/proc/self/status").read_text()
    return float(status.partition(f"{field}:")[2].split()[0]) / 1e6


def forget_peak() -> None:
    """Begin the peak anew: factorising the metric took more than a thousand facts do."""
    Path("/proc/self/clear_refs").write_text("5")


def ledger_times(world: World, number: int) -> dict[str, float]:
    """Seconds for each call of a ledger with so many edits."""
    ledger = rk.Ledger(world.model[LAYER], world.metric, softness=1.0)
    facts = world.facts(0, number)
    keys, lacking = facts.keys[LAYER], facts.lacking[LAYER]
    labels = [request.label for request in facts.requests]
    found = {"add_lacking, all": timed(lambda: ledger.add_lacking(labels, keys, lacking))}
    rows = [(f"one {n}", keys[n : n + 1], lacking[n : n + 1]) for n in range(PROBES)]
    found["add, one"] = timed(lambda: [ledger.add(*row) for row in rows]) / PROBES
    found["names"] = timed(ledger.names)
    found["remove, one"] = timed(lambda: [ledger.remove(row[0]) for row in rows]) / PROBES
    found["edit"] = timed(ledger.edit)
    return found


def stream_times(world: World, number: int, folder: Path) -> dict[str, float]:
    """Seconds for each call of a stream in a folder with so many facts."""
    stream = Stream(world.engine(), folder)
    entered = 0.0
    for start in range(0, number, TOGETHER):
        facts = world.facts(start, min(TOGETHER, number - start))
        entered += timed(partial(stream.enter, facts))
    found = {"enter, all by 1,000": entered}
    found["enter, 64 more"] = timed(partial(stream.enter, world.facts(number, MORE)))
    found["list"] = timed(lambda: list(listed(folder, "number 77")))
    names = stream.names()
    chosen = [names[0], names[len(names) // 2], names[-1]]  # anywhere
    found["undo, one"] = max(timed(partial(stream.undo, name)) for name in chosen)
    return found


def opened_times(world: World, folder: Path) -> dict[str, float]:
    """Seconds for opening the folder again, for a change right after that, and for solving."""
    opened: list[Stream] = []
    found = {"open": timed(lambda: opened.append(Stream(world.engine(), folder)))}
    found["undo, one, after opening"] = timed(opened[0].undo)
    # Of another opening, which has to read the names too.
    found["edits, after opening"] = timed(Stream(world.engine(), folder).edits)
    found["check"] = timed(opened[0].check)
    return found


def measured(kind: str, number: int, widths: tuple[int, int]) -> dict[str, float]:
    """What one process does."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    warnings.simplefilter("ignore")  # random keys are nearly parallel here and there
    world = World(widths)
    forget_peak()
    before = memory("VmRSS")
    if kind == "ledger":
        found = ledger_times(world, number)
    else:
        with tempfile.TemporaryDirectory(prefix="rankedit-scale-") as place:
            folder = Path(place) / "stream"
            found = stream_times(world, number, folder)
            found |= opened_times(world, folder)
    return {**found, "memory, GB": memory("VmHWM") - before}


def run(numbers: Sequence[int], out: Path, widths: tuple[int, int] = WIDTHS) -> dict[str, Any]:
    """Measure what the file lacks, and write it after each number."""
    results: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {}
    results["widths"] = list(widths)
    for number in numbers:
        for kind in ("ledger", "stream"):
            there = results.setdefault(kind, {})
            if str(number) in there:
                continue
            command = [sys.executable, __file__, "--one", kind, str(number), *map(str, widths)]
            path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
            environment = {**os.environ, "PYTHONPATH": path}
            done = subprocess.run(
                command, capture_output=True, text=True, env=environment, check=False
            )
            if done.returncode:
                raise SystemExit(done.stderr)
            there[str(number)] = json.loads(done.stdout.splitlines()[-1])
            out.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(out) as aside:
                aside.write_text(json.dumps(results, indent=1) + "\n")
            print(f"{kind}, {number:,}: {there[str(number)]}", file=sys.stderr, flush=True)
    return results


def exponents(by_number: Mapping[str, Mapping[str, float]], name: str) -> list[float]:
    """The slope from each number to the next."""
    points = sorted((int(number), values[name]) for number, values in by_number.items())
    return [
        math.log(max(after, 1e-9) / max(before, 1e-9)) / math.log(m / n)
        for (n, before), (m, after) in itertools.pairwise(points)
    ]


def table(results: Mapping[str, Any]) -> str:
    """The results in Markdown: seconds, gigabytes, and exponents."""
    numbers = sorted(map(int, results["ledger"]))
    lines = ["| | " + " | ".join(f"{n:,}" for n in numbers) + " | exponent |"]
    lines += ["|---|" + "---:|" * (len(numbers) + 1)]
    for kind in ("ledger", "stream"):
        for name in results[kind][str(numbers[0])]:
            values = [results[kind][str(n)][name] for n in numbers]
            slopes = ", ".join(f"{slope:.2f}" for slope in exponents(results[kind], name))
            cells = " | ".join(f"{value:.3g}" for value in values)
            lines.append(f"| {kind}: {name} | {cells} | {slopes or '-'} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--numbers", nargs="+", type=int, default=NUMBERS)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    if given.one:
        kind, number, width, out = given.one
        print(json.dumps(measured(kind, int(number), (int(width), int(out)))))
        return
    print(table(run(given.numbers, given.out)))


if __name__ == "__main__":
    main()
