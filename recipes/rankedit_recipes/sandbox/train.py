"""Trains the sandbox's models: `python -m rankedit_recipes.sandbox.train --preset cpu`."""

import argparse
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from .images.exporting import export
from .images.fitting import Kept, ResumeError
from .images.judge_training import train_judges
from .images.loading import JUDGES
from .images.presets import PRESETS, Preset
from .images.run import Run, run
from .images.speed import PRECISIONS

# What the model is (widths, patches, kinds of captions) is said by presets alone, but for the
# length of texts, in which text encoders of `--preset joint` may differ.
CHANGEABLE = (
    "steps", "decay", "rate", "single_steps", "pairs", "seed", "workers", "length", "batch",
    "pictures", "device", "precision",
)  # fmt: skip

GRIDS_AT_END = 10**9
"""Checkpoints between grids where none but the last is wanted."""


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
    parser.add_argument("--batch", type=int, help="pictures a step")
    parser.add_argument("--pictures", type=int, help="pictures that are drawn before the training")
    parser.add_argument("--device", help="where it runs, such as cpu or cuda")
    parser.add_argument(
        "--precision", choices=(*PRECISIONS, "measured"), help="of products; weights are float32"
    )
    parser.add_argument("--length", type=int, help="tokens of every padded caption")
    parser.add_argument("--workers", type=int, help="processes that share each batch")
    parser.add_argument("--init-from", type=Path, help="start from a pipeline folder's weights")
    parser.add_argument("--minutes", type=float, default=4.0, help="minutes between checkpoints")
    parser.add_argument(
        "--probe-every", type=int, default=500, help="steps between probes; 0: none"
    )
    parser.add_argument(
        "--ahead",
        type=int,
        help="processes that draw and make captions while a device trains; on accelerators all "
        "cores but two, at most 14",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        help="let the rate fall in time, so that all is done within so many seconds from now",
    )
    parser.add_argument(
        "--out", type=Path, help="folder for weights.tar, log.jsonl and samples.png, as it goes"
    )
    parser.add_argument("--compile", action="store_true", help="compile the models first")
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


def _ahead(given: argparse.Namespace, preset: Preset) -> int | None:
    """How many processes work ahead; None where each batch is made when its step has come."""
    if given.ahead is not None:
        return int(given.ahead)
    wanted = given.seconds is not None or given.out is not None or given.compile
    if preset.device == "cpu" and not wanted:
        return None
    return min(14, max(1, (os.cpu_count() or 1) - 2))


def _last_seconds(given: argparse.Namespace) -> float:
    """What the last checkpoint, the weights and a grid of pictures may take."""
    return float(min(20.0, given.seconds / 5))


def main(argv: Sequence[str] | None = None) -> None:
    """Train the generator (or the judges), going on from the newest checkpoint in the folder.

    Args:
        argv: Arguments of the command line; those of the process by default.
    """
    begun = time.monotonic()
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
        folder,
        init_from=given.init_from,
        minutes=given.minutes,
        probe_every=given.probe_every,
        sample_every=Run.sample_every if given.out is None else GRIDS_AT_END,
        ahead=_ahead(given, preset),
        until=None if given.seconds is None else begun + given.seconds - _last_seconds(given),
        out=given.out,
        compiled=given.compile,
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
