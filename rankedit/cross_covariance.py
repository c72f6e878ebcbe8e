"""What a projection reads together with labels of it: a streaming, mergeable cross-covariance."""

from __future__ import annotations

from copy import copy

import torch
from torch import Tensor

from rankedit.errors import ShapeError, StatisticsError
from rankedit.shapes import Inputs, check_count, check_finite, check_kind, check_vectors, describe


class CrossCovariance:
    """`Σ_zx = E[(z − E z)ᵀ (x − E x)] [labels, dim]` of vectors x with labels z, in float64.

    Its rows are keys of `solve_edit`: the projection's output `y = x Wᵀ + b` has the
    cross-covariance `Σ_zy = Σ_zx Wᵀ`, so that an edit with these keys and the values T makes it T.
    Vectors of extreme energy count as the others do; leave them out where they are not meant.

    Args:
        dim: width of the vectors.
        labels: how many numbers a label has; one-hot rows for classes.

    Source:
        Belrose et al., LEACE, arXiv 2306.03819, theorem 4.2 (T = 0).

    Example:
        >>> import torch
        >>> x, z = torch.tensor([[0.0, 1.0], [2.0, 1.0]]), torch.tensor([[0.0], [1.0]])
        >>> CrossCovariance(2, 1).update(x, z).matrix.tolist()
        [[0.5, 0.0]]
    """

    def __init__(self, dim: int, labels: int) -> None:
        check_count("CrossCovariance", "dim", dim)
        check_count("CrossCovariance", "labels", labels)
        self.dim, self.labels, self.count = dim, labels, 0
        # About the means so far: uncentred sums would cancel where the mean is long.
        self._mean = torch.zeros(labels + dim, dtype=torch.float64)
        self._outer = torch.zeros(labels, dim, dtype=torch.float64)

    @torch.no_grad()
    def update(self, x: Inputs, z: Tensor) -> CrossCovariance:
        """Add vectors `x [..., dim]` with labels `z [..., labels]` (0/1 or any numbers).

        Raises:
            ShapeError: other shapes, or numbers that are not finite; nothing is added then.
        """
        call = "CrossCovariance.update"
        check_vectors(call, "x", x, self.dim)
        check_kind(call, "z", z, Tensor)
        if z.shape != (*x.shape[:-1], self.labels):
            raise ShapeError(
                f"{call}: z must have shape {[*x.shape[:-1], self.labels]}, a label for each "
                f"vector of x, got {describe(z)}; classes are one-hot rows."
            )
        for name, tensor in (("x", x), ("z", z)):
            check_finite(call, name, tensor, power=2)
        rows = torch.cat([t.reshape(-1, t.shape[-1]).double().cpu() for t in (z, x)], 1)
        if len(rows):
            other = copy(self)
            other.count, other._mean = len(rows), rows.mean(0)
            centred = rows - other._mean
            other._outer = centred[:, : self.labels].T @ centred[:, self.labels :]
            self.merge_(other)
        return self

    def merge_(self, other: CrossCovariance) -> CrossCovariance:
        """Add another one's sums (Chan, Golub and LeVeque, 1983).

        Raises:
            ShapeError: of other widths.
        """
        check_kind("CrossCovariance.merge_", "other", other, CrossCovariance)
        if (other.dim, other.labels) != (self.dim, self.labels):
            raise ShapeError(
                f"CrossCovariance.merge_: both must have dim {self.dim} and {self.labels} labels, "
                f"got {other.dim} and {other.labels}; they belong to different projections."
            )
        if other.count:
            count, apart = self.count + other.count, other._mean - self._mean
            share = other.count / count
            between = torch.outer(apart[: self.labels], apart[self.labels :])
            self._outer = self._outer + other._outer + self.count * share * between
            self._mean, self.count = self._mean + share * apart, count
        return self

    @property
    def matrix(self) -> Tensor:
        """`Σ_zx [labels, dim]`, float64.

        Raises:
            StatisticsError: nothing was added.
        """
        if not self.count:
            raise StatisticsError("CrossCovariance: no vectors were added; call update first.")
        return self._outer / self.count

    def __repr__(self) -> str:
        return f"CrossCovariance(dim={self.dim}, labels={self.labels}, count={self.count})"
