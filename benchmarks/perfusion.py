"""What the Perfusion recipe reaches on the sandbox, beside what it is meant to reach.

    python benchmarks/perfusion.py --out outputs/perfusion-study

Everything is a function of the seeds. Concepts and answers are kept in the folder, so that a killed
run goes on; several processes may share the work with `--part 1/2` and `--part 2/2`, after which a
run without `--part` prints the table. `--quick` asks the same questions of fewer concepts.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from personalisation.fronts import front
from personalisation.perfusions import BIASES
from personalisation.promises import FIGURES, GATES, Promises
from personalisation.telling import tables
from personalisation.world import Plan, World
from rankedit_recipes import sandbox
from rankedit_recipes.command_line.names import SANDBOX
from rankedit_recipes.perfusion.commands.opening import open_config
from rankedit_recipes.perfusion.locks import PRESETS
from rich.console import Console
from rich.table import Table

PLAN = Plan(seeds=1, pairs=8, pair_pictures=24, sampling=20, half=False)
QUICK = replace(PLAN, concepts=4, prompts=6, pairs=2, pair_pictures=8, off=6)
LOWER_BIAS = 0.5
"""A bias below the preset, for two concepts in one picture."""
USUAL_BIAS = PRESETS["coarse"].bias
"""The bias of what several photos taught, for what one did."""
SWEPT = 8
"""Concepts of the sweep, of the gates' leaks and of "each alone"."""


@dataclass(frozen=True)
class Line:
    """A figure, what it should be, and whether it is."""

    name: str
    value: float
    spread: float | None = None
    target: str = ""
    reached: bool | None = None

    def cells(self) -> tuple[str, ...]:
        """As a table shows it."""
        spread = "" if self.spread is None else f"{self.spread:.3f}"
        verdict = {None: "", True: "yes", False: "no"}[self.reached]
        return self.name, f"{self.value:.3f}", spread, self.target, verdict


def at_least(name: str, values: Sequence[float], least: float | None, unit: str = "") -> Line:
    """The mean of values over concepts, and the least that it should be."""
    mean = statistics.mean(values)
    spread = statistics.stdev(values) if len(values) > 1 else None
    if least is None:
        return Line(name, mean, spread)
    return Line(name, mean, spread, f"≥ {least:g}{unit}", mean >= least)


def at_most(name: str, value: float, most: float) -> Line:
    """A figure, and the most that it should be."""
    return Line(name, value, None, f"≤ {most:g}", value <= most)


