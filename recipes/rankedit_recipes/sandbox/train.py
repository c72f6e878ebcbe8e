"""Trains the sandbox's models: `python -m rankedit_recipes.sandbox.train --preset cpu`."""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from .images.exporting import export
from .images.fitting import Kept, ResumeError
from .images.judge_training import train_judges
from .images.loading import JUDGES
from .images.presets import PRESETS
from .images.run import Run, run

# What the model is (widths, patches, kinds of captions) is said by presets alone, but for the
# length of texts, in which text encoders of `--preset joint` may differ.
CHANGEABLE = ("steps", "decay", "rate", "single_steps", "pairs", "seed", "workers", "length")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="rankedit_recipes.sandbox.train", description=__doc__)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="cpu")
    parser.add_argument(
        "--folder", type=Path, help="checkpoints and log; outputs/sandbox-PRESET (-judges)"
    )
    parser.add_argument("--steps", type=int, help="steps until the rate is zero")
    parser.add_argument("--decay", type=float, help="part of them in which the rate falls to zero")
    parser.add_argument("--rate", type=float, help="peak learning rate")
    parser.add_argument("--single-steps", type=int, help="steps before two objects are shown")
    parser.add_argument("--pairs", type=float, help="how many pictures show two objects then")
    parser.add_argument("--seed", type=int, help="seed of everything")
    parser.add_argument("--length", type=int, help="tokens of every padded caption")
    parser.add_argument("--workers", type=int, help="processes that share each batch")
    parser.add_argument("--init-from", type=Path, help="start from a pipeline folder's weights")
    parser.add_argument("--minutes", type=float, default=4.0, help="minutes between checkpoints")
    parser.add_argument(
        "--probe-every", type=int, default=500, help="steps between probes; 0: none"
    )
    parser.add_argument("--export", action="store_true", help="write the weights that ship, after")
    parser.add_argument(
        "--export-only", action="store_true", help="write the newest checkpoint's; train nothing"
    )
    parser.add_argument(
        "--target", type=Path, help="where --export writes; over the package's own by default"
    )
    parser.add_argument("--judges", action="store_true", help="train the judges instead")
    parser.add_argument(
        "--judge-steps",
        type=int,
        nargs=3,
        default=(1600, 1500, 1500),
        help="steps of attributes, identity and CLIP; 0 leaves one out",
    )
    parser.add_argument("--judge-folder", type=Path, default=JUDGES, help="where the judges go")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Train the generator (or the judges), going on from the newest checkpoint in the folder.

    Args:
        argv: Arguments of the command line; those of the process by default.
    """
    given = _parser().parse_args(argv)
    if given.judges:
        kept = Kept(given.folder or Path("outputs") / "sandbox-judges", given.minutes)
        try:
            train_judges(given.judge_folder, kept, steps=tuple(given.judge_steps))
        except ResumeError as error:
            raise SystemExit(str(error)) from error
        return
    changes = {
        name: getattr(given, name) for name in CHANGEABLE if getattr(given, name) is not None
    }
    preset = replace(PRESETS[given.preset], **changes)
    folder = given.folder or Path("outputs") / f"sandbox-{given.preset}"
    folder.mkdir(parents=True, exist_ok=True)
    how = Run(
        folder, init_from=given.init_from, minutes=given.minutes, probe_every=given.probe_every
    )
    if not given.export_only:
        try:
            run(preset, how)
        except ResumeError as error:
            raise SystemExit(str(error)) from error
    if given.export or given.export_only:
        export(preset, folder, given.target)


if __name__ == "__main__":
    main()
