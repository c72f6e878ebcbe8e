"""Solving for keys, against the textbook form with explicit inverses; time and peak memory."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

import rankedit as rk

OUT = 256
CASES = [(768, 1), (768, 100), (768, 10_000), (4096, 1), (4096, 100), (4096, 10_000)]


def _problem(dim: int, keys: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    factor = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    matrix = factor @ factor.T / dim + 0.1 * torch.eye(dim, dtype=torch.float64)
    weight = torch.randn(OUT, dim, generator=generator)
    return (
        matrix,
        weight,
        torch.randn(keys, dim, generator=generator),
        torch.randn(keys, OUT, generator=generator),
    )


def textbook(matrix: Tensor, weight: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """`ΔW = Rᵀ K (C + KᵀK)⁻¹` in float64 with the inverse written out, as published code has it."""
    k, v, w = keys.double(), values.double(), weight.double()
    return (v - k @ w.T).T @ k @ torch.linalg.inv(matrix + k.T @ k)


def solved(matrix: Tensor, weight: Tensor, keys: Tensor, values: Tensor) -> rk.LowRank:
    """The same problem from the same matrix, factorisation included."""
    return rk.solve_edit(weight, keys, values, rk.Metric.from_matrix(matrix), softness=1.0)


def _peak_megabytes(function: str, dim: int, keys: int) -> float:
    """Peak resident memory while a fresh process solves the problem, above what posing it left."""
    lines = (
        "from pathlib import Path",
        "from benchmarks.test_solve import _problem, solved, textbook",
        "def kilobytes(name):",
        "    lines = Path('/proc/self/status').read_text().splitlines()",
        "    return next(int(line.split()[1]) for line in lines if line.startswith(name))",
        f"problem = _problem({dim}, {keys})",
        "before = kilobytes('VmRSS')",
        "Path('/proc/self/clear_refs').write_text('5')  # the peak counts from here",
        f"result = {function}(*problem)",
        "print((kilobytes('VmHWM') - before) / 1024)",
    )
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True
    )
    return float(done.stdout)


@pytest.mark.parametrize(("dim", "keys"), CASES)
def test_solve_against_explicit_inverse(versus: Any, dim: int, keys: int) -> None:
    problem = _problem(dim, keys)
    edit, delta = solved(*problem), textbook(*problem)
    relative = float((edit.delta() - delta).norm() / delta.norm())
    assert relative < 1e-8
    ours, theirs = (_peak_megabytes(name, dim, keys) for name in ("solved", "textbook"))
    versus(
        lambda: solved(*problem),
        lambda: textbook(*problem),
        what=f"factorise and solve {keys:,} keys at width {dim}",
        peer_name="explicit inverse, float64",
        pairs=7 if dim < 1000 else 3,
        note=f"peak memory {ours:.0f} MB against {theirs:.0f} MB",
    )


@pytest.mark.parametrize(("dim", "keys"), [(768, 1), (768, 100), (4096, 1), (4096, 100)])
def test_next_solve_with_the_same_metric(versus: Any, dim: int, keys: int) -> None:
    matrix, weight, k, v = _problem(dim, keys)
    metric = rk.Metric.from_matrix(matrix)
    assert metric.condition > 1
    versus(
        lambda: rk.solve_edit(weight, k, v, metric, softness=1.0),
        lambda: textbook(matrix, weight, k, v),
        what=f"solve {keys:,} more keys at width {dim}, metric shared",
        peer_name="explicit inverse, float64",
        pairs=7 if dim < 1000 else 3,
    )