class Answers:
    """All lines of the table, from what the promises' folder holds or is asked for.

    Args:
        promises: answers the questions.
    """

    def __init__(self, promises: Promises) -> None:
        self.promises = promises
        self.concepts = promises.world.concepts()

    def _over(self, concepts: Sequence[sandbox.Concept], kind: str, **how: object) -> dict:
        rows = [self.promises.means(concept, kind, **how) for concept in concepts]
        return {name: [row[name] for row in rows if name in row] for name in FIGURES}

    def fidelity(self) -> list[Line]:
        """New prompts with one concept."""
        word, learned = self._over(self.concepts, "word"), self._over(self.concepts, "five")
        whole = self._over(self.concepts, "five", lock="global")
        locked = self._over(self.concepts, "five", lock="local")
        one, told = self._over(self.concepts, "one"), self._over(self.concepts, "described")
        one_at_usual_bias = self._over(self.concepts, "one", bias=USUAL_BIAS)
        other = [
            mine / base for mine, base in zip(learned["other"], word["other"], strict=True) if base
        ]
        once = statistics.mean(one["identity"]) / statistics.mean(learned["identity"])
        lines = [
            at_least("identity", learned["identity"], 0.8),
            at_least("scene obeyed", learned["scene"], 0.9),
            at_least("category kept", learned["category"], 0.95),
            at_least("second object, of what the base model reaches", other, 0.8),
            at_least("identity from one photo, of that from five", [once], 0.85),
        ]
        tables = {"as learned": learned, "all keys locked": locked, "global lock": whole}
        tables |= {"one photo": one, f"one photo, bias {USUAL_BIAS:g}": one_at_usual_bias}
        tables |= {"word alone": word, "described in words": told}
        for title, table in tables.items():
            lines += [at_least(f"{title}: {name}", table[name], None) for name in FIGURES]
        return lines

    def sweep(self) -> list[Line]:
        """The trade-off of one training."""
        some = self.concepts[:SWEPT]
        base = statistics.mean(self._over(some, "word")["text"])
        points, lines = [], []
        for bias in BIASES:
            table = self._over(some, "five", bias=bias)
            identity, text = statistics.mean(table["identity"]), statistics.mean(table["text"])
            points.append((identity, text))
            lines.append(at_least(f"bias {bias:g}: identity", table["identity"], None))
            lines.append(at_least(f"bias {bias:g}: text", table["text"], None))
        on_front = front(points)
        best = max(text for _, text in points)
        return [
            at_most("sweep: text fidelity lost at its best, points", 100 * (base - best), 3.0),
            Line("sweep: settings on the front", len(on_front), None, f"of {len(points)}"),
            *lines,
        ]

    def leaks(self) -> list[Line]:
        """Prompts without the concept."""
        lines = []
        for gate in GATES:
            ratios = [self.promises.off(concept, gate) for concept in self.concepts[:SWEPT]]
            least = 20.0 if "floor" in GATES[gate] else math.inf
            name = f"off the concept, {gate}: another seed changes so many times more, least"
            lines.append(at_least(name, [min(ratios)], least))
        bare = self._over(self.concepts[:SWEPT], "five", floor=None)
        names = ("identity", "text")
        return [*lines, *(at_least(f"no dead zone: {name}", bare[name], None) for name in names)]

    def merged(self) -> list[Line]:
        """Two concepts at once."""
        every = self.promises.pairs()
        found = [self.promises.pair(one, two, "merged") for one, two in every]
        bare = [self.promises.pair(one, two, "merged", floor=None) for one, two in every]
        lower = [self.promises.pair(one, two, "merged", bias=LOWER_BIAS) for one, two in every]
        told = [self.promises.pair(one, two, "described") for one, two in every]
        some = self.concepts[:SWEPT]
        alone = statistics.mean(self._over(some, "five")["identity"])
        beside = statistics.mean(self._over(some, "beside")["identity"])
        return [
            at_least("two merged: both there, each the right one", _of(found, "both_right"), 0.6),
            at_least("two merged: both there", _of(found, "both_present"), None),
            at_least("two merged: identity", _of(found, "identity"), None),
            at_least("no dead zone: both there, each the right one", _of(bare, "both_right"), None),
            at_least("no dead zone: both there", _of(bare, "both_present"), None),
            at_least(f"bias {LOWER_BIAS:g}: each the right one", _of(lower, "both_right"), None),
            at_least(f"bias {LOWER_BIAS:g}: both there", _of(lower, "both_present"), None),
            at_least("described: both there, each the right one", _of(told, "both_right"), None),
            at_most("identity lost while another is loaded, points", 100 * (alone - beside), 5.0),
        ]

    def costs(self) -> list[Line]:
        """Times."""
        costs = self.promises.costs()
        names = [f"seconds-{concept.name}-5" for concept in self.concepts]
        slowest = max(float(self.promises.kept(name, lambda: 0.0)) for name in names)
        return [
            at_most("a step, of textual inversion's", costs["step"], 1.15),
            at_most("a picture with one concept, of one without", costs["one"], 1.03),
            at_most("a picture with two concepts, of one without", costs["two"], 1.03),
            at_most("learning, slowest concept, seconds", slowest, 180.0),
        ]

    def part(self, number: int, parts: int) -> None:
        """Answer what concerns some of the concepts, and print nothing."""
        for concept in self.concepts[number - 1 :: parts]:
            for kind in ("word", "described", "five", "one"):
                self.promises.means(concept, kind)
            self.promises.means(concept, "one", bias=USUAL_BIAS)
            for lock in ("local", "global"):
                self.promises.means(concept, "five", lock=lock)
        for concept in self.concepts[:SWEPT][number - 1 :: parts]:
            for bias in BIASES:
                self.promises.means(concept, "five", bias=bias)
            for gate in GATES:
                self.promises.off(concept, gate)
            self.promises.means(concept, "five", floor=None)
        for one, two in self.promises.pairs()[number - 1 :: parts]:
            self.promises.pair(one, two, "described")
            self.promises.pair(one, two, "merged", bias=LOWER_BIAS)


def _of(found: Sequence[dict], name: str) -> list[float]:
    return [one[name] for one in found]


def main() -> None:
    """Run the study and print it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("outputs/perfusion-study"))
    parser.add_argument("--quick", action="store_true", help="fewer concepts and prompts")
    parser.add_argument("--part", default="", help="1/2: answer half of the questions only")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--config", type=Path, help="TOML file of the recipe's settings")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    config = open_config(given.config, SANDBOX)
    given.out.mkdir(parents=True, exist_ok=True)
    answers = Answers(Promises(World(given.out, QUICK if given.quick else PLAN), config))
    if given.part:
        answers.part(*(int(number) for number in given.part.split("/")))
        return
    lines = [*answers.fidelity(), *answers.sweep(), *answers.leaks(), *answers.merged()]
    lines += answers.costs()
    table = Table("figure", "mean", "spread", "target", "reached")
    for line in lines:
        table.add_row(*line.cells())
    Console().print(table)
    told = [dict(vars(line)) for line in lines]
    for line in told:  # JSON has no infinity: a change of exactly nothing is null
        line["value"] = line["value"] if math.isfinite(line["value"]) else None
    document = {**answers.promises.world.provenance(), "lines": told}
    text = json.dumps(document, indent=1, allow_nan=False)
    (given.out / "results.json").write_text(text)
    (given.out / "tables.md").write_text("\n\n".join(tables(told, BIASES)) + "\n")
    print(f"concept files: {answers.promises.folder / 'concepts'}")


if __name__ == "__main__":
    main()
