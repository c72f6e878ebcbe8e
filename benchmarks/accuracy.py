"""How exactly keys get their values, beside the textbook form with an explicit float32 inverse.

    python benchmarks/accuracy.py

Everything that comes in is float32: weight, keys, values and the inputs behind the statistics; no
ridge helps. The residual is `‖K W'ᵀ − V‖ / ‖V‖`: of the edit as it is solved, and of a float32
weight that it was added to, whose rounding nobody can avoid. Exits with 1 if `solve_edit` exceeds
the limit anywhere.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

import rankedit as rk

LIMIT = 1e-5
CONDITIONS = (1e1, 1e3, 1e5, 1e7, 1e9)


@dataclass(frozen=True)
class Row:
    """Residuals of one problem, and how much more than the least an edit would change outputs."""

    condition: float
    ours: float
    ours_rounded: float
    textbook: float
    textbook_excess: float


def problem(condition: float, width: int, out: int, count: int) -> tuple[Tensor, ...]:
    """Weight, keys, values and inputs, float32; the inputs' second moment has the condition."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    columns = torch.linalg.qr(normal(width, width)).Q
    spread = condition ** (-torch.linspace(0, 0.5, width, dtype=torch.float64))
    inputs = torch.linalg.qr(normal(4 * width, width)).Q * (2 * width**0.5) * spread @ columns.T
    # Keys are inputs like those that were seen.
    keys = normal(count, width) * spread @ columns.T
    tensors = normal(out, width), keys, normal(count, out), inputs
    return tuple(tensor.float() for tensor in tensors)


def textbook(weight: Tensor, keys: Tensor, values: Tensor, inputs: Tensor) -> Tensor:
    """`ΔW = (V − W K)(Kᵀ C⁻¹ K)⁻¹ Kᵀ C⁻¹` as it is usually written: in float32, by `inverse`."""
    inverse = torch.inverse(inputs.T @ inputs / len(inputs))
    images = keys @ inverse
    return (values - keys @ weight.T).T @ torch.inverse(images @ keys.T) @ images


def ours(weight: Tensor, keys: Tensor, values: Tensor, inputs: Tensor) -> Tensor:
    """The same problem by the library."""
    moment = rk.SecondMoment(inputs.shape[1], products="float64").update(inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rk.RankeditWarning)
        edit = rk.solve_edit(weight, keys, values, rk.Metric.from_moment(moment, ridge=0.0))
    return edit.delta()


def measured(condition: float, *, width: int = 384, out: int = 320, count: int = 16) -> Row:
    """Residuals of both forms."""
    weight, keys, values, inputs = problem(condition, width, out, count)

    def residual(delta: Tensor) -> float:
        missing = keys.double() @ (weight + delta).double().T - values.double()
        return float(missing.norm() / values.double().norm())

    def drift(delta: Tensor) -> float:
        return float((inputs.double() @ delta.double().T).norm())

    mine, theirs = (form(weight, keys, values, inputs) for form in (ours, textbook))
    rounded = residual(mine.float())
    excess = drift(theirs) / drift(mine) - 1
    return Row(condition, residual(mine), rounded, residual(theirs), excess)


def main() -> int:
    """Print the table; 1 if the limit is exceeded."""
    print("| condition | solve_edit | in a float32 weight | explicit inverse | its excess drift |")
    print("|---|---|---|---|---|")
    rows = [measured(condition) for condition in CONDITIONS]
    for row in rows:
        print(
            f"| {row.condition:.0e} | {row.ours:.1e} | {row.ours_rounded:.1e} "
            f"| {row.textbook:.1e} | {row.textbook_excess:+.1%} |"
        )
    return int(any(row.ours > LIMIT for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
