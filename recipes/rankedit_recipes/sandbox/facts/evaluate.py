"""Prints what the language model knows: `python -m rankedit_recipes.sandbox.facts.evaluate`."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from rankedit_recipes.sandbox.checkpoint import write_text

from .evaluation import Figure, figures
from .loading import load_model, load_tokenizer


def evaluate(
    *, count: int | None = None, weights: Path | None = None, seed: int = 0
) -> list[Figure]:
    """Ask the model for the facts of its world.

    Args:
        count: Facts to ask for; all by default.
        weights: Folder of another model; the shipped one by default.
        seed: Of the draws of facts and phrasings.

    Returns:
        The figures.
    """
    return figures(load_model(weights), load_tokenizer(weights), count=count, seed=seed)


def table(measured: Sequence[Figure]) -> Table:
    """Figures as a table for the terminal.

    Args:
        measured: The figures.

    Returns:
        The table.
    """
    rows = Table("asked", "right", "wanted", "questions", "")
    for figure in measured:
        wanted = "" if figure.wanted is None else f"≥ {figure.wanted:.0%}"
        verdict = "" if figure.wanted is None else "reached" if figure.reached else "missed"
        rows.add_row(figure.name, f"{figure.value:.1%}", wanted, str(figure.count), verdict)
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print the table; the exit status tells whether all was reached.

    Args:
        argv: Arguments of the command line; those of the process by default.
    """
    parser = argparse.ArgumentParser(
        prog="rankedit_recipes.sandbox.facts.evaluate", description=__doc__
    )
    parser.add_argument("--count", type=int, help="facts to ask for; all by default")
    parser.add_argument("--weights", type=Path, help="another model's folder")
    parser.add_argument("--seed", type=int, default=0, help="of facts and phrasings")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args(argv)
    torch.set_num_threads(given.threads)
    measured = evaluate(count=given.count, weights=given.weights, seed=given.seed)
    Console().print(table(measured))
    if given.json:
        write_text(given.json, json.dumps([asdict(figure) for figure in measured], indent=1) + "\n")
    if not all(figure.reached for figure in measured):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
