"""The gated edit: a low-rank edit that decides for each input how far it applies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import linear

from rankedit import gates
from rankedit.edits import EditReport, LowRank
from rankedit.errors import ShapeError
from rankedit.gates import Gate, Sigmoid
from rankedit.independence import basis_of, check_independent
from rankedit.metric import Metric
from rankedit.products import bound, full_precision, sum_of_products
from rankedit.protocol import KeyOutputs, precision
from rankedit.shapes import (
    Inputs,
    Keys,
    Outputs,
    Values,
    check_kind,
    check_rows,
    check_vectors,
    describe,
    is_number,
)


@dataclass(frozen=True, init=False, eq=False)
class GatedEdit:
    """Keys `i_j` that open a gate towards targets `o_j`, and lose what the layer gave them.

    With the similarity `s_j(x) = ⟨i_j, x⟩/⟨i_j, i_j⟩`, the Gram matrix `G = I A Iᵀ` and the joint
    coordinates `c(x) = G⁻¹ I A xᵀ`, the layer's output becomes

        y(x) = W (x − c(x) I) + Σ_j gate(s_j(x)) o_j

    x loses its metric-orthogonal projection on the span of the keys, and gets the targets instead
    as far as the gates open (Perfusion, arXiv 2305.01644, equations 3, 4 and 10). It is applied as
    an addition, `gate(s) O − c (I Wᵀ)`, where `I Wᵀ` comes from running the layer on the keys.

    With the `Identity` gate it is the equality edit of `solve_edit`, and ROME for one key.
    `==` asks whether two edits are one object.

    Args:
        keys: `[n, in]`, linearly independent under the metric.
        targets: `[n, out]`; may require gradients.
        metric: the inner product.
        gate: how far the edit opens; `Sigmoid()` by default.
        normalised: rescale the gate to be exactly 0 at similarity 0 and 1 at similarity 1.
        floor: dead zone: inputs whose largest similarity is below the floor are left exactly as
            they are, neither term acts. None for no dead zone.

    Raises:
        ShapeError: shapes that do not match; a floor that is no finite number.
        SolveError: keys that are parallel under the metric, or outside its subspace.
    """

    keys: Keys
    targets: Values
    images: Keys
    gate: Gate
    normalised: bool
    floor: float | None
    statistics: str
    linear_in: ClassVar[tuple[str, ...]] = ("targets", "removed")

    def __init__(
        self,
        keys: Keys,
        targets: Values,
        metric: Metric,
        gate: Gate | None = None,
        *,
        normalised: bool = False,
        floor: float | None = None,
    ) -> None:
        check_kind("GatedEdit", "metric", metric, Metric)
        check_rows("GatedEdit", "keys", keys, metric.dim, of="metric")
        images = metric.guarded.solve(keys).to(keys.device)
        gate = Sigmoid() if gate is None else gate
        self._fill(keys, targets, images, gate, normalised, floor, metric.fingerprint)

    @classmethod
    def from_images(
        cls,
        keys: Keys,
        targets: Values,
        images: Keys,
        gate: Gate,
        *,
        normalised: bool = False,
        floor: float | None = None,
        statistics: str = "",
    ) -> GatedEdit:
        """An edit from the metric images `I A [n, in]` of its keys: no metric is needed any more.

        `images` may require gradients (a key that is being learned).
        """
        edit = cls.__new__(cls)
        edit._fill(keys, targets, images, gate, normalised, floor, statistics)
        return edit

    def _fill(self, *values: object) -> None:
        names = [field.name for field in fields(self)]
        self._set(dict(zip(names, values, strict=True)))

    def _set(self, values: Mapping[str, object]) -> None:
        """Set some fields, and check what they have to do with."""
        for name, value in values.items():
            object.__setattr__(self, name, value)
        moved = not values.keys().isdisjoint(("keys", "images"))
        if moved:
            object.__setattr__(self, "_known", [])
            size = check_rows("GatedEdit", "keys", self.keys).shape
            check_rows("GatedEdit", "images", self.images, size[1], size[0], of="keys", per="keys")
        count = len(self.keys)
        if moved or "targets" in values:
            check_rows("GatedEdit", "targets", self.targets, count=count, per="keys")
        if moved or not values.keys().isdisjoint(("gate", "normalised", "floor")):
            self._check_gate(count)
        if moved:  # last: it costs most
            check_independent("GatedEdit", self.gram())

    def _check_gate(self, count: int) -> None:
        check_kind("GatedEdit", "gate", self.gate, Gate, expected="rankedit.Gate such as Sigmoid()")
        for name, value in gates.parameters(self.gate).items():
            if value.ndim and value.shape[0] != count:
                raise ShapeError(
                    f"GatedEdit: the gate's {name} must be one number or [{count}], one for each "
                    f"key, got [{value.shape[0]}]."
                )
        if self.floor is not None and not is_number(self.floor):
            raise ShapeError(
                "GatedEdit: floor must be a finite number, or None for no dead zone, got "
                f"{describe(self.floor)}; similarities are about 0 to 1."
            )
        if self.normalised:
            gates.check_normalisable(self.gate)

    @property
    def in_features(self) -> int:
        """Width of the inputs."""
        return self.keys.shape[1]

    @property
    def out_features(self) -> int:
        """Width of the outputs."""
        return self.targets.shape[1]

    def gram(self) -> Tensor:
        """`G = I A Iᵀ [n, n]`, float64, symmetric."""
        # Symmetric but for rounding, which a Cholesky factorisation would read one half of.
        gram = self.images.double() @ self.keys.double().T
        return (gram + gram.T) / 2

    def similarity(self, x: Inputs) -> Tensor:
        """`s(x) [..., n]`: 1 at a key itself, 0 for what is orthogonal to it; float64."""
        check_vectors("GatedEdit.similarity", "x", x, self.in_features)
        directions = self.images.double() / self.gram().diagonal()[:, None]
        return linear(x.double(), directions)

    def opening(self, x: Inputs) -> Tensor:
        """How far each key's gate opens for x `[..., n]`, in float64, dead zone included."""
        check_vectors("GatedEdit.opening", "x", x, self.in_features)
        tensors = {
            k: v.double() for k, v in self.bind(lambda _: torch.zeros_like(self.targets)).items()
        }
        return self._read(x.double(), tensors)[0]

    def with_targets(self, targets: Values) -> GatedEdit:
        """The same keys and gate with other targets."""
        return self.changed(targets=targets)

    def with_gate(
        self,
        gate: Gate,
        *,
        normalised: bool | Literal["keep"] = "keep",
        floor: float | Literal["keep"] | None = "keep",
    ) -> GatedEdit:
        """The same keys and targets behind another gate.

        Args:
            gate: the other gate.
            normalised: as in `GatedEdit`; by default as it is now.
            floor: as in `GatedEdit`, None takes the dead zone away; by default as it is now.
        """
        asked = {"normalised": normalised, "floor": floor}
        # By type first: an array compares with a text entry by entry.
        changes = {n: v for n, v in asked.items() if not (isinstance(v, str) and v == "keep")}
        return self.changed(gate=gate, **changes)

    def changed(self, **changes: object) -> GatedEdit:
        """The same edit with other fields, checked; images are `metric.guarded.solve(keys)`."""
        edit = GatedEdit.__new__(GatedEdit)
        edit.__dict__.update(self.__dict__)  # not `replace`, which would solve for images again
        edit._set(changes)
        return edit

    def linearised(self, outputs: KeyOutputs, inputs: Inputs | None = None) -> LowRank:
        """The static edit with the gates replaced by the identity: `ΔW = (O − I Wᵀ)ᵀ G⁻¹ I A`.

        Only this can be fused into a weight or exported as a LoRA. It is not the same edit: it acts
        on every input in proportion to its similarity.

        Args:
            outputs: the layer without its bias; see `Edit.bind`.
            inputs: what the layer reads, `[..., in]`, to measure the difference on.

        Returns:
            The edit. Its report's residual is `‖linear − gated‖_F/‖gated‖_F` of what is added to
            the keys, and a line of the report's warnings has the same figure for the inputs.
        """
        tensors = self.bind(outputs)
        lacking = self.targets.detach().double() - outputs(self.keys).detach().double()
        edit = LowRank(lacking.T, torch.linalg.solve(self.gram(), self.images.double()).detach())

        def difference(x: Inputs) -> float:
            gated = self.added(x, tensors).double()
            linear_part = edit.added(x, edit.bind(outputs)).double()
            return float((linear_part - gated).norm() / gated.norm().clamp_min(1e-300))

        at_keys = difference(self.keys)
        notes = [f"linearised: differs from the gated edit by {at_keys:.1%} at its keys"]
        if inputs is not None:
            check_vectors("GatedEdit.linearised", "inputs", inputs, self.in_features)
            notes.append(f"linearised: differs by {difference(inputs):.1%} on the inputs given")
        return replace(edit, report=EditReport(at_keys, float("nan"), float("nan"), tuple(notes)))

    # ---------------------------------------------------------------- the protocol of edits

    def bind(self, outputs: KeyOutputs) -> dict[str, Tensor]:
        """Constants: directions to read, targets, `−k' Wᵀ`, the gate's parameters.

        The keys are read in an orthogonal basis k' of theirs, see `Orthogonalised`; several keys
        have the two matrices that turn its coordinates into similarities and joint coordinates.
        """
        learned = self.keys.requires_grad or self.images.requires_grad
        basis = basis_of(self.gram, None if learned else self.__dict__["_known"])
        dtype = precision(outputs)
        tensors = {
            "read": basis.reading(self.images.double()).to(dtype),
            "targets": bound(self.targets, dtype),
            "removed": -(basis.combine @ outputs(self.keys).to(basis.combine)).to(dtype),
            **gates.parameters(self.gate, dtype),
        }
        if len(self.keys) > 1:  # one key is its own basis
            tensors["to_similarity"] = basis.similarity.to(dtype)
            tensors["to_coordinates"] = basis.combine.T.to(dtype)
        if self.floor is not None:
            tensors["floor"] = torch.tensor(self.floor, dtype=dtype)
        return {name: tensor.to(self.keys.device) for name, tensor in tensors.items()}

    def added(self, x: Inputs, tensors: Mapping[str, Tensor]) -> Outputs:
        """`gate(s) O − c (I Wᵀ)`, whatever autocast says: half precision ruins s."""
        added = sum_of_products(x, self.terms(x, tensors))
        return added + 0.0 if "floor" in tensors else added  # no negative zeros in the dead zone

    def terms(self, x: Inputs, tensors: Mapping[str, Tensor]) -> tuple[tuple[Tensor, Tensor], ...]:
        """`gate(s)` with O, and the coordinates on the orthogonal keys with `−k' Wᵀ`."""
        with full_precision(x):
            dtype = tensors["read"].dtype
            opening, parts = self._read(x if x.dtype == dtype else x.to(dtype), tensors)
        return (opening, tensors["targets"]), (parts, tensors["removed"])

    def settings(self) -> frozenset[str]:
        """The gate's parameters, and the floor if there is one."""
        names = {field.name for field in fields(self.gate)}
        return frozenset(names | ({"floor"} if self.floor is not None else set()))

    def _read(self, x: Inputs, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        parts = linear(x, tensors["read"])
        seen = _combined(parts, tensors, self.gate.reads)
        if self.normalised:
            opening = gates.normalised_opening(self.gate, seen, tensors)
        else:
            opening = self.gate.opening(seen, tensors)
        if "floor" not in tensors:
            return opening, parts
        similarity = _combined(parts, tensors, "similarity")
        active = similarity.amax(-1, keepdim=True) >= tensors["floor"]
        # Not products: the dead zone leaves nothing of what is not finite either.
        return torch.where(active, opening, 0.0), torch.where(active, parts, 0.0)


def _combined(parts: Tensor, tensors: Mapping[str, Tensor], name: str) -> Tensor:
    matrix = tensors.get(f"to_{name}")
    return parts if matrix is None else linear(parts, matrix)
