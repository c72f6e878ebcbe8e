"""Solving with the Gram matrix of keys, however close to dependent they are."""

from __future__ import annotations

import torch
from torch import Tensor

from rankedit.errors import SolveError

# Eigenvalues of the Gram matrix of unit keys below this count as zero: float64 rounding of n keys
# leaves about n·1e-16, and metrics of condition 1e10 leave 1e-10 of asymmetry to refine away.
_DEPENDENT = 1e-12

# Dependent equality keys must agree on their values to this, relative.
_AGREEMENT = 1e-6


def solve_gram(gram: Tensor, softness: Tensor, lacking: Tensor) -> tuple[Tensor, bool]:
    """X with `(G + S) X = R`, and whether dependent keys had to be reconciled.

    The matrix is scaled to unit diagonal first, so that the lengths of the keys do not matter. `G`
    may be slightly asymmetric, as the product of two rounded factors is: it is taken as it is, by
    iterative refinement, because an edit that is built from the same factors then meets its
    equalities exactly.

    Args:
        gram: `K A Kᵀ [n, n]`, float64.
        softness: S as a vector `[n]`.
        lacking: R `[n, out]`.

    Raises:
        SolveError: keys without softness are dependent, and ask for different values.
    """
    system = gram + softness.diag()
    diagonal = system.diagonal()
    roots = torch.where(diagonal > 0, diagonal, 1.0).rsqrt()
    scaled = (system + system.T) / 2 * torch.outer(roots, roots)
    lower, info = torch.linalg.cholesky_ex(scaled)
    if int(info) == 0 and float(lower.diagonal().square().min()) > _DEPENDENT:
        solution = torch.zeros_like(lacking)
        for _ in range(3):
            missing = (lacking - system @ solution) * roots[:, None]
            solution = solution + roots[:, None] * torch.cholesky_solve(missing, lower)
        return solution, False
    return _reconciled(scaled, roots, lacking), True


def _reconciled(scaled: Tensor, roots: Tensor, lacking: Tensor) -> Tensor:
    eigenvalues, vectors = torch.linalg.eigh(scaled)
    kept = eigenvalues > _DEPENDENT * len(scaled) * eigenvalues[-1]
    vectors, eigenvalues = vectors[:, kept], eigenvalues[kept]
    wanted = lacking * roots[:, None]
    inside = vectors.T @ wanted
    disagreement = (wanted - vectors @ inside).norm(dim=1)
    if float(disagreement.norm()) > _AGREEMENT * float(wanted.norm()):
        off = (scaled - torch.eye(len(scaled)).to(scaled)).abs()[int(disagreement.argmax())]
        raise SolveError(
            f"solve_edit: key {int(disagreement.argmax())} depends linearly on others (most on key "
            f"{int(off.argmax())}) and asks for a value that contradicts theirs; drop one of "
            "them, or pass softness > 0 to compromise."
        )
    return roots[:, None] * (vectors @ (inside / eigenvalues[:, None]))
