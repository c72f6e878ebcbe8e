"""What editing costs, as ratios: statistics, the search for values, memory, files."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from rankedit_recipes import language
from rankedit_recipes.language.editing import Engine
from rankedit_recipes.language.searching.values import find_values
from rankedit_recipes.language.settings import Settings
from rankedit_recipes.sandbox import facts

from editing.direct import Editor
from editing.rows import Row
from editing.world import STATISTICS_SEED, World

TEXTS = 200
"""For the cost of statistics."""

TOGETHER, APART = 48, 12
"""Requests whose values are searched for together, and one by one."""


def costs(world: World, settings: Settings, layers: Any) -> Row:
    """Ratios of times and of peak memory."""
    numbers = statistics_cost(world) | search_cost(world, settings, layers)
    return Row("", {}, numbers)


def statistics_cost(world: World) -> dict[str, float]:
    """All layers in one pass, against one pass for each layer."""
    texts = list(islice(facts.corpus(STATISTICS_SEED), TEXTS))

    def collect(layers: Any) -> None:
        language.collect_statistics(
            world.model, world.tokenizer, texts, layers=layers, batch=64, progress=False
        )

    collect([0])  # warm
    one = seconds(lambda: collect(None))
    each = sum(seconds(lambda i=i: collect([i])) for i in range(len(world.blocks)))
    return {"statistics, one pass": one, "statistics, layer by layer": each}


def search_cost(world: World, settings: Settings, layers: Any) -> dict[str, float]:
    """Seconds and peak memory of the search for values: a batch, against one request at a time."""
    requests = [case.request for case in world.cases[:TOGETHER]]
    engine = Editor(world).engine(settings, layers)

    def search(part: Any) -> None:
        find_values(world.model, world.tokenizer, part, engine.chosen[-1], settings,
                    prefixes=engine.prefixes, progress=False)  # fmt: skip

    search(requests[:1])
    together = seconds(lambda: search(requests)) / TOGETHER
    apart = seconds(lambda: [search([request]) for request in requests[:APART]]) / APART
    weights = sum(p.numel() * p.element_size() for p in world.model.parameters())
    edit = sum(
        2 * (metric.dim + world.model.get_submodule(name).nf)  # type: ignore[operator]
        for name, metric in engine.metrics.items()
    )
    return {
        "seconds per fact, together": together,
        "seconds per fact, one by one": apart,
        "peak MB, together": peak("together"),
        "peak MB, one by one": peak("apart"),
        "bytes per fact": edit,
        "bytes of the model": weights,
    }


def seconds(call: Callable[[], object]) -> float:
    """Processor seconds of a call: other work on the machine does not count."""
    start = time.process_time()
    call()
    return time.process_time() - start


def peak(which: str) -> float:
    """Peak resident memory that searching adds in a fresh process, in MB."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "editing.costs", which],
        capture_output=True, text=True, check=True, cwd=Path(__file__).parent.parent,
    )  # fmt: skip
    return float(done.stdout.split()[-1])


def _kilobytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def _main(which: str) -> None:
    torch.set_num_threads(1)
    world = World.open()
    settings = language.METHODS["memit"]
    engine = Engine.build(world.model, world.tokenizer, language.Settings(
        **{**settings.to_dict(), "cost": "identity"}), None, progress=False)  # fmt: skip
    requests = [case.request for case in world.cases[:TOGETHER]]
    parts = [requests] if which == "together" else [[r] for r in requests[:4]]

    def search(part: Any) -> None:
        find_values(world.model, world.tokenizer, part, engine.chosen[-1], engine.settings,
                    prefixes=engine.prefixes, progress=False)  # fmt: skip

    search(requests[:1])
    before = _kilobytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak counts from here
    for part in parts:
        search(part)
    print((_kilobytes("VmHWM") - before) / 1024)


if __name__ == "__main__":
    _main(sys.argv[1])
