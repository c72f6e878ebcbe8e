"""Edit the sandbox's language model by every method, and say what came of it.

    python benchmarks/language.py                    # all rows; what is there already is kept
    python benchmarks/language.py --only single-rome batch-memit
    python benchmarks/language.py --method package.module:function    # rows of your own method

Rows are kept in outputs/benchmarks/language as they are computed, so that a run which was
interrupted goes on. Results go to benchmarks/results/language (figures, pictures, one page) and
into the tables of docs/language.md. Everything is a function of the seeds. With --method only rows
of that method and of the unedited model are computed; tables go to the terminal and beside the kept
rows, with whatever rows are there, and nothing that is under version control changes.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import torch
from editing import costs, page, settings, world
from editing.rows import Rows
from editing.study import TRACED, Study

import rankedit as rk

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks/results/language"
KINDS = ("single", "batch", "stream")


def main() -> None:
    options = _options()
    torch.set_num_threads(1)
    # Keys of single facts are unusual by design; each edit would say so again.
    warnings.simplefilter("ignore", rk.RankeditWarning)
    own = options.method
    only = options.only or [
        f"{kind}-{name}" for kind in KINDS for name in ("unedited", *own) if own
    ]
    world.KEPT.mkdir(parents=True, exist_ok=True)
    opened = world.World.open(options.model)
    rows = Rows(world.KEPT / "rows", opened.digest, tuple(only))
    study = Study(opened, rows, settings.TUNED, own)
    study.run()
    memit, layers = study.settings("memit")
    described = {**memit.to_dict(), "layers": layers}
    rows("costs", lambda: costs.costs(opened, memit, layers), described)
    facts = {
        "model": f"{sum(p.numel() for p in opened.model.parameters()):,} parameters",
        "weights and cases": opened.digest,
        "edited": f"block {layers}, as a causal trace finds of {TRACED} facts that are not edited",
        "statistics": f"{world.TEXTS:,} texts of the sandbox's corpus",
        "computed with": page.machine(),
        "command": " ".join(["python benchmarks/language.py", *(f"--method {m}" for m in own)]),
    }
    folder = options.out or (world.KEPT / "own" if own else RESULTS)
    page.write(rows.found, folder, None if own else ROOT / "docs/language.md", facts)
    for title, table in page.tables(rows.found).items() if own else ():
        print(f"\n{title}\n\n{table.markdown()}")
    print(folder / "index.html")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", default=[], help="beginnings of the rows to compute")
    parser.add_argument("--model", type=Path, help="folder of another model of the same world")
    parser.add_argument("--method", nargs="*", default=[], help="your own: package.module:function")
    parser.add_argument("--out", type=Path, help="folder of the page")
    return parser.parse_args()


if __name__ == "__main__":
    main()
