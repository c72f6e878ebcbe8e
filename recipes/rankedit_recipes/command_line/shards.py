"""Shards as they are typed: which one, what file it goes to, and which device it has."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

import rankedit as rk

ShardText = Annotated[
    str,
    typer.Option(
        "--shard",
        help="Part of the data, such as 3/64 (from 1 to 64), or 'auto' in torchrun and Slurm "
        "arrays; --out gets its number: NAME-00003-of-00064.safetensors.",
        show_default="all of it",
    ),
]


def parsed_shard(text: str) -> rk.Shard | None:
    """What was typed; None for nothing."""
    return rk.Shard.parse(text, os.environ) if text else None


def file_of(out: Path, shard: rk.Shard | None) -> Path:
    """The file of one shard: each process has its own, whoever starts them all alike.

    Example:
        >>> str(file_of(Path("a/b.safetensors"), rk.Shard(3, 64)))
        'a/b-00003-of-00064.safetensors'
    """
    if shard is None:
        return out
    return out.with_name(f"{out.stem}-{shard.index:05}-of-{shard.count:05}{out.suffix}")


def glob_of(file: Path, shard: rk.Shard) -> Path:
    """What a shell finds all files of these shards by."""
    return file.with_name(file.name.replace(f"-{shard.index:05}-of-", "-*-of-"))


def local_device(device: str, shard: str) -> str:
    """The device that was typed; under torchrun, with `--shard auto`, each process has its own."""
    local = os.environ.get("LOCAL_RANK", "")
    if device or shard != "auto" or not local.isdecimal():
        return device
    import torch

    # As torchrun's own examples do: it starts as many on a machine as there are accelerators.
    return f"cuda:{local}" if torch.cuda.is_available() else ""
