"""Erase concepts of the sandbox, try to bring them back, and time edits at full size.

    make bench-concepts                        # goes on where an interrupted run stopped
    make bench-concepts ARGS="--only cat"      # units whose name has this in it
    make bench-concepts ARGS=--write           # tables and page of what there is, nothing more

Each unit is a file in outputs/benchmarks/concepts. Tables, of as many units as are done, and a page
with pictures go to benchmarks/results/concepts at the end, also of a run that is interrupted.
"""

import argparse
import functools
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from benchmarks.erasing import page  # noqa: E402
from benchmarks.erasing.cost import costs  # noqa: E402
from benchmarks.erasing.returning import returns  # noqa: E402
from benchmarks.erasing.units import Unit, computed, known, slug, study  # noqa: E402
from benchmarks.erasing.world import World  # noqa: E402
from rankedit.progress import progress  # noqa: E402

UNITS = ROOT / "outputs/benchmarks/concepts"
RESULTS = ROOT / "benchmarks/results/concepts"


def work(units: list[Unit], minutes: float) -> None:
    """Compute what is not there yet."""
    world = functools.cache(lambda: World(UNITS))
    start = time.monotonic()
    left = [unit for unit in units if not (UNITS / f"{slug(unit.name)}.json").exists()]
    with progress("concepts", len(units), done=len(units) - len(left)) as advance:
        for unit in left:
            if minutes and time.monotonic() - start > 60 * minutes:
                break
            computed(unit, UNITS, world)
            advance(slug(unit.name))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="units whose name has this in it")
    parser.add_argument("--minutes", type=float, default=0, help="begin no unit after so many")
    parser.add_argument("--write", action="store_true", help="compute nothing more")
    given = parser.parse_args()
    torch.set_num_threads(1)
    UNITS.mkdir(parents=True, exist_ok=True)
    units = [*costs(), *study(), *returns()]
    try:
        if not given.write:
            work([unit for unit in units if given.only in slug(unit.name)], given.minutes)
    finally:
        page.write(known(units, UNITS), len(units), UNITS / "pictures", RESULTS)


if __name__ == "__main__":
    main()
