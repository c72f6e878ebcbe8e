"""What a projection reads: a streaming, mergeable, uncentred second moment.

`SecondMoment` keeps a few sums, from which every statistic of the library follows without a second
pass over the data. Sums form a commutative monoid: shards may be accumulated anywhere, in any
order, and added. Vectors of extreme energy have sums of their own (`rankedit.extremes`).
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from functools import reduce

import torch
from torch import Tensor

from rankedit.accumulating import Accumulator, Policy, check_settings
from rankedit.errors import ShapeError, StatisticsError
from rankedit.extremes import Extremes
from rankedit.gathering import gathered, group_device
from rankedit.packing import Batch, coarser
from rankedit.provenance import Provenance
from rankedit.shapes import Covariance, Inputs, Keys, check_count, check_finite, check_kind
from rankedit.sums import Products

# Rows are widened to float64 this many at a time, which bounds the extra memory of an update.
CHUNK_ROWS = 4096


class SecondMoment:
    """Running second moment `C = E[xᵀ x]` of row vectors x, accumulated in float64.

    With weights `w` (1 if not given) the sums kept are `Σw`, `Σw²`, `Σw x`, `Σw xᵀx`, `Σw‖x‖⁴`.
    The last is what Ledoit-Wolf shrinkage needs, so that no second pass over the data is ever made.

    **Extreme vectors**, more than five times as long as three quarters of all seen so far, such as
    attention sinks, are kept apart in `extremes`; all other figures are of the ordinary vectors,
    and do not depend on how long the others are. Edits protect them all the same: see
    `Metric.guarded`. Of fewer than 64 vectors none is extreme. Without such vectors nothing differs
    from `extremes="together"`.

    **Precision.** Products are in float32 where vectors are no finer (`products="float64"`: never),
    summed in float64 for every 1,024 vectors. The error of an entry is then at most
    `1024·u·√(C_ii C_jj)` with `u = 2⁻²⁴`; about `u·√(C_ii C_jj)` is usual. Never TF32: where it is
    allowed, products are in float64; so are those of vectors that lie far from the origin, beside
    which they hardly differ. Where single coordinates do, and their variance counts, ask for it.

    Memory: `4·dim²` bytes. `update` takes at most three chunks of `CHUNK_ROWS·dim·8` bytes more
    (300 MB at dim 3072) and a few bytes per vector, whatever the size of the batch; one whose
    vectors do not lie one behind the other in memory is copied first.

    Args:
        dim: width of the vectors.
        device: where to keep the sums; the CPU if None. A batch is moved there in chunks.
        provenance: where the data comes from; written into files.
        extremes: whether vectors of extreme energy are kept `"apart"` or counted `"together"`.
        products: the precision of products of vectors that are no finer than float32.

    Example:
        >>> import torch
        >>> x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        >>> moment = SecondMoment(2).update(x[:1]).update(x[1:])
        >>> moment.count, moment.matrix.tolist()
        (2.0, [[5.0, 7.0], [7.0, 10.0]])
    """

    def __init__(
        self,
        dim: int,
        *,
        device: torch.device | str | None = None,
        provenance: Provenance | None = None,
        extremes: Policy = "apart",
        products: Products = "float32",
    ) -> None:
        check_count("SecondMoment", "dim", dim)
        check_settings("SecondMoment", extremes, products)
        self.dim = dim
        self.provenance = provenance or Provenance()
        self.dtype = torch.float64
        self._parts = Accumulator.empty(dim, device, extremes, products)

    @torch.no_grad()
    def update(
        self, x: Inputs, mask: Tensor | None = None, weights: Tensor | None = None
    ) -> SecondMoment:
        """Add a batch `x [..., dim]` of any float dtype, from any device.

        Args:
            x: the vectors.
            mask: `[...]` boolean (or 0/1); vectors where it is false are left out.
            weights: `[...]` non-negative frequency weights; a weight of 2 counts a vector twice.

        Returns:
            The moment itself, so that updates can be chained.

        Raises:
            ShapeError: wrong width, a mask or weights of another shape, negative weights, or
                entries that are not finite. Nothing is added in that case.
        """
        call = "SecondMoment.update"
        batch = Batch.of(call, self.dim, x, mask, weights)
        starts = range(0, batch.rows.shape[0], CHUNK_ROWS)
        for start in starts:  # all of it before any is added
            check_finite(call, "x", batch.chunk(start, CHUNK_ROWS)[0], power=4)
        for start in starts:
            rows, counts = batch.chunk(start, CHUNK_ROWS)
            if rows.shape[0]:
                self.dtype = coarser(self.dtype, rows.dtype)
            self._parts.take(rows, counts)
        return self

    def merge_(self, other: SecondMoment) -> SecondMoment:
        """Add another moment's sums to this one. Associative and commutative up to rounding.

        In each it was judged by what it had seen which vectors are extreme.

        Raises:
            ShapeError: different widths.
            StatisticsError: statistics of different models, modules or tokenizers.
        """
        check_kind("SecondMoment.merge", "other", other, SecondMoment)
        if other.dim != self.dim:
            raise ShapeError(
                f"SecondMoment.merge: both moments must have the same width, got {self.dim} and "
                f"{other.dim}; they belong to different projections."
            )
        self.provenance = self.provenance.merged(other.provenance)
        self._parts.merge_(other._parts)
        self.dtype = coarser(self.dtype, other.dtype)
        return self

    def __add__(self, other: SecondMoment) -> SecondMoment:
        if not isinstance(other, SecondMoment):
            return NotImplemented
        return self.clone().merge_(other)

    def all_reduce_(self, group: torch.distributed.ProcessGroup | None = None) -> SecondMoment:
        """Sum over the processes of a `torch.distributed` group; afterwards all hold the same.

        Half of the symmetric matrix travels, in float64. With the nccl backend it travels through
        this process's current CUDA device, with gloo through the CPU.

        Raises:
            StatisticsError: no process group is initialised, or the processes hold statistics of
                different widths, models, modules or tokenizers; on all of them, and nothing is
                changed.
        """
        call = "SecondMoment.all_reduce_"
        device = group_device(call, group)
        said = gathered((self.dim, self.dtype, self.provenance), group)
        dims, dtypes, provenances = zip(*said, strict=True)
        if min(dims) != max(dims):
            raise StatisticsError(
                f"{call}: all processes must hold the same width, got {min(dims)} to {max(dims)}; "
                "reduce the moments of one projection at a time, in the same order."
            )
        # All fold the same list in the same order: they refuse together, or agree.
        provenance = reduce(lambda a, b: a.merged(b, call=call), provenances)
        self._parts = self._parts.reduced(device, group)
        self.dtype = reduce(coarser, dtypes)
        self.provenance = provenance
        return self

    def together(self) -> SecondMoment:
        """A copy in which extreme vectors count as the others do."""
        return self._with(self._parts.together())

    @property
    def device(self) -> torch.device:
        """Where the sums are."""
        return self._parts.device

    @property
    def count(self) -> float:
        """`Σw`: the number of ordinary vectors (their total weight)."""
        return float(self._parts.ordinary.scalars[0])

    @property
    def seen(self) -> float:
        """`Σw` over all vectors, those of extreme energy too."""
        return self.count + self.extremes.count

    @property
    def extremes(self) -> Extremes:
        """The sums of the vectors of extreme energy; false if there are none."""
        return self._parts.extremes

    @property
    def extreme_share(self) -> float:
        """Share of the vectors of extreme energy in `Σw‖x‖²`, from 0 to 1."""
        energy = self.extremes.energy
        return energy / (energy + self._parts.ordinary.outer.trace()) if energy else 0.0

    def extreme_keys(self) -> Keys | None:
        """Directions `[r, dim]` of the extreme vectors, for `solve_edit(hold=...)`; None if none.

        As many as make them extreme: what is left of them is no longer than ordinary vectors are.
        Held, nothing moves along them; `Metric.guarded` is what is done without being asked.
        """
        if not self.extremes:
            return None
        return self.extremes.directions(self._parts.ordinary.outer.trace() / self._counted())

    @property
    def effective_count(self) -> float:
        """`(Σw)² / Σw²`: how many equally weighted vectors vary as much; Kish (1965).

        It does not change with the scale of the weights; shrinkage uses `count`, which does.
        """
        return self.count**2 / float(self._parts.ordinary.scalars[1]) if self.count else 0.0

    @property
    def mean(self) -> Tensor:
        """`E[x] [dim]`, float64."""
        return self._parts.ordinary.total / self._counted()

    @property
    def matrix(self) -> Covariance:
        """`C = E[xᵀx] [dim, dim]`, uncentred, float64, exactly symmetric."""
        return self._parts.ordinary.outer.matrix() / self._counted()

    @property
    def covariance(self) -> Covariance:
        """`C − E[x]ᵀE[x] [dim, dim]`: the centred second moment, float64, divided by n."""
        return self.matrix - torch.outer(self.mean, self.mean)

    @property
    def fourth(self) -> float:
        """`E‖x‖⁴`."""
        return float(self._parts.ordinary.scalars[2]) / self._counted()

    @property
    def effective_rank(self) -> float:
        """`(tr C)² / ‖C‖²_F` in [1, dim]: how many equally strong directions spread as much."""
        matrix = self.matrix
        square = float(matrix.square().sum())
        return float(matrix.trace()) ** 2 / square if square else 0.0

    def _counted(self) -> float:
        if not self.count:
            raise StatisticsError(
                "SecondMoment: no vector has been seen yet (count is 0); call update with data, "
                "and check that the mask keeps some tokens."
            )
        return self.count

    def to(self, device: torch.device | str) -> SecondMoment:
        """A copy of the moment on another device."""
        return self._with(self._parts.to(device))

    def _with(self, parts: Accumulator) -> SecondMoment:
        other = copy(self)
        other._parts = parts
        return other

    def clone(self) -> SecondMoment:
        """An independent copy."""
        return self.to(self.device)

    def packed(self) -> Tensor:
        """`Σw xᵀx` as its upper triangle row by row, `[dim·(dim+1)/2]`, float64."""
        return self._parts.ordinary.outer.packed()

    def state(self) -> dict[str, Tensor]:
        """All sums as named tensors: `outer_packed`, `total`, three 0-dim sums, and `energies`.

        With vectors of extreme energy also `extreme_rows`, `extreme_total` and `extremes`.
        """
        return self._parts.state()

    @classmethod
    def from_state(
        cls,
        state: Mapping[str, Tensor],
        provenance: Provenance,
        dtype: torch.dtype,
        *,
        extremes: Policy = "apart",
        products: Products = "float32",
    ) -> SecondMoment:
        """Rebuild a moment from `state()`; `dtype` is the activation dtype it was collected in.

        Without `energies`, what is usual is learned anew from what comes. `extremes` and `products`
        are for what is added later.

        Raises:
            ShapeError: sums of inconsistent shape, not finite, or a negative count.
        """
        moment = cls(state["total"].shape[0], provenance=provenance)
        moment._parts = Accumulator.from_state(state, extremes, products)
        moment.dtype = dtype
        return moment

    def __repr__(self) -> str:
        apart = f" + {self.extremes.count:g} extreme" if self.extremes else ""
        return f"SecondMoment(dim={self.dim}, count={self.count:g}{apart}, dtype={self.dtype})"
