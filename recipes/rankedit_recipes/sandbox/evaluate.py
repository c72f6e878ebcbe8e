"""Prints what the sandbox reaches: `python -m rankedit_recipes.sandbox.evaluate`."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from .checkpoint import write_text
from .images.evaluation import Figure, generator_figures, identity_figures, judge_figures
from .images.loading import attribute_judge, identity_embedding, pipeline


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
    pipe, judging = pipeline(weights), attribute_judge()
    size = pipe.unet.config.sample_size * pipe.vae.config.patch
    figures = judge_figures(judging, count)
    figures += identity_figures(identity_embedding(), pipe.vae, count, size)
    if generator:
        figures += generator_figures(pipe, judging, count)
    return figures


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


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print the table.

    Args:
        argv: Arguments of the command line; those of the process by default.
    """
    parser = argparse.ArgumentParser(prog="rankedit_recipes.sandbox.evaluate", description=__doc__)
    parser.add_argument("--count", type=int, default=500, help="pictures for each figure")
    parser.add_argument("--weights", type=Path, help="another pipeline's folder")
    parser.add_argument("--no-generator", action="store_true", help="judges and autoencoder only")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args(argv)
    torch.set_num_threads(given.threads)
    figures = evaluate(given.count, weights=given.weights, generator=not given.no_generator)
    Console().print(table(figures))
    if given.json:
        write_text(given.json, json.dumps([asdict(figure) for figure in figures], indent=1) + "\n")


if __name__ == "__main__":
    main()
