"""A short summary of many layers' weights, by which models are compared across precisions."""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from rankedit.errors import ProjectionError, ShapeError
from rankedit.models.fingerprints import tensors_of
from rankedit.models.geometry import innermost
from rankedit.shapes import check_kind

LENGTH = 32
"""Numbers in a sketch: 1/√64 = 12 % is the standard error of a distance."""
MOST = 1 << 18
"""Numbers read of a weight, about."""


@dataclass(frozen=True)
class Sketch:
    """A count sketch of weights (Charikar, Chen, Farach-Colton 2002).

    Layers are sorted by name and weights read row by row; of a weight of n > 2¹⁸ numbers every k-th
    row, k = ⌈n / 2¹⁸⌉. Number b of the sketch is `Σ_{i ≡ b mod 32} s_i w_i / ‖w‖`: i counts within
    a layer, the norm is that of all that was read, and the signs are the bits of NumPy's Philox
    generator with the layer's place among the names as its key: 1 is +1, 0 is −1, bytes from the
    lowest of each word on, bits from the highest of each byte on.

    The expected squared distance of the sketches of two sets of weights, each times its norm, is
    the squared distance of the weights. Unlike a `fingerprint` a sketch hardly depends on the
    precision: float32 and bfloat16 are 0.002 of their size apart.

    Attributes:
        numbers: of the sketch, `LENGTH` of them.
        norm: `‖w‖`.
    """

    numbers: tuple[float, ...]
    norm: float

    @classmethod
    def of(cls, layers: Mapping[str, nn.Module]) -> Sketch | None:
        """The sketch of the weights of layers. Under FSDP every rank must make the call.

        Returns:
            None if a weight is quantised, or no matrix of floating point numbers. It is stored in
            another form then than the weights of other models of its kind.

        Raises:
            ProjectionError: there are no layers, their weights are all zero or not finite, or one
                is on the meta device and no hook can load it.
        """
        check_kind("Sketch.of", "layers", layers, Mapping)
        for name, layer in layers.items():
            check_kind("Sketch.of", "layers", name, str, expected="mapping of names")
            check_kind("Sketch.of", f"layers[{name!r}]", layer, nn.Module)
        total, squares = torch.zeros(LENGTH, dtype=torch.float64), 0.0
        for number, (name, layer) in enumerate(sorted(layers.items())):
            weight = _weight(layer)
            if weight is None:
                return None
            # Whole rows, evenly spaced: the same ones in every precision and on every device.
            rows = weight[:: -(-weight.numel() // MOST)]
            flat = rows.to("cpu", torch.float32).reshape(-1)
            total += _folded(flat, number)
            squares += float(torch.linalg.vector_norm(flat, dtype=torch.float64)) ** 2
            if not math.isfinite(squares):
                raise ProjectionError(f"Sketch.of: the weight of {name!r} is not finite.")
        if not squares:
            raise ProjectionError(
                f"Sketch.of: {len(layers)} layers were given and all their weights are zero; a "
                "sketch is relative to their size."
            )
        norm = math.sqrt(squares)
        return cls(tuple((total / norm).tolist()), norm)

    def distance(self, other: Sketch) -> float:
        """An estimate of `‖w − v‖ / max(‖w‖, ‖v‖)`, with a standard error of 12 %."""
        ours, theirs = (
            self.norm * np.asarray(self.numbers),
            other.norm * np.asarray(other.numbers),
        )
        return float(np.linalg.norm(ours - theirs)) / max(self.norm, other.norm)

    def text(self) -> str:
        """92 letters that `parse` reads, with a rounding error of 0.0002 in distances."""
        numbers = np.asarray(self.numbers, dtype="<f2").tobytes()
        return base64.b64encode(np.asarray(self.norm, dtype="<f4").tobytes() + numbers).decode()

    @classmethod
    def parse(cls, text: str) -> Sketch:
        """Read what `text` wrote.

        Raises:
            ShapeError: it is something else.
        """
        check_kind("Sketch.parse", "text", text, str)
        try:
            data = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError) as error:
            raise ShapeError(
                f"Sketch.parse: text must be what Sketch.text gave, got {text!r:.40}: {error}."
            ) from error
        if len(data) == 4 + 2 * LENGTH:
            norm = float(np.frombuffer(data, dtype="<f4", count=1)[0])
            numbers = np.frombuffer(data, dtype="<f2", offset=4).astype(float)
            if norm > 0 and math.isfinite(norm) and np.isfinite(numbers).all():
                return cls(tuple(numbers.tolist()), norm)
        raise ShapeError(
            f"Sketch.parse: text must hold a positive norm and {LENGTH} finite numbers, got "
            f"{text!r:.40}; copy all of what Sketch.text gave."
        )


def _weight(layer: nn.Module) -> Tensor | None:
    """The innermost weight, gathered and loaded; None if its numbers are not those of the layer."""
    found = dict(tensors_of(innermost(layer)))
    weight = found.get("weight")
    # Quantised weights have scales beside them, whatever dtype they are stored in.
    scaled = any(name.startswith("weight.") for name in found)
    if weight is None or scaled or weight.ndim < 2 or weight.element_size() == 1:
        return None
    return weight if weight.is_floating_point() else None


def _folded(flat: Tensor, number: int) -> Tensor:
    """The weight's part of the sketch. NumPy guarantees the stream of bits for all versions."""
    words = np.random.Philox(key=number).random_raw(-(-len(flat) // 64))
    bits = np.unpackbits(words.astype("<u8").view(np.uint8), count=len(flat))
    signed = flat * torch.from_numpy(bits).to(flat.dtype).mul_(2).sub_(1)
    padded = nn.functional.pad(signed, (0, -len(flat) % LENGTH))
    return padded.reshape(-1, LENGTH).sum(0, dtype=torch.float64)
