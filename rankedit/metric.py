"""The inner product under which an edit is small.

A `Metric` holds a symmetric positive definite `M [in, in]` (the regularised second moment of what a
projection reads) in factorised form, and its inverse `A = M⁻¹`. The cost of changing a weight by
`ΔW` is `‖ΔW‖²_M = tr(ΔW M ΔWᵀ)`: with `M = C` the expected squared change of the output on the
data behind `C`. Factorised once in float64, a metric is shared by all projections that read the
same input. Metrics are immutable: every method returns a new one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from rankedit.errors import ShapeError, SolveError
from rankedit.factors import Factors, checked_matrix, fingerprint, hash_of, short_hash
from rankedit.moments import SecondMoment
from rankedit.shapes import (
    Basis,
    Covariance,
    Keys,
    check_kind,
    check_rows,
    checked_weights,
    is_number,
)
from rankedit.spectra import Guard, noise_floor, shrunk
from rankedit.subspace import Subspace, null_space


class Metric:
    """Factorised inner product `⟨x, y⟩ = x A yᵀ` with `A = M⁻¹`, on a subspace if restricted.

    Build one with `from_moment`, `from_matrix`, `identity` or `null_space`; refine it with
    `scaled`, `extended` and `restricted`. Directions outside the subspace of a restricted metric
    have infinite cost: `A` is zero there.

    Attributes:
        dim: width of the vectors.
        fingerprint: short hash of the statistics and settings behind the metric; edits made under
            metrics of different fingerprints are not comparable.
        typical_energy: mean of `x A xᵀ` over the data behind the metric (without a ridge, dim);
            None if it was not made from data.
    """

    def __init__(
        self,
        factors: Factors,
        fingerprint: str,
        *,
        typical_energy: float | None = None,
        guard: Guard | None = None,
    ) -> None:
        self.dim = factors.space.dim
        self.fingerprint = fingerprint
        self.typical_energy = typical_energy
        self._factors = factors
        self._guard = guard

    @classmethod
    def from_moment(
        cls,
        moment: SecondMoment,
        *,
        ridge: float | None = None,
        shrinkage: float | Callable[[SecondMoment], float] | None = None,
        centred: bool = False,
    ) -> Metric:
        """`M = (1 − s) C + (s + ridge) μ I` with `μ = tr(C)/dim`, from collected statistics.

        C is of the ordinary vectors; those of extreme energy are protected: see `guarded`.

        Args:
            moment: what the projection reads.
            ridge: in units of the mean eigenvalue μ, hence free of the data's scale. By default
                the noise floor of the activations' dtype (`NOISE_FLOOR`): 1e-6 for float32 and
                float16, 1e-5 for bfloat16, 1e-12 for float64; four times the most negative
                eigenvalue where that is more.
            shrinkage: intensity s in [0, 1], or a function of the moment that gives it, such as
                `rankedit.ledoit_wolf` or `rankedit.oas`; none by default.
            centred: use the covariance about the mean instead of the second moment (LEACE).

        Raises:
            SolveError: the matrix is not positive definite even so; names the ridge to pass.
            ShapeError: ridge is negative or shrinkage outside [0, 1].
        """
        check_kind("Metric.from_moment", "moment", moment, SecondMoment)
        matrix = shrunk(moment, shrinkage, centred=centred)
        floor = noise_floor(matrix, moment.dtype) if ridge is None else ridge
        plain = cls.from_matrix(matrix, ridge=floor)
        return plain._beside(Guard.of(moment), typical=float(moment.dim))

    @classmethod
    def from_matrix(cls, matrix: Covariance, *, ridge: float = 0.0) -> Metric:
        """`M = matrix + ridge·tr(matrix)/dim·I`, from any symmetric positive definite matrix.

        Raises:
            ShapeError: not square, not symmetric to 1e-6 relative, not finite, or negative ridge.
            SolveError: not positive definite; names the ridge that would make it so.
        """
        matrix = checked_matrix("Metric.from_matrix", matrix)
        if not is_number(ridge) or ridge < 0:
            raise ShapeError(f"Metric.from_matrix: ridge must be at least 0, got {ridge}.")
        regularised = matrix.clone()
        regularised.diagonal().add_(ridge * matrix.trace() / len(matrix))
        factors = Factors.of(Subspace.whole(len(matrix)), regularised, ridge)
        return cls(factors, fingerprint(matrix, f"ridge={ridge!r}"))

    @classmethod
    def identity(cls, dim: int, scale: float = 1.0) -> Metric:
        """`M = scale·I`: every direction costs the same, without statistics (TIME, UCE)."""
        if not isinstance(dim, int) or dim < 1 or not is_number(scale) or scale <= 0:
            raise ShapeError(
                f"Metric.identity: dim must be at least 1 and scale positive, got {dim}, {scale}."
            )
        factors = Factors(Subspace.whole(dim), scale=scale)
        return cls(factors, short_hash(f"identity {dim} {scale!r}"))

    @classmethod
    def null_space(
        cls,
        statistics: SecondMoment | Covariance,
        *,
        relative: float | None = None,
        energy: float | None = None,
        scale: float = 1.0,
    ) -> Metric:
        """`M = scale·I` on the directions that the data hardly uses, infinite cost elsewhere.

        Edits leave the data's own directions exactly as they are (AlphaEdit, arXiv 2410.02355,
        where scale is its L2). Both cuts are relative: scaling the data changes nothing.

        Args:
            statistics: a moment, or its matrix.
            relative: eigenvalues of at most `relative` times the largest are free.
            energy: the smallest eigenvalues that add up to at most this share of the trace are
                free. Give exactly one of the two.
            scale: cost of the free directions.

        Raises:
            SolveError: no direction is free under the cut.
        """
        guard = None
        if isinstance(statistics, SecondMoment):
            guard, statistics = Guard.of(statistics, hard=True), statistics.matrix
        matrix = checked_matrix("Metric.null_space", statistics, "statistics")
        space = null_space(matrix, relative=relative, energy=energy)
        settings = f"null {relative!r} {energy!r} {scale!r}"
        return cls(Factors(space, scale=scale), fingerprint(matrix, settings))._beside(guard)

    @cached_property
    def guarded(self) -> Metric:
        """The metric under which also the vectors of extreme energy are protected.

        Their `Σ xᵀx/n` is added to M; a `null_space` loses their directions. `solve_edit`, `Ledger`
        and `GatedEdit` take it by themselves. All else that this metric says is of the ordinary
        vectors, and no attention sink moves it. Without such vectors it is the metric itself.
        """
        if self._guard is None:
            return self
        rows, hard, space = self._guard.rows, self._guard.hard, self._factors.space
        metric = self.restricted(space.without(rows).basis()) if hard else self.extended(rows)
        return Metric(metric._factors, self.fingerprint, typical_energy=metric.typical_energy)

    def _beside(self, guard: Guard | None, typical: float | None = None) -> Metric:
        mark = self.fingerprint if guard is None else guard.marked(self.fingerprint)
        return Metric(self._factors, mark, typical_energy=typical, guard=guard)

    def scaled(self, factor: float) -> Metric:
        """`M' = factor·M`. In MEMIT the factor is the number of pseudo-samples behind C."""
        if not is_number(factor) or factor <= 0:
            raise ShapeError(f"Metric.scaled: factor must be positive, got {factor}.")
        typical = self.typical_energy and self.typical_energy / factor
        metric = self._derived(self._factors.scaled(factor), f"scaled {factor!r}", typical)
        metric._guard = self._guard and self._guard.scaled(factor)
        return metric

    def extended(
        self, keys: Keys, weights: Tensor | float = 1.0, *, label: str | None = None
    ) -> Metric:
        """`M' = M + Σ_j w_j k_jᵀ k_j`: also protect what these keys give.

        Earlier edits (sequential MEMIT), inputs to preserve (UCE). By the Woodbury identity where
        that is cheaper and accurate, else factorised anew.

        Args:
            keys: `[n, dim]`.
            weights: non-negative, one number or `[n]`.
            label: stands for keys and weights in the fingerprint; by default a hash of them.
        """
        rows = check_rows("Metric.extended", "keys", keys, self.dim)
        rows = rows.detach().to(self.device or rows.device)
        given = checked_weights("Metric.extended", "weights", weights, len(rows), rows.device)
        roots = given.sqrt()
        change = f"extended {label or hash_of(rows.double() * roots[:, None])}"
        return self._derived(self._factors.extended(rows, roots), change, self.typical_energy)

    def restricted(self, basis: Basis) -> Metric:
        """`A' = Qᵀ (Q M Qᵀ)⁻¹ Q`: edits confined to the span of `basis [r, dim]`, orthonormal in Q.

        Raises:
            SolveError: the rows are linearly dependent, or outside this metric's own subspace.
        """
        rows = check_rows("Metric.restricted", "basis", basis, self.dim)
        space = Subspace.spanned_by(rows.detach().to(self.device or rows.device).double())
        basis = space.basis()
        outside = basis - self._factors.space.projected(basis)
        if float(outside.abs().max()) > 1e-8:
            raise SolveError(
                "Metric.restricted: basis must lie inside the subspace that the metric is already "
                "restricted to; project it there first, or start from the unrestricted metric."
            )
        half = self.half(basis)
        factors = Factors.of(space, half @ half.T)
        typical = self.typical_energy and float(space.rank)
        return self._derived(factors, f"restricted {hash_of(basis)}", typical)

    def _derived(self, factors: Factors, change: str, typical: float | None) -> Metric:
        changed = short_hash(f"{self.fingerprint} {change}")
        return Metric(factors, changed, typical_energy=typical, guard=self._guard)

    @property
    def device(self) -> torch.device | None:
        """Where the factors live; inputs are moved there. None for the identity: it holds none."""
        return self._factors.device

    def solve(self, x: Keys) -> Tensor:
        """`x A [n, dim]`, float64: the metric image of the rows of x."""
        return self._factors.space.ambient(self._factors.solve(self._coordinates("solve", x)))

    def whiten(self, x: Keys) -> Tensor:
        """`x B [n, m]` with `B Bᵀ = A`, so that `⟨x, y⟩ = (x B)(y B)ᵀ`; float64."""
        return self._factors.whiten(self._coordinates("whiten", x))

    def unwhiten(self, y: Tensor) -> Keys:
        """`y Bᵀ [n, dim]`; `unwhiten(whiten(x))` is `solve(x)`.

        A half has the square root of M's condition number: between two, twice as many digits stay.
        """
        return self._factors.space.ambient(self._factors.unwhiten(y))

    def inner(self, x: Keys, y: Keys) -> Tensor:
        """`x A yᵀ [n, m]`, float64: inner products between the rows of x and those of y."""
        first, second = self._coordinates("inner", x), self._coordinates("inner", y, "y")
        return self._factors.whiten(first) @ self._factors.whiten(second).T

    def cosine(self, x: Keys, y: Keys) -> Tensor:
        """Cosines `[n, m]` under the metric; 0 for keys outside its subspace, of no direction."""
        squares = [self.energy(rows) for rows in (x, y)]
        norms = torch.outer(*squares).sqrt()
        return self.inner(x, y) / norms.where(norms > 0, torch.inf)

    def energy(self, x: Keys) -> Tensor:
        """`x_j A x_jᵀ [n]`: how unusual each row is. On the data itself the mean is about dim."""
        return self.whiten(x).square().sum(1)

    def reach(self, x: Keys) -> Tensor:
        """Share `[n]` of each row's squared length that lies inside the metric's subspace."""
        rows = check_rows("Metric.reach", "x", x, self.dim).detach()
        rows = rows.to(self.device or rows.device)
        return torch.cat([self._factors.space.share(some.double()) for some in rows.split(1024)])

    def apply(self, x: Keys) -> Tensor:
        """`x M [n, dim]`, float64, with M taken as zero outside the subspace."""
        return self._factors.space.ambient(self._factors.apply(self._coordinates("apply", x)))

    def half(self, x: Keys) -> Tensor:
        """`x H [n, m]` with `H Hᵀ = M`, so that `‖x‖²_M = ‖x H‖²`; float64."""
        return self._factors.half(self._coordinates("half", x))

    def _coordinates(self, call: str, x: Keys, name: str = "x") -> Tensor:
        rows = check_rows(f"Metric.{call}", name, x, self.dim, of="metric").detach()
        # On the metric's device first: some accelerators have no float64.
        return self._factors.space.coordinates(rows.to(self.device or rows.device).double())

    @property
    def rank(self) -> int:
        """Dimension of the subspace in which edits may lie; dim unless restricted."""
        return self._factors.space.rank

    @cached_property
    def condition(self) -> float:
        """Condition number of M in the 1-norm, estimated from a few solves; Higham (1988).

        Usually exact, never above the truth, rarely below a third. Work: O(dim²).
        """
        return self._factors.condition()

    @property
    def effective_rank(self) -> float:
        """`(tr M)² / ‖M‖²_F`: the number of equally strong directions with the same spread."""
        return self._factors.effective_rank()

    def __repr__(self) -> str:
        additions = len(self._factors._rows())
        return f"Metric(dim={self.dim}, rank={self._factors.space.rank}, additions={additions})"
