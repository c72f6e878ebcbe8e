"""Erase a category of the sandbox by every method, with UCE's published loop in the same run.

    make bench-concepts            # goes on where an interrupted run stopped
    make bench-concepts ARGS="--only cat-tree"
    make bench-concepts ARGS=--cost

Each unit is a file in outputs/benchmarks/concepts; the table goes to benchmarks/results/concepts.
"""

import argparse
import json
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from rankedit_recipes import concepts  # noqa: E402
from rankedit_recipes.concepts.commands.opening import sandbox_captions  # noqa: E402
from rankedit_recipes.diffusion.statistics import second_moment  # noqa: E402
from rankedit_recipes.sandbox.images.vocabulary import CATEGORIES  # noqa: E402

from benchmarks.erasing.cost import cost  # noqa: E402
from benchmarks.erasing.published import published  # noqa: E402
from benchmarks.erasing.world import World, asked  # noqa: E402
from rankedit.atomic import atomic_write  # noqa: E402

UNITS = ROOT / "outputs/benchmarks/concepts"
RESULTS = ROOT / "benchmarks/results/concepts"
PUBLISHED = "uce, published loop"
METHODS = (PUBLISHED, *concepts.METHODS)
DIRECT, OTHERS = 24, 27


class Run:
    """The world, its statistics, and pictures of the unedited model, made when first asked for."""

    def __init__(self) -> None:
        self.world = World()
        self.moment = second_moment(self.world.pipe, sandbox_captions(), progress=False)
        self._plain: dict[str, tuple[np.ndarray, float]] = {}

    def plain(self, word: str) -> tuple[np.ndarray, float]:
        """Pictures of the others without an edit, and what another noise changes in them."""
        if word not in self._plain:
            prompts, _ = asked([other for other in CATEGORIES if other != word], OTHERS)
            one, other = (self.world.pictures(prompts, seed).astype(float) for seed in (0, 1000))
            self._plain[word] = (one, float(np.abs(one - other).mean()))
        return self._plain[word]

    def unit(self, method: str, word: str, goal: str, *, held: bool) -> dict[str, object]:
        """Erase a word by a method, and measure what is left of it and of the others."""
        before, scale = self.plain(word)
        others = [other for other in CATEGORIES if other not in (word, goal)]
        start = time.perf_counter()
        context, rank = self._edit(method, word, goal, others if held else [])
        with context:
            seconds = time.perf_counter() - start
            prompts, words = asked([word], DIRECT)
            left = self.world.present(self.world.pictures(prompts), words)
            prompts, words = asked([c for c in CATEGORIES if c != word], OTHERS)
            pictures = self.world.pictures(prompts)
        return {
            "method": method, "word": word, "to": goal or "nothing", "held": held, "rank": rank,
            "left": left, "others": self.world.present(pictures, words),
            "others before": self.world.present(before.astype(np.uint8), words),
            "changed": float(np.abs(pictures.astype(float) - before).mean() / scale),
            "seconds": seconds,
        }  # fmt: skip

    def _edit(
        self, method: str, word: str, goal: str, held: list[str]
    ) -> tuple[AbstractContextManager[object], int]:
        if method == PUBLISHED:
            return published(self.world.pipe, word, goal, held), 1
        requests = [concepts.erase(word, to=goal), *([concepts.hold(*held)] if held else [])]
        edited = concepts.edit(
            self.world.pipe, requests, method=method, statistics=self.moment, progress=False
        )
        return edited.attach(self.world.pipe), edited.map.rank


def units(words: list[str]) -> list[tuple[str, str, str, bool]]:
    return [
        (method, word, goal, held)
        for word in words
        for goal in ("tree" if word != "tree" else "house", "")
        for held in (False, True)
        for method in METHODS
    ]


def table(rows: list[dict[str, object]]) -> str:
    heads = "method, erased, to, others named, still shown, others shown, others changed, rank"
    lines = [f"| {' | '.join(heads.split(', '))} |", "|---" * 8 + "|"]
    for row in rows:
        named = "yes" if row["held"] else "no"
        lines.append(
            f"| {row['method']} | {row['word']} | {row['to']} | {named} | {row['left']:.0%} | "
            f"{row['others']:.0%} | {row['changed']:.2f} | {row['rank']} |"
        )
    return "\n".join(lines) + "\n"


def written(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def costs() -> None:
    """Time edits at full size; the peer's loop on a few projections of the large model."""
    rows = []
    for name, most in (("Stable Diffusion 1.5", 0), ("Stable Diffusion XL", 4)):
        for count in (1, 100):
            rows.append(cost(name, count, most))
            print(json.dumps(rows[-1]), flush=True)
            written(RESULTS / "cost.json", json.dumps(rows, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--words", nargs="*", default=["cat"], choices=CATEGORIES)
    parser.add_argument("--only", default="", help="units whose name has this in it")
    parser.add_argument("--cost", action="store_true", help="time edits at full size instead")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.cost:
        costs()
        return
    run, rows = None, []
    for method, word, goal, held in units(given.words):
        parts = (
            word,
            goal or "nothing",
            "held" if held else "free",
            *method.replace(",", "").split(),
        )
        name = "-".join(parts)
        file = UNITS / f"{name}.json"
        if not file.exists() and given.only in name:
            run = run or Run()
            written(file, json.dumps(run.unit(method, word, goal, held=held), indent=1) + "\n")
            print(file.name, flush=True)
        if file.exists():
            rows.append(json.loads(file.read_text(encoding="utf-8")))
    written(RESULTS / "erasing.json", json.dumps(rows, indent=1) + "\n")
    written(RESULTS / "erasing.md", table(rows))
    print(table(rows))


if __name__ == "__main__":
    main()
