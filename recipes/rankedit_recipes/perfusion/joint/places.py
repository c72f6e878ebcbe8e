"""Projections of joint attention that a concept acts on, and the edits that do."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

import rankedit as rk
from rankedit_recipes.diffusion.parts import Parts
from rankedit_recipes.diffusion.streams import Reader
from rankedit_recipes.perfusion.errors import PerfusionError


def joint_readers(parts: Parts) -> tuple[Reader, ...]:
    """Attention that a concept may act on: all that reads the text.

    Raises:
        PerfusionError: the text does not stand in the first rows of all of them.
        PipelineError: as `Parts.readers`.
    """
    found = parts.readers
    for reader in found:
        if reader.rows[0] or dict(reader.entrances) != {(): (0,)}:
            where = ", ".join(f"{list(rows)}" for rows in reader.entrances.values()) or "no"
            raise PerfusionError(
                f"perfusion: {parts.denoiser.name} is not supported yet: in {reader.key!r} tokens "
                f"of the prompt begin in rows {where} of {reader.length}, where they are expected "
                "from the first row on, once, as in SD3 and Flux."
            )
    return found


def width_of(parts: Parts, place: str) -> int:
    """Width of what a projection, or some columns of one, gives."""
    name, _, columns = place.partition("[")
    if columns:
        start, stop = map(int, columns.rstrip("]").split(":"))
        return stop - start
    return rk.Projection(dict(parts.denoiser.plain.named_modules())[name]).out_features


def placed_edits(parts: Parts, targets: Mapping[str, Tensor]) -> dict[str, rk.PlacedEdit]:
    """Edits that add targets `[concepts, knots, out]` to projections at told rows."""
    modules = dict(parts.denoiser.plain.named_modules())
    widths = {n: rk.Projection(modules[n.partition("[")[0]]).in_features for n in targets}
    return {name: rk.PlacedEdit(tensor, widths[name]) for name, tensor in targets.items()}


def base_of(parts: Parts, readers: Sequence[Reader]) -> str:
    """Fingerprint of the projections that a concept acts on."""
    modules = dict(parts.denoiser.plain.named_modules())
    digest = hashlib.sha256()
    for place in [place for reader in readers for place in (reader.key, reader.value)]:
        digest.update(f"{place} {rk.fingerprint(modules[place.partition('[')[0]])}\n".encode())
    # 64 bits tell models apart; it is no protection against forgery.
    return digest.hexdigest()[:16]


def rows_told(places: Sequence[Sequence[int]], count: int, device: torch.device) -> Tensor:
    """`[batch, count]`: 1 where a word stands."""
    rows = torch.zeros(len(places), count, device=device)
    for index, found in enumerate(places):
        rows[index, list(found)] = 1.0
    return rows
