"""Products in pieces are the products."""

import pytest
import torch

import rankedit as rk
from rankedit import products
from tests.problems import normal, relative

ROWS = normal(6_000, 700, seed=1).float()


def test_of_more_rows_than_one_piece():
    assert len(list(products.pieces(ROWS, ROWS))) == 3
    columns, left = normal(700, 5, seed=2), normal(6_000, 3, seed=3)
    assert relative(products.product(ROWS, columns), ROWS.double() @ columns) < 1e-14
    expected = left.T @ ROWS.double()
    assert relative(products.transposed_product(left, ROWS), expected) < 1e-14


def test_pass_gradients_on():
    rows = ROWS[:3].clone().requires_grad_()
    products.product(rows, normal(700, 5, seed=2)).sum().backward()
    assert float(rows.grad.abs().min()) > 0


def test_of_symmetric_matrices_below_the_diagonal():
    rows, lower = ROWS[:900].double(), torch.tril(normal(700, 700, seed=4))
    start = normal(700, 700, seed=5)
    found = start.clone()
    products.add_gram_(found, rows)
    assert relative(found.tril(), (start + rows.T @ rows).tril()) < 1e-13
    found = start.clone()
    products.add_square_(found, lower, 0.3)
    assert relative(found.tril(), (start + 0.3 * lower @ lower.T).tril()) < 1e-13


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_thousands_of_soft_keys_are_the_regression_on_them(dtype):
    """The size at which nothing is held in float64 as a whole, against the textbook form."""
    keys, values, weight = (
        t.to(dtype) for t in (ROWS, normal(6_000, 4, seed=9), normal(4, 700, seed=6))
    )
    factor = normal(700, 700, seed=7)
    matrix = factor @ factor.T / 700 + torch.eye(700)
    softness = 0.5 + torch.rand(6_000, generator=torch.Generator().manual_seed(8)).double()
    before = keys.clone(), values.clone()
    metric = rk.Metric.from_matrix(matrix)
    edit = rk.solve_edit(weight, keys, values, metric, softness=softness)
    k, lacking = keys.double(), values.double() - keys.double() @ weight.double().T
    scaled = k / softness[:, None]
    expected = torch.linalg.solve(matrix + scaled.T @ k, scaled.T @ lacking).T
    assert relative(edit.delta(), expected) < 1e-9
    residual = float((k @ expected.T - lacking).norm() / lacking.norm())
    assert edit.report.residual == pytest.approx(residual, rel=1e-6)
    assert torch.equal(keys, before[0])
    assert torch.equal(values, before[1])
