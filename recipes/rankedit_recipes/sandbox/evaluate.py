"""Prints what the sandbox reaches: `python -m rankedit_recipes.sandbox.evaluate`."""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from rich.console import Console
from rich.table import Table

from .checkpoint import write_text
from .images.evaluation import Figure, generator_figures, identity_figures, judge_figures
from .images.joint_models import JointPipeline
from .images.loading import (
    attribute_judge,
    files_of,
    identity_embedding,
    joint_pipeline,
    pipeline,
)
from .images.wording import wording_figures

SHIPPED = "shipped"
"""How `--weights` names the pipeline that comes with the package."""


def evaluate(
    count: int = 500, *, weights: Path | None = None, generator: bool = True
) -> list[Figure]:
    """Measure the judges, the autoencoder and the generator.

    Args:
        count: Pictures or prompts for each figure.
        weights: Folder of another pipeline; the shipped one by default.
        generator: Also generate pictures, which takes most of the time.

    Returns:
        The figures.
    """
    return compare([weights], count, generator=generator)[_name(weights)]


def compare(
    folders: Sequence[Path | None], count: int = 500, *, generator: bool = True
) -> dict[str, list[Figure]]:
    """Measure several pipelines on the same pictures, prompts and noise.

    Args:
        folders: Folders of pipelines; None is the shipped one.
        count: Pictures or prompts for each figure.
        generator: Also generate pictures, which takes most of the time.

    Returns:
        The figures of each, by the folder's name. They stand in the same order in all.
    """
    # Read before anything is measured: a broken folder must not be found out after an hour.
    pipes = {_name(folder): _opened(folder) for folder in folders}
    finder, model = attribute_judge(), identity_embedding()
    # Of drawn pictures only, hence the same for all pipelines and measured once.
    judges, found = judge_figures(finder, count), {}
    for name, pipe in pipes.items():
        denoiser = pipe.transformer if isinstance(pipe, JointPipeline) else pipe.unet
        # `sample_size` is told in latent cells.
        size = denoiser.config.sample_size * pipe.vae.config.patch
        figures = judges + identity_figures(model, pipe.vae, count, size)
        if generator:
            figures += generator_figures(pipe, finder, count)
            figures += wording_figures(pipe, finder, model, count)
        found[name] = figures
    return found


def _opened(folder: Path | None) -> DiffusionPipeline:
    """A pipeline of either kind."""
    if folder is not None and "transformer" in files_of(folder):
        return joint_pipeline(folder)
    return pipeline(folder)


def _name(folder: Path | None) -> str:
    return SHIPPED if folder is None else str(folder)


def table(figures: Sequence[Figure]) -> Table:
    """Figures as a table for the terminal.

    Args:
        figures: The figures.

    Returns:
        The table.
    """
    rows = Table("figure", "measured", "wanted", "pictures", "")
    for figure in figures:
        sign = "<" if figure.below else "≥"
        rows.add_row(
            figure.name,
            f"{figure.value:.3f}",
            f"{sign} {figure.wanted:g}",
            str(figure.count),
            "reached" if figure.reached else "missed",
        )
    return rows


def comparison(named: Mapping[str, Sequence[Figure]]) -> Table:
    """Figures of several pipelines side by side.

    Args:
        named: Figures by the pipeline's name, in the same order in all.

    Returns:
        The table; a star marks what reaches its aim.
    """
    rows = Table("figure", *named, "wanted", "pictures")
    for same in zip(*named.values(), strict=True):
        values = [f"{figure.value:.3f}{' *' if figure.reached else ''}" for figure in same]
        sign = "<" if same[0].below else "≥"
        rows.add_row(same[0].name, *values, f"{sign} {same[0].wanted:g}", str(same[0].count))
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print the table.

    Args:
        argv: Arguments of the command line; those of the process by default.
    """
    parser = argparse.ArgumentParser(prog="rankedit_recipes.sandbox.evaluate", description=__doc__)
    parser.add_argument("--count", type=int, default=500, help="pictures for each figure")
    parser.add_argument(
        "--weights",
        action="append",
        help=f"a pipeline's folder, or {SHIPPED!r}; given several times, they are compared",
    )
    parser.add_argument("--no-generator", action="store_true", help="judges and autoencoder only")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args(argv)
    torch.set_num_threads(given.threads)
    folders = [None if name == SHIPPED else Path(name) for name in given.weights or [SHIPPED]]
    found = compare(folders, given.count, generator=not given.no_generator)
    alone = next(iter(found.values())) if len(found) == 1 else None
    Console().print(comparison(found) if alone is None else table(alone))
    if given.json:
        told = {name: [asdict(figure) for figure in figures] for name, figures in found.items()}
        written = told if alone is None else next(iter(told.values()))
        write_text(given.json, json.dumps(written, indent=1) + "\n")


if __name__ == "__main__":
    main()
