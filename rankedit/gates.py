"""Gates: how far an edit opens for an input, from its similarity to the key.

A gate is a frozen dataclass. Its fields are its parameters: numbers, or tensors `[n]` with one
number per key; all of them can be changed at run time once the edit is attached. A new gate is a
few lines:

    >>> from dataclasses import dataclass
    >>> import torch
    >>> from rankedit.gates import Gate, opening
    >>> @dataclass(frozen=True)
    ... class Ramp(Gate):
    ...     name = "ramp"
    ...     start: float = 0.5
    ...
    ...     def opening(self, similarity, parameters):
    ...         return ((similarity - parameters["start"]) / (1 - parameters["start"])).clamp(0, 1)
    >>> opening(Ramp(), torch.tensor([0.2, 0.75, 1.0])).tolist()
    [0.0, 0.5, 1.0]
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import ClassVar, Literal, Self, TypeVar

import torch
from torch import Tensor

from rankedit.errors import ShapeError
from rankedit.shapes import Similarity, check_dense, check_kind, check_vectors, describe

# As a share of the most open: below it, a gate tells its key from nothing too poorly to normalise.
_LEAST_RANGE = 1e-6


@dataclass(frozen=True)
class Gate(ABC):
    """Base class of gates; see the module's page for how to write one.

    Attributes:
        name: under this name the gate is found in a file.
        reads: what the gate is given for key j: its own `"similarity"` `⟨i_j, x⟩/⟨i_j, i_j⟩`, or
            the joint `"coordinates"` of x on all keys, which differ unless keys are orthogonal.
    """

    name: ClassVar[str]
    reads: ClassVar[Literal["similarity", "coordinates"]] = "similarity"

    def __new__(cls, *_: object, **__: object) -> Self:
        """Refuse an `opening` that could not be called, before a model calls it.

        Raises:
            ShapeError: says how `opening` must be declared.
        """
        try:
            # Not bound to an instance: there is none yet, and a staticmethod must not pass.
            inspect.signature(cls.opening).bind(None, None, None)
        except TypeError as error:
            raise ShapeError(
                f"{cls.__name__}: a gate's opening must be declared as opening(self, similarity, "
                f"parameters), got opening{inspect.signature(cls.opening)} ({error}); parameters "
                "has the gate's fields as tensors, by name."
            ) from error
        return super().__new__(cls)

    @abstractmethod
    def opening(self, similarity: Similarity, parameters: Mapping[str, Tensor]) -> Similarity:
        """Opening `[..., n]` for similarities `[..., n]`: 0 is closed, 1 gives the key's target.

        Args:
            similarity: 1 at the key itself, 0 for inputs that are orthogonal to it.
            parameters: the gate's fields as tensors, 0-dim or `[n]`. Read these, not the fields.
        """


@dataclass(frozen=True)
class Sigmoid(Gate):
    """`σ((s − bias)/temperature)`: Perfusion's gate (arXiv 2305.01644, equation 3).

    Attributes:
        bias: the similarity at which the gate is half open; higher lets less through. The paper
            trains with 0.75 and infers with 0.6 to 0.75 (local key lock), 0.4 to 0.6 (global).
        temperature: width of the transition, in units of similarity; positive. The paper trains
            with 0.1 and infers with 0.15.
    """

    name = "sigmoid"
    bias: float | Tensor = 0.75
    temperature: float | Tensor = 0.1

    def __post_init__(self) -> None:
        # Before all else that is wrong with it: whatever is not positive would be divided by.
        if not bool((torch.as_tensor(_field(self, "temperature")).double() > 0).all()):
            raise ShapeError(
                f"Sigmoid: temperature must be positive, got {self.temperature}; use a small "
                "number such as 0.01 for a sharp gate."
            )

    def opening(self, similarity: Similarity, parameters: Mapping[str, Tensor]) -> Similarity:
        """`σ((s − bias)/temperature)`."""
        return torch.sigmoid((similarity - parameters["bias"]) / parameters["temperature"])


@dataclass(frozen=True)
class JointSigmoid(Sigmoid):
    """`σ((c − bias)/temperature)` on the joint coordinates; for one key, `Sigmoid`.

    A key has coordinate 0 on every other key, however similar the two are: its input opens its own
    gate and no other one, where the similarity of two keys would open both.
    """

    name = "joint-sigmoid"
    reads = "coordinates"


@dataclass(frozen=True)
class Identity(Gate):
    """`g(c) = c`: the edit is linear, and equals the equality edit of its keys (ROME for one)."""

    name = "identity"
    reads = "coordinates"

    def opening(self, similarity: Similarity, parameters: Mapping[str, Tensor]) -> Similarity:
        """The joint coordinates as they are."""
        return similarity


AnyGate = TypeVar("AnyGate", bound=Gate)


def parameters(gate: Gate, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """A gate's fields as tensors, 0-dim or `[n]`; those that learn as they are, if in float32.

    Raises:
        ShapeError: a field is not a finite number or a vector of them.
    """
    found = {}
    for field in fields(gate):
        value = _field(gate, field.name)
        # One that learns must stay the tensor that its optimiser holds; a cast would be a copy.
        learns = isinstance(value, Tensor) and value.requires_grad
        tensor = torch.as_tensor(value, dtype=torch.float32 if learns else dtype)
        # A number of Python's is looked at itself: asking a tensor of it costs more than making it.
        known = None if isinstance(value, Tensor) else abs(value) <= torch.finfo(dtype).max
        finite = torch.isfinite(tensor).all() if known is None else known
        if tensor.ndim > 1 or not bool(finite):
            raise ShapeError(
                f"{type(gate).__name__}: {field.name} must be a finite number or a vector with one "
                f"number per key, got {describe(value)}."
            )
        found[field.name] = tensor
    return found


def _field(gate: Gate, name: str) -> float | Tensor:
    value: float | Tensor = getattr(gate, name)
    check_kind(type(gate).__name__, name, value, int, float, Tensor)
    check_dense(type(gate).__name__, name, value)
    return value


def opening(gate: Gate, similarity: Similarity) -> Similarity:
    """Opening of a gate for given similarities, with the gate's own parameters, on their device."""
    check_kind("gates.opening", "gate", gate, Gate)
    check_vectors("gates.opening", "similarity", similarity)
    if similarity.element_size() < 2:  # torch has no arithmetic of 8-bit numbers; exact
        similarity = similarity.float()
    values = {name: value.to(similarity.device) for name, value in parameters(gate).items()}
    return gate.opening(similarity, values)


