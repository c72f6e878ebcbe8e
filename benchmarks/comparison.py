"""Perfusion against strong baselines on the sandbox: one table, one plot, one page.

    python benchmarks/comparison.py --quick    # ten minutes on two cores: the same table, coarsely
    python benchmarks/comparison.py            # hours on two cores; see docs/evaluation.md

Everything that is trained or judged is kept in a folder: a run that was stopped goes on where it
was, several processes share the work, and the table can be made of what is there (`--report`). Each
number is a function of the seeds.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from personalisation.page import write_results
from personalisation.study import Study
from personalisation.units import units_of
from personalisation.working import limit_threads, work
from personalisation.world import QUICK, Plan, World
from rankedit_recipes.perfusion.commands.opening import SANDBOX_CONFIG
from rankedit_recipes.sandbox.images.loading import WEIGHTS

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "perfusion"
PLAN = "plan.json"


def planned(folder: Path, plan: Plan) -> Plan:
    """The plan of a folder, written at its first use.

    Raises:
        SystemExit: the folder holds a study of another plan, recipe or base model.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = json.loads((WEIGHTS / "provenance.json").read_text())["sha256"]
    about = {"plan": asdict(plan), "recipe": SANDBOX_CONFIG.digest(), "weights": weights}
    file, text = folder / PLAN, json.dumps(about, indent=1)
    if file.exists() and json.loads(file.read_text()) != json.loads(text):
        raise SystemExit(
            f"comparison: '{folder}' holds a study of another plan, recipe or base model; give "
            f"another --out, or the settings in '{file}'."
        )
    file.write_text(text)
    return plan


def helpers(count: int, arguments: Sequence[str]) -> list[subprocess.Popen[bytes]]:
    """Further processes that do the same work."""
    call = [sys.executable, __file__, *arguments, "--workers", "1", "--no-report", "--no-bar"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    quiet = subprocess.DEVNULL  # the bar of this process counts their work
    return [subprocess.Popen(call, env=environment, stdout=quiet) for _ in range(count)]


def main() -> None:
    """Do the study, or what is left of it, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the small plan")
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="NAME=VALUE", help="change the plan"
    )
    parser.add_argument("--out", help="folder of the study [outputs/comparison, or -quick]")
    parser.add_argument(
        "--results", help=f"folder of the results [{RESULTS}; OUT/results if quick]"
    )
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread")
    parser.add_argument("--minutes", type=float, default=1e6, help="begin nothing new after them")
    parser.add_argument("--only", default="", help="units whose file begins so")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--report", action="store_true", help="only write the results")
    parser.add_argument("--no-report", action="store_true", help="do not write the results")
    parser.add_argument("--no-bar", action="store_true", help="do not show progress")
    args = parser.parse_args()
    folder = Path(args.out or f"outputs/comparison{'-quick' if args.quick else ''}")
    results = (
        Path(args.results) if args.results else (folder / "results" if args.quick else RESULTS)
    )
    plan = planned(folder, (QUICK if args.quick else Plan()).changed(args.set))
    limit_threads()
    others = [] if args.report else helpers(args.workers - 1, sys.argv[1:])
    study = Study(folder, World(folder, plan, args.device))
    if not args.report:
        left = work(study, units_of(study), until=time.time() + 60 * args.minutes, only=args.only,
                    say=lambda text: print(text, flush=True), shown=not args.no_bar)  # fmt: skip
        print(f"{left} units left" if left else "all done", flush=True)
        for other in others:
            other.wait()
    if not args.no_report:
        write_results(study, results)


if __name__ == "__main__":
    main()
