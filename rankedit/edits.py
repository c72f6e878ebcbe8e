"""The static edit of a projection, and what a solver reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from numbers import Real
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import linear

from rankedit.errors import ShapeError
from rankedit.metric import Metric
from rankedit.moments import SecondMoment
from rankedit.products import (
    DIGITS,
    bound,
    full_precision,
    holds,
    lopsided,
    row_norms,
    sum_of_products,
)
from rankedit.protocol import KeyOutputs, precision
from rankedit.shapes import (
    Inputs,
    Outputs,
    Weight,
    check_count,
    check_kind,
    check_rows,
    checked_device,
)


@dataclass(frozen=True)
class EditReport:
    """What a solver did.

    Attributes:
        residual: `‖K ΔWᵀ − R‖_F / ‖R‖_F`: what the keys still lack, relative to what they lacked.
        drift: `‖ΔW‖_M = √tr(ΔW M ΔWᵀ)`: with `M = C` the root mean square change of the output on
            the data behind the statistics; nan if there were none.
        condition: condition number of the metric (1-norm, estimated); nan if there was none.
        warnings: what deserves attention, in words.
    """

    residual: float
    drift: float
    condition: float
    warnings: tuple[str, ...] = ()

    def __str__(self) -> str:
        figures = (
            ("residual at the keys", f"{self.residual:.2g}"),
            ("drift", f"{self.drift:.3g}"),
            ("condition", f"{self.condition:.2g}"),
        )
        known = ", ".join(f"{name} {figure}" for name, figure in figures if figure != "nan")
        return "; ".join(filter(None, (known, *self.warnings)))


@dataclass(frozen=True, eq=False)
class LowRank:
    """A static edit `ΔW = up @ down`, added to the weight or beside it.

    Edits add up with `+`, `-` and `sum`. `==` asks whether two are one object: many factors have
    the same product, so compare `delta()`.

    Attributes:
        up: `[out, r]`.
        down: `[r, in]`, of the same dtype and on the same device.
        report: what the solver did, if a solver made it.

    Example:
        >>> edit = LowRank(torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0, 3.0]]))
        >>> edit.delta().tolist()
        [[0.0, 3.0], [0.0, 6.0]]
    """

    up: Tensor
    down: Tensor
    report: EditReport | None = None
    linear_in: ClassVar[tuple[str, ...]] = ("up",)

    def __post_init__(self) -> None:
        check_rows("LowRank", "up", self.up)
        check_rows("LowRank", "down", self.down, count=self.up.shape[1], per="columns of up")
        kinds = [f"{factor.dtype} on {factor.device}" for factor in (self.up, self.down)]
        if kinds[0] != kinds[1]:
            raise ShapeError(
                "LowRank: up and down must have one dtype and be on one device, got "
                f"{kinds[0]} and {kinds[1]}; convert one with tensor.to(other)."
            )

    @property
    def rank(self) -> int:
        """Number of columns of `up`; the rank of ΔW is at most this."""
        return self.up.shape[1]

    @property
    def in_features(self) -> int:
        """Width of the inputs."""
        return self.down.shape[1]

    @property
    def out_features(self) -> int:
        """Width of the outputs."""
        return self.up.shape[0]

    def delta(self) -> Weight:
        """`ΔW [out, in]`, written out."""
        return self.up @ self.down

    def to(
        self, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> LowRank:
        """The edit in another dtype or on another device.

        Where a factor is out of the dtype's range, and their product is not, it is `balanced`.

        Raises:
            ShapeError: the factors are out of range however they are balanced.
        """
        check_kind("LowRank.to", "dtype", dtype, torch.dtype, optional=True)
        if dtype and not (dtype.is_floating_point and dtype.itemsize > 1):
            raise ShapeError(
                f"LowRank.to: dtype must be a floating-point type of 16 bits or more, got {dtype}; "
                "torch.bfloat16 has the range of float32."
            )
        place = checked_device("LowRank.to", "device", device)
        dtype = dtype or self.up.dtype
        edit = self if holds(dtype, self.up.T, self.down) else self._evened()
        cast = replace(edit, **{n: getattr(edit, n).to(place, dtype) for n in ("up", "down")})
        if edit._leaves(dtype) or (edit is not self and edit._loses(cast, place)):
            raise ShapeError(
                f"LowRank.to: up and down must be within the range of {dtype}, but an edit of norm "
                f"{edit.norm():.2g} is not; choose a wider dtype, or scale the edit."
            )
        return cast

    def _leaves(self, dtype: torch.dtype) -> bool:
        """Whether an entry of the product is out of the range in which it will be computed."""
        if self.up.dtype != torch.float64 or dtype == torch.float64:
            return False
        largest = torch.finfo(torch.float32).max  # in which products of half precision are, too
        # No entry is above the norms' products, which cost little.
        up, down = self._doubles_on(None)
        most = float((row_norms(up.T) * row_norms(down)).sum())
        return most > largest and float((up @ down).abs().max()) > largest

    def _loses(self, cast: LowRank, place: torch.device | None) -> bool:
        lost = (LowRank(*self._doubles_on(place)) - LowRank(*cast._doubles_on(place))).norm()
        return lost > DIGITS * torch.finfo(cast.up.dtype).eps * self.norm()

    def norm(self) -> float:
        """Frobenius norm `‖ΔW‖_F`."""
        up, down = self.up.double(), self.down.double()
        return float(((up.T @ up) * (down @ down.T)).sum().clamp_min(0)) ** 0.5

    def drift(self, statistics: Metric | SecondMoment) -> float:
        """`√tr(ΔW C ΔWᵀ)`: root mean square change of the output on the data behind C."""
        check_kind("LowRank.drift", "statistics", statistics, Metric, SecondMoment)
        if isinstance(statistics, Metric):
            up, down = self._doubles_on(statistics.device)
            return float((up @ statistics.half(down)).norm())
        matrix = statistics.matrix
        up, down = self._doubles_on(matrix.device)
        return float((up.T @ up * (down @ matrix @ down.T)).sum().clamp_min(0)) ** 0.5

    def _doubles_on(self, device: torch.device | None) -> tuple[Tensor, Tensor]:
        # Moved first: some accelerators have no float64.
        place = device or self.up.device
        return self.up.to(place).double(), self.down.to(place).double()

    def balanced(self) -> LowRank:
        """The same ΔW with the norm of each component split evenly between up and down.

        Half precision loses components whose factors are very large and very small; split evenly,
        both keep their digits.
        """
        return self._evened().to(self.up.dtype)

    def _evened(self) -> LowRank:
        # Squares and ratios leave the range of half precision.
        up, down = (t.to(torch.promote_types(t.dtype, torch.float32)) for t in (self.up, self.down))
        ups, downs = row_norms(up.T), row_norms(down)
        alive = (ups > 0) & (downs > 0)
        # Roots first: the ratio of 1e-30 and 1e30 is none of float32's numbers.
        ratio = torch.where(alive, downs.sqrt() / ups.where(alive, 1).sqrt(), 0.0)
        inverse = torch.where(alive, 1 / ratio.where(alive, 1), 0.0)
        return replace(self, up=up * ratio, down=down * inverse[:, None])

    def compress(self, rank: int, metric: Metric | None = None) -> LowRank:
        """The edit of at most `rank` with the least expected change of output against this one.

        Minimises `‖ΔW − ΔW'‖_M` over all ΔW' of that rank (Eckart and Young in the metric's
        coordinates); without a metric it is the plain truncated SVD, which minimises `‖·‖_F`.

        Raises:
            ShapeError: rank is less than 1, or metric is none.
        """
        check_count("LowRank.compress", "rank", rank)
        check_kind("LowRank.compress", "metric", metric, Metric, optional=True)
        if rank >= self.rank:
            return self
        metric = metric or Metric.identity(self.in_features)
        up, down = self._doubles_on(metric.device)
        q, r = torch.linalg.qr(up)
        inner = r @ down
        # ΔW H = q (inner H): its leading left singular vectors span the best output directions.
        left = torch.linalg.svd(metric.half(inner), full_matrices=False).U[:, :rank]
        # Balanced before it is rounded: `left.T @ inner` holds all of the norm.
        return LowRank(q @ left, left.T @ inner).balanced().to(self.up.dtype, self.up.device)

    def __add__(self, other: LowRank) -> LowRank:
        if not isinstance(other, LowRank):
            return NotImplemented
        shapes = [(edit.out_features, edit.in_features) for edit in (self, other)]
        if shapes[0] != shapes[1]:
            raise ShapeError(
                f"LowRank + LowRank: both must edit the same projection [out, in], got "
                f"{list(shapes[0])} and {list(shapes[1])}."
            )
        ups, downs = torch.cat([self.up, other.up], 1), torch.cat([self.down, other.down])
        return LowRank(ups, downs)

    def __radd__(self, other: int) -> LowRank:
        """`sum(edits)` starts from 0."""
        return self if isinstance(other, int) and other == 0 else NotImplemented

    def __sub__(self, other: LowRank) -> LowRank:
        return self + -other if isinstance(other, LowRank) else NotImplemented

    def __mul__(self, factor: float | Tensor) -> LowRank:
        # A tensor with axes would scale columns of up, if it fits at all.
        if not isinstance(factor, Real) and not (isinstance(factor, Tensor) and not factor.ndim):
            return NotImplemented
        # Not in half precision, where a factor times a small number may be nothing.
        wide = torch.promote_types(self.up.dtype, torch.float32)
        return LowRank(self.up.to(wide) * factor, self.down.to(wide)).to(self.up.dtype)

    __rmul__ = __mul__

    def __neg__(self) -> LowRank:
        return self * -1.0

    # ---------------------------------------------------------------- the protocol of edits

    def bind(self, outputs: KeyOutputs) -> dict[str, Tensor]:
        """`up` and `down`; what the layer gives does not matter."""
        dtype = precision(outputs)
        learned = self.up.requires_grad or self.down.requires_grad
        edit = (
            self
            if learned or not lopsided(self.up.detach().T, self.down.detach())
            else self._evened()
        )
        edit = edit if learned else edit.to(dtype)
        return {"up": bound(edit.up, dtype), "down": bound(edit.down, dtype)}

    def added(self, x: Inputs, tensors: Mapping[str, Tensor]) -> Outputs:
        """`x downᵀ upᵀ`."""
        return sum_of_products(x, self.terms(x, tensors))

    def terms(self, x: Inputs, tensors: Mapping[str, Tensor]) -> tuple[tuple[Tensor, Tensor], ...]:
        """`x downᵀ` with `upᵀ`."""
        with full_precision(x):
            down = tensors["down"]
            # To be told that there is nothing to cast takes as long as a product of one token.
            x = x if x.dtype == down.dtype else x.to(down.dtype)
            return ((linear(x, down), tensors["up"].T),)

    def constant(self, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """`down` and `upᵀ`."""
        return tensors["down"], tensors["up"].T

    def settings(self) -> frozenset[str]:
        """Nothing but the strength, which every attached edit has."""
        return frozenset()
