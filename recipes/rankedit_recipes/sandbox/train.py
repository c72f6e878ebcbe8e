"""Trains the sandbox's models: `python -m rankedit_recipes.sandbox.train --preset cpu`."""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from .images.presets import PRESETS
from .images.run import Run, run


def main(argv: Sequence[str] | None = None) -> None:
    """Train the generator, going on from the newest checkpoint in the folder.

    Args:
        argv: Arguments of the command line; those of the process by default.
    """
    parser = argparse.ArgumentParser(prog="rankedit_recipes.sandbox.train", description=__doc__)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="cpu")
    parser.add_argument("--folder", type=Path, help="checkpoints and log; outputs/sandbox-PRESET")
    parser.add_argument("--steps", type=int, help="steps until the rate is zero")
    parser.add_argument("--rate", type=float, help="peak learning rate")
    parser.add_argument("--single-steps", type=int, help="steps before two objects are shown")
    parser.add_argument("--seed", type=int, help="seed of everything")
    parser.add_argument(
        "--init-from", type=Path, help="start from the weights of a pipeline folder"
    )
    parser.add_argument("--minutes", type=float, default=4.0, help="minutes between checkpoints")
    given = parser.parse_args(argv)
    changes = {
        name: getattr(given, name)
        for name in ("steps", "rate", "single_steps", "seed")
        if getattr(given, name) is not None
    }
    preset = replace(PRESETS[given.preset], **changes)
    folder = given.folder or Path("outputs") / f"sandbox-{given.preset}"
    folder.mkdir(parents=True, exist_ok=True)
    run(preset, Run(folder, init_from=given.init_from, minutes=given.minutes))


if __name__ == "__main__":
    main()
