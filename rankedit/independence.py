"""Keys that share directions: whether they are independent, and a basis in which they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rankedit.errors import SolveError
from rankedit.inference import ordinary

# Smallest eigenvalue of the Gram matrix of unit keys at which their coordinates are still worth
# computing: two keys whose cosine is within 1e-6 of 1 are one key.
_LEAST_INDEPENDENCE = 1e-6


@dataclass(frozen=True)
class Orthogonalised:
    """Keys made orthogonal under the metric, each to those before it (Gram and Schmidt).

    With `k' = U k` for the keys and `i' = U I A` for their images, x has the coordinates
    `q_j(x) = ⟨i'_j, x⟩/⟨i'_j, k'_j⟩` on the orthogonal keys, and whatever else is read from x is a
    combination of q. Unlike the parts of x along the keys themselves, `q_j k'_j` is no larger than
    x however nearly parallel the keys are, so that float32 is enough for it.

    Attributes:
        combine: U, `[n, n]`, lower triangular with ones on the diagonal.
        squares: `⟨i'_j, k'_j⟩ [n]`.
        similarity: `[n, n]` with `s = q @ similarity.T`.
    """

    combine: Tensor
    squares: Tensor
    similarity: Tensor

    @classmethod
    def of(cls, gram: Tensor) -> Orthogonalised:
        """From the Gram matrix of independent keys, float64; passes gradients on."""
        # With G = L Lᵀ and the roots D = diag L:  U = D L⁻¹,  U G Uᵀ = D²,  q = D⁻¹ L⁻¹ I A x,
        # and s = diag(G)⁻¹ I A x = diag(G)⁻¹ L D q.
        lower = torch.linalg.cholesky(gram)
        roots = lower.diagonal()
        inverse = torch.linalg.solve_triangular(lower, torch.eye(len(gram)).to(gram), upper=False)
        combine = roots[:, None] * inverse
        return cls(combine, roots.square(), lower * roots / gram.diagonal()[:, None])

    def reading(self, images: Tensor) -> Tensor:
        """Directions `[n, in]` with `q = x @ reading.T`."""
        return self.combine @ images / self.squares[:, None]


def basis_of(gram: Callable[[], Tensor], known: list[Orthogonalised] | None) -> Orthogonalised:
    """The basis of keys with this Gram matrix, computed once for all who share the list.

    Args:
        gram: gives the matrix.
        known: of edits with the same keys, who bind to one projection each; None for keys that
            learn, which are changed in place, and whose graph is good for one step.
    """
    if known is None:
        return Orthogonalised.of(gram())
    if not known:
        with ordinary():
            known.append(Orthogonalised.of(gram()))
    return known[0]


def check_independent(call: str, gram: Tensor) -> None:
    """Refuse keys that are parallel, or have no direction, under the metric.

    Raises:
        SolveError: names the two most parallel keys and their cosine.
    """
    squares = gram.diagonal()
    if not bool((squares > 0).all()):
        raise SolveError(
            f"{call}: key {int(squares.argmin())} has no length under the metric: it lies outside "
            "the subspace that the metric allows; choose another key or another metric."
        )
    if len(gram) == 1:
        return
    cosines = gram / torch.outer(squares, squares).sqrt()
    if float(torch.linalg.eigvalsh(cosines.detach())[0]) >= _LEAST_INDEPENDENCE:
        return
    off = (cosines - torch.eye(len(cosines)).to(cosines)).abs()
    first, second = divmod(int(off.argmax()), len(cosines))
    raise SolveError(
        f"{call}: keys must be linearly independent under the metric, but keys {first} and "
        f"{second} have the cosine {float(cosines[first, second]):.7f}; keep one of them, or learn "
        "them with words that are further apart."
    )
