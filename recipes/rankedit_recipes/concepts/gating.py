"""Edits that act on a concept's own tokens, and leave every other one exactly as it is.

A detector is Fisher's: with the mean k of a concept's keys, the mean g of what they are to act
like, and A the inverse of the captions' second moment, it says of an encoding x

    s(x) = (k − g) A (x − g)ᵀ / (k − g) A (k − g)ᵀ        1 at k, 0 at g

There are two for each concept, of its word's own tokens and of those behind that carry it. A token
is the concept's if one of them reaches its floor, which no token of captions without the concept
does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear

import rankedit as rk
from rankedit_recipes.concepts.errors import ConceptsError
from rankedit_recipes.concepts.reading import Rows

# How far between the captions' highest token and the concept's lowest one a floor lies.
_BETWEEN = 0.5
# Of what the captions reach, where a concept's own tokens do not stand clear of it.
_ABOVE = 1e-3
# Share of the word's own tokens that must be found: fewer would be an edit with holes.
_LEAST = 0.95


@dataclass(frozen=True, eq=False)
class Detectors:
    """Which tokens are which concept's.

    Attributes:
        names: of each detector's request.
        read: `[n, in]`, float64.
        offset: `[n]`; a detector says `read xᵀ + offset`.
        floor: `[n]`, from where on a token is the concept's.
        found: share of the concept's own keys that reach the floor, `[n]`.
    """

    names: tuple[str, ...]
    read: Tensor
    offset: Tensor
    floor: Tensor
    found: Tensor

    def of(self, names: list[str]) -> Detectors:
        """Those of some requests."""
        kept = [i for i, name in enumerate(self.names) if name in names]
        parts = (self.read, self.offset, self.floor, self.found)
        return Detectors(tuple(self.names[i] for i in kept), *(part[kept] for part in parts))

    def open(self, x: Tensor) -> Tensor:
        """Which encodings `[..., in]` are a concept's, `[...]` boolean."""
        return ((linear(x.double(), self.read) + self.offset) >= self.floor).any(-1)


def detectors(rows: Mapping[str, Rows], others: Tensor, metric: rk.Metric) -> Detectors:
    """Detectors of concepts, with floors that no other token reaches.

    Args:
        rows: of each request.
        others: `[m, in]`, tokens of captions without the concepts.
        metric: of the captions.

    Raises:
        ConceptsError: a concept's tokens cannot be told from others.
    """
    groups = [(name, chosen, word) for name, own in rows.items() for chosen, word in _groups(own)]
    found = [(name, *_detector(rows[name], chosen, metric)) for name, chosen, _ in groups]
    names, reads, offsets = zip(*found, strict=True)
    read, offset = torch.stack(reads), torch.stack(offsets)
    highest = (linear(others, read) + offset).max(0).values
    floors, shares = [], []
    for index, ((name, chosen, word), top) in enumerate(zip(groups, highest, strict=True)):
        said = linear(rows[name].keys[chosen], read[index]) + offset[index]
        clear = float(said.min()) > float(top)
        floor = torch.lerp(top, said.min(), _BETWEEN) if clear else top + top.abs() * _ABOVE
        share = (said >= floor).double().mean()
        if word and float(share) < _LEAST:
            raise ConceptsError(
                f"gated: only {float(share):.0%} of the tokens of {name!r} can be told from those "
                "of the captions; attach the edit without a gate, or leave captions out that show "
                "the concept under another name."
            )
        floors.append(floor)
        shares.append(share)
    return Detectors(names, read, offset, torch.stack(floors), torch.stack(shares))


def _groups(own: Rows) -> list[tuple[Tensor, bool]]:
    """A concept's keys by encoder: of the word's own tokens, and of those behind that carry it."""
    block = torch.zeros(len(own.keys)) if own.block is None else own.block
    every = [
        (sort & (block == number), word)
        for number in block.unique()
        for sort, word in ((own.word, True), (~own.word, False))
    ]
    return [(chosen, word) for chosen, word in every if bool(chosen.any())]


def _detector(own: Rows, chosen: Tensor, metric: rk.Metric) -> tuple[Tensor, Tensor]:
    goal = own.guides[chosen].mean(0, keepdim=True)
    direction = own.keys[chosen].mean(0, keepdim=True) - goal
    image = metric.solve(direction)
    image = image / (image * direction).sum()
    return image[0], -(image * goal).sum()


@dataclass(frozen=True, eq=False)
class GatedMap:
    """`ΔW x` where a detector says so, and exactly nothing elsewhere; a `rankedit.Edit`.

    Attributes:
        edit: ΔW.
        gate: which inputs it acts on.
    """

    edit: rk.LowRank
    gate: Detectors

    @property
    def in_features(self) -> int:
        """Width of the inputs."""
        return self.edit.in_features

    @property
    def out_features(self) -> int:
        """Width of the outputs."""
        return self.edit.out_features

    def bind(self, outputs: object) -> dict[str, Tensor]:
        """The factors of ΔW and the detectors, in the layer's precision for edits."""
        dtype: torch.dtype = getattr(outputs, "dtype", torch.float32)
        tensors = {
            "up": self.edit.up, "down": self.edit.down, "read": self.gate.read,
            "offset": self.gate.offset, "floor": self.gate.floor,
        }  # fmt: skip
        return {name: tensor.to(dtype) for name, tensor in tensors.items()}

    def added(self, x: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """`x downᵀ upᵀ` where `read xᵀ + offset` reaches a floor, else 0."""
        with torch.autocast(x.device.type, enabled=False):
            wide = x.to(tensors["up"].dtype)
            said = linear(wide, tensors["read"]) + tensors["offset"]
            active = (said >= tensors["floor"]).any(-1, keepdim=True)
            change = linear(linear(wide, tensors["down"]), tensors["up"])
            # Not a product: nothing is left either of what is not finite.
            return torch.where(active, change, 0.0)

    def settings(self) -> frozenset[str]:
        """The floors, which may be changed at run time."""
        return frozenset({"floor"})
