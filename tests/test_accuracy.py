"""The table of benchmarks/accuracy.py, in small: keys get their values at condition 1e9."""

import pytest
import torch

from benchmarks import accuracy


@pytest.mark.parametrize("condition", [1e3, 1e9])
def test_solve_edit_meets_the_equality_on_float32_data(condition):
    row = accuracy.measured(condition, width=128, out=40, count=8)
    assert row.ours < accuracy.LIMIT
    assert row.ours < row.ours_rounded


def test_where_the_explicit_inverse_does_not():
    row = accuracy.measured(1e9, width=128, out=40, count=8)
    assert row.textbook > 1e3 * row.ours
    assert row.textbook_excess > 1


def test_the_problem_is_as_hard_as_it_says():
    *_, inputs = accuracy.problem(1e9, 64, 8, 4)
    values = torch.linalg.svdvals(inputs.double())
    assert float((values[0] / values[-1]) ** 2) == pytest.approx(1e9, rel=0.01)
