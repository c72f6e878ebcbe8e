"""What is prepared for minutes of an accelerator: `python benchmarks/accelerator.py PART`.

Parts, each of at most three minutes; a part that was stopped goes on with what it lacks:
    all         all of the following, in this order
    tests       `pytest -m gpu`
    forward     of a gated edit against the plain layer: eager, compiled, under CUDA graphs
    collect     against the bare forward, products in float32 and float64
    solve       `solve_edit` on the card against the processor
    perfusion   a step against textual inversion's: time and peak memory
    language    the search for a fact's value in a model of Llama-8B's widths
    sampling    learning and pictures on the sandbox
    timing      milliseconds a step, pictures and captions a second, of one preset in several forms
    sandbox     trains the sandbox's generator within `--seconds`, and hands over its weights

`--small --device cpu` does all of it in small on a processor. Results go to
benchmarks/results/accelerator.json, and to a page beside it; in small to outputs/accelerator.

Nothing need be installed for it but torch, transformers, diffusers, Pillow and rich: the folders of
this repository are put on the path here. docs/sandbox.md has the command lines of the last two.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "recipes"), str(ROOT / "benchmarks")]

MEASURED = ("tests", "forward", "collect", "solve", "perfusion", "language", "sampling")


def measure(given: argparse.Namespace) -> None:
    """Measure one part, or all, and keep what was found."""
    import torch
    from accelerator import forward, language, learning, solving, tests
    from accelerator.kept import Kept, Place
    from accelerator.setting import check_device

    check_device(given.device)
    place = Place(torch.device(given.device), given.small)
    small = ROOT / "outputs" / "accelerator" / "small.json"
    full = ROOT / "benchmarks" / "results" / "accelerator.json"
    kept = Kept(given.out or (small if given.small else full), place)
    units = {
        "tests": tests.units,
        "forward": forward.units,
        "collect": solving.collecting,
        "solve": solving.solving,
        "perfusion": learning.steps,
        "language": language.units,
        "sampling": learning.sampling,
    }
    parts = MEASURED if given.name == "all" else (given.name,)
    done = [kept.run(part, units[part](place), given.seconds) for part in parts]
    kept.write()
    print(f"written to {kept.file}", flush=True)
    if not all(done):
        raise SystemExit("accelerator: not all of it is there; the same command goes on")


def _options(parts: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    from accelerator import sandbox

    for name in ("all", *MEASURED):
        own = parts.add_parser(name)
        own.set_defaults(part=measure, name=name)
        own.add_argument("--device", default="cuda")
        own.add_argument("--small", action="store_true", help="sizes for minutes of a processor")
        own.add_argument("--seconds", type=float, default=170.0, help="of each part, at most")
        own.add_argument("--out", type=Path, help="a file *.json; the page lies beside it")
    cores = max(1, (os.cpu_count() or 1) - 2)
    for part, seconds in ((sandbox.timing, 8.0), (sandbox.sandbox, 420.0)):
        own = parts.add_parser(part.__name__, help=(part.__doc__ or "").partition("\n")[0])
        own.set_defaults(part=part, name=part.__name__)
        own.add_argument("--preset", default="described-cuda")
        own.add_argument("--device", help="that of the preset by default")
        own.add_argument("--seconds", type=float, default=seconds, help="of all, or of each form")
        own.add_argument("--ahead", type=int, default=min(14, cores), help="processes beside it")
        if part is sandbox.timing:
            own.add_argument("--batches", type=int, nargs="+", default=[256, 512, 1024])
            own.add_argument("--compile", action="store_true", help="compiled too; takes minutes")
        else:
            own.add_argument(
                "--out", type=Path, required=True, help="gets the weights, every minute"
            )


def main() -> None:
    from accelerator.setting import check_packages

    check_packages()
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    _options(parser.add_subparsers(required=True))
    given, more = parser.parse_known_args()
    if more and given.name != "sandbox":
        parser.error(f"{given.name} does not know {' '.join(more)}")
    # Whatever else `python -m rankedit_recipes.sandbox.train` takes goes there.
    given.more = more
    given.part(given)


if __name__ == "__main__":
    main()
