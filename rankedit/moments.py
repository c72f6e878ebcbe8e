"""What a projection reads: a streaming, mergeable, uncentred second moment.

`SecondMoment` keeps six sums, from which every statistic of the library follows without a second
pass over the data. Sums form a commutative monoid: shards may be accumulated anywhere, in any
order, and added.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce

import torch
from torch import Tensor

from rankedit.errors import ShapeError, StatisticsError
from rankedit.packing import Batch, coarser, packed_triangle, unpacked
from rankedit.provenance import Provenance
from rankedit.shapes import Covariance, Inputs, check_count, check_finite, check_kind, describe

# Rows are widened to float64 this many at a time, which bounds the extra memory of an update.
CHUNK_ROWS = 4096
# Columns of the triangle that are computed at once, with the square on the diagonal.
_BLOCK = 256
_NUMBERS = ("count", "weight_squares", "fourth")


class SecondMoment:
    """Running second moment `C = E[xᵀ x]` of row vectors x, accumulated in float64.

    With weights `w` (1 if not given) the sums kept are `Σw`, `Σw²`, `Σw x`, `Σw xᵀx`, `Σw‖x‖⁴`.
    The last is what Ledoit-Wolf shrinkage needs, so that no second pass over the data is ever made.

    Memory: `8·dim²` bytes. `update` takes at most three chunks of `CHUNK_ROWS·dim·8` bytes more
    (300 MB at dim 3072) and a few bytes per vector, whatever the size of the batch; one whose
    vectors do not lie one behind the other in memory is copied first.

    Args:
        dim: width of the vectors.
        device: where to keep the sums; the CPU if None. A batch is moved there in chunks.
        provenance: where the data comes from; written into files.

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
    ) -> None:
        check_count("SecondMoment", "dim", dim)
        self.dim = dim
        self.provenance = provenance or Provenance()
        self.dtype = torch.float64
        self._outer = torch.zeros(dim, dim, dtype=torch.float64, device=device or "cpu")
        self._total = self._outer.new_zeros(dim)
        self._scalars = self._outer.new_zeros(3)  # Σw, Σw², Σw‖x‖⁴

    # ---------------------------------------------------------------- accumulating

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
            self._add_rows(*batch.chunk(start, CHUNK_ROWS))
        return self

    def _add_rows(self, rows: Tensor, weights: Tensor | None) -> None:
        if rows.shape[0]:
            self.dtype = coarser(self.dtype, rows.dtype)
        rows = rows.to(self._outer.device, torch.float64)
        weights = None if weights is None else weights.to(self._outer)
        w = rows.new_ones(rows.shape[0]) if weights is None else weights
        fourth = w * rows.square().sum(1).square()
        self._scalars += torch.stack([w.sum(), w.square().sum(), fourth.sum()])
        weighted = rows if weights is None else rows * weights[:, None]
        for start in range(0, self.dim, _BLOCK):  # the upper triangle only: half the work
            stripe = self._outer[start : start + _BLOCK, start:]
            stripe.addmm_(rows[:, start : start + _BLOCK].T, weighted[:, start:])
        self._total += weighted.sum(0)

    # ---------------------------------------------------------------- combining

    def merge_(self, other: SecondMoment) -> SecondMoment:
        """Add another moment's sums to this one. Associative and commutative up to rounding.

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
        self._outer += other._outer.to(self._outer.device)
        self._total += other._total.to(self._outer.device)
        self._scalars += other._scalars.to(self._outer.device)
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
        distributed, call = torch.distributed, "SecondMoment.all_reduce_"
        if not (distributed.is_available() and distributed.is_initialized()):
            raise StatisticsError(
                f"{call}: needs an initialised process group; call "
                "torch.distributed.init_process_group (torchrun sets its variables) first."
            )
        on_cuda = "nccl" in distributed.get_backend(group)
        device = torch.device("cuda", torch.cuda.current_device()) if on_cuda else "cpu"
        said = [(self.dim, self.dtype, self.provenance)] * distributed.get_world_size(group)
        distributed.all_gather_object(said, said[0], group=group)
        dims, dtypes, provenances = zip(*said, strict=True)
        if min(dims) != max(dims):
            raise StatisticsError(
                f"{call}: all processes must hold the same width, got {min(dims)} to {max(dims)}; "
                "reduce the moments of one projection at a time, in the same order."
            )
        # All fold the same list in the same order: they refuse together, or agree.
        provenance = reduce(lambda a, b: a.merged(b, call=call), provenances)
        packed = torch.cat([self.packed(), self._total, self._scalars]).to(device)
        distributed.all_reduce(packed, group=group)
        outer, total, scalars = packed.to(self._outer.device).split(
            [self.dim * (self.dim + 1) // 2, self.dim, 3]
        )
        self._outer, self._total, self._scalars = unpacked(outer, self.dim), total, scalars
        self.dtype = reduce(coarser, dtypes)
        self.provenance = provenance
        return self

    # ---------------------------------------------------------------- reading

    @property
    def count(self) -> float:
        """`Σw`: the number of vectors seen (their total weight)."""
        return float(self._scalars[0])

    @property
    def effective_count(self) -> float:
        """`(Σw)² / Σw²`: how many equally weighted vectors vary as much; Kish (1965).

        Shows whether a few vectors have most of the weight. It does not change with the scale of
        the weights, so it is no number of vectors, and shrinkage uses `count`.
        """
        return self.count**2 / float(self._scalars[1]) if self.count else 0.0

    @property
    def mean(self) -> Tensor:
        """`E[x] [dim]`, float64."""
        return self._total / self._counted()

    @property
    def matrix(self) -> Covariance:
        """`C = E[xᵀx] [dim, dim]`, uncentred, float64, exactly symmetric."""
        upper = self._outer.triu()  # the one triangle that is kept; see packed_triangle
        return (upper + upper.triu(1).T) / self._counted()

    @property
    def covariance(self) -> Covariance:
        """`C − E[x]ᵀE[x] [dim, dim]`: the centred second moment, float64, divided by n."""
        return self.matrix - torch.outer(self.mean, self.mean)

    @property
    def fourth(self) -> float:
        """`E‖x‖⁴`."""
        return float(self._scalars[2]) / self._counted()

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

    # ---------------------------------------------------------------- copying and storing

    def to(self, device: torch.device | str) -> SecondMoment:
        """A copy of the moment on another device."""
        moved = SecondMoment(self.dim, device=device, provenance=self.provenance)
        moved._outer.copy_(self._outer)
        moved._total.copy_(self._total)
        moved._scalars.copy_(self._scalars)
        moved.dtype = self.dtype
        return moved

    def clone(self) -> SecondMoment:
        """An independent copy."""
        return self.to(self._outer.device)

    def packed(self) -> Tensor:
        """`Σw xᵀx` as its upper triangle row by row, `[dim·(dim+1)/2]`, float64."""
        return packed_triangle(self._outer)

    def state(self) -> dict[str, Tensor]:
        """All sums as named tensors, for files: `outer_packed`, `total`, and three 0-dim sums."""
        count, weight_squares, fourth = self._scalars.clone()
        return {
            "outer_packed": self.packed(),
            "total": self._total.clone(),
            "count": count,
            "weight_squares": weight_squares,
            "fourth": fourth,
        }

    @classmethod
    def from_state(
        cls, state: Mapping[str, Tensor], provenance: Provenance, dtype: torch.dtype
    ) -> SecondMoment:
        """Rebuild a moment from `state()`; `dtype` is the activation dtype it was collected in.

        Raises:
            ShapeError: sums of inconsistent shape, not finite, or a negative count.
        """
        total = state["total"]
        moment = cls(total.shape[0], device=total.device, provenance=provenance)
        size = moment.dim * (moment.dim + 1) // 2
        for name, shape in {"outer_packed": [size], "total": [moment.dim]}.items():
            if list(state[name].shape) != shape:
                raise ShapeError(
                    f"SecondMoment.from_state: {name} must have shape {shape}, got "
                    f"{describe(state[name])}."
                )
            check_finite("SecondMoment.from_state", name, state[name])
        moment._outer = unpacked(state["outer_packed"].to(torch.float64), moment.dim)
        moment._total = total.to(torch.float64, copy=True)
        scalars = [_number(name, state[name]).to(moment._total) for name in _NUMBERS]
        moment._scalars = torch.stack(scalars)
        moment.dtype = dtype
        return moment

    def __repr__(self) -> str:
        return f"SecondMoment(dim={self.dim}, count={self.count:g}, dtype={self.dtype})"


def _number(name: str, value: Tensor) -> Tensor:
    if value.ndim or not 0 <= float(value) < float("inf"):
        raise ShapeError(
            f"SecondMoment.from_state: {name} must be one finite number, not negative, got "
            f"{value.tolist()!r:.80}; the state is damaged."
        )
    return value
