"""Trains the language model: `python -m rankedit_recipes.sandbox.facts.train --export`."""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from .exporting import export
from .loading import WEIGHTS
from .presets import PRESETS
from .running import PresetError, run

CHANGEABLE = ("steps", "rate", "batch", "seed", "workers")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rankedit_recipes.sandbox.facts.train", description=__doc__
    )
    parser.add_argument("--preset", choices=sorted(PRESETS), default="cpu")
    parser.add_argument("--folder", type=Path, help="checkpoints and log; outputs/facts-PRESET")
    parser.add_argument("--steps", type=int, help="steps until the rate is zero")
    parser.add_argument("--rate", type=float, help="peak learning rate")
    parser.add_argument("--batch", type=int, help="rows of a step")
    parser.add_argument("--seed", type=int, help="seed of weights and texts")
    parser.add_argument("--minutes", type=float, default=2.0, help="minutes between checkpoints")
    parser.add_argument("--workers", type=int, help="processes that share each batch")
    parser.add_argument("--export", action="store_true", help="write the weights that ship, after")
    parser.add_argument("--target", type=Path, default=WEIGHTS, help="where --export writes")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Train, going on from the newest checkpoint in the folder.

    Args:
        argv: Arguments of the command line; those of the process by default.
    """
    given = _parser().parse_args(argv)
    changes = {
        name: getattr(given, name) for name in CHANGEABLE if getattr(given, name) is not None
    }
    preset = replace(PRESETS[given.preset], **changes)
    folder = given.folder or Path("outputs") / f"facts-{given.preset}"
    try:
        run(preset, folder, minutes=given.minutes)
    except PresetError as error:
        raise SystemExit(str(error)) from error
    if given.export:
        export(preset, folder, given.target)


if __name__ == "__main__":
    main()