def normalised_opening(
    gate: Gate, similarity: Similarity, values: Mapping[str, Tensor]
) -> Similarity:
    """`(g(s) − g(0))/(g(1) − g(0))`: exactly 0 at similarity 0 and 1 at similarity 1.

    The paper's sigmoid leaves 0.9 % of the target on unrelated inputs and reaches only 88 % of it
    at the key (bias 0.7, temperature 0.15); this takes both away and keeps the shape.
    """
    closed = gate.opening(torch.zeros_like(similarity), values)
    full = gate.opening(torch.ones_like(similarity), values)
    return (gate.opening(similarity, values) - closed) / (full - closed)


def check_normalisable(gate: Gate) -> None:
    """Refuse a gate that is as open at its key as away from it: it cannot be normalised.

    Raises:
        ShapeError: names the gate and its opening at similarity 0 and 1.
    """
    closed, full = (opening(gate, torch.tensor([s])) for s in (0.0, 1.0))
    if bool(((full - closed).abs() <= _LEAST_RANGE * full.abs()).any()):
        raise ShapeError(
            f"GatedEdit: {gate} opens to {full.tolist()} at its key and {closed.tolist()} away "
            "from it, too little apart to normalise; lower the temperature or move the bias "
            "between 0 and 1."
        )


def per_key(gate: AnyGate, count: int) -> AnyGate:
    """The same gate with every parameter written out for `count` keys."""
    # Cloned: an expanded tensor shares one number, which a change of one key would change for all.
    expanded = {name: value.expand(count).clone() for name, value in parameters(gate).items()}
    return replace(gate, **expanded)


GATES: tuple[type[Gate], ...] = (Sigmoid, JointSigmoid, Identity)
"""The gates that `rankedit.load` knows by their names in files without being told."""
