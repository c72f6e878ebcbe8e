"""Random editing problems for the tests, and solutions of them that share no code with the library.

Problems are drawn by shape, rank, dtype and condition number, then filled from a seed: raw float
arrays would mostly be degenerate.
"""

import os
from dataclasses import dataclass

import mpmath
import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from torch import Tensor

# For mutation.py, which needs a failure and not the smallest one.
HURRIED = "RANKEDIT_HURRIED_TESTS" in os.environ

# Derandomised: a failure is a failure for everybody, and nothing is written beside the tests.
theorem = settings(
    deadline=None,
    max_examples=8 if HURRIED else 40,
    phases=[Phase.generate] if HURRIED else list(Phase),
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)

CONDITIONS = (1.0, 1e2, 1e4, 1e6, 1e8, 1e10)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def rotation(dim: int, seed: int) -> Tensor:
    return torch.linalg.qr(normal(dim, dim, seed=seed)).Q


def spd(dim: int, condition: float, seed: int) -> Tensor:
    """Symmetric positive definite, eigenvalues evenly spaced in their logarithm, mean 1."""
    columns = rotation(dim, seed)
    exponents = torch.linspace(0, 1, dim, dtype=torch.float64)
    matrix = (columns * condition**-exponents) @ columns.T
    matrix = (matrix + matrix.T) / 2
    return matrix * (dim / matrix.trace())


@dataclass(frozen=True)
class Problem:
    """Weight [out, in], keys [n, in], values [n, out], statistics C [in, in]."""

    weight: Tensor
    keys: Tensor
    values: Tensor
    matrix: Tensor
    condition: float
    seed: int

    @property
    def lacking(self) -> Tensor:
        return self.values.double() - self.keys.double() @ self.weight.double().T

    def free_directions(self) -> Tensor:
        """Orthonormal columns [in, in - n] along which no key has a part."""
        count = len(self.keys)
        return torch.linalg.qr(self.keys.double().T, mode="complete").Q[:, count:]


@st.composite
def problems(draw, *, most_keys: int | None = None, conditions=CONDITIONS, dtypes=None):
    """Problems with fewer keys than inputs (so that equality has room) unless told otherwise."""
    width = draw(st.integers(2, 16))
    out = draw(st.integers(1, 9))
    count = draw(st.integers(1, min(width - 1, most_keys or width - 1)))
    seed = draw(st.integers(0, 2**20))
    condition = draw(st.sampled_from(conditions))
    dtype = draw(st.sampled_from(dtypes or (torch.float64, torch.float32, torch.bfloat16)))
    return problem(width, out, count, condition, seed, dtype)


def problem(
    width: int,
    out: int,
    count: int,
    condition: float = 1e2,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> Problem:
    weight, keys, values = (
        normal(*shape, seed=seed + i).to(dtype)
        for i, shape in enumerate([(out, width), (count, width), (count, out)])
    )
    return Problem(weight, keys, values, spd(width, condition, seed + 3), condition, seed)


def relative(found: Tensor, expected: Tensor) -> float:
    """Largest difference, in units of the largest expected entry."""
    difference = (found.double() - expected.double()).abs().max()
    return float(difference / expected.double().abs().max().clamp_min(1e-300))


def cost(delta: Tensor, matrix: Tensor) -> float:
    """`tr(ΔW M ΔWᵀ)`."""
    return float((delta @ matrix * delta).sum())


def exact_edit(
    matrix: Tensor, keys: Tensor, lacking: Tensor, softness: Tensor | None = None
) -> Tensor:
    """`ΔW [out, in]` from the optimality conditions (KKT), by LU with 60 digits.

    [M  Kᵀ] [ΔWᵀ]   [0]
    [K  −S] [−Λ ] = [R]
    """
    width, count = matrix.shape[0], keys.shape[0]
    system = torch.zeros(width + count, width + count, dtype=torch.float64)
    system[:width, :width] = matrix
    system[:width, width:] = keys.T
    system[width:, :width] = keys
    if softness is not None:
        system[width:, width:] = -softness.diag()
    right = torch.cat([torch.zeros(width, lacking.shape[1], dtype=torch.float64), lacking])
    with mpmath.workdps(60):
        lu = mpmath.matrix(system.tolist())
        columns = [mpmath.lu_solve(lu, mpmath.matrix(column.tolist())) for column in right.T]
        rows = [[float(column[i]) for i in range(width)] for column in columns]
    return torch.tensor(rows, dtype=torch.float64)
