"""Products in float32: within their bound, and only where nothing finer came."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import rankedit as rk
from rankedit import sums
from rankedit.packing import FINE_ROWS, Triangle
from tests.problems import normal, relative, rotation, theorem

U = 2.0**-24


def data(count: int, dim: int, seed: int, dtype: torch.dtype) -> torch.Tensor:
    scale = torch.logspace(0, -2, dim, dtype=torch.float64)
    return ((normal(count, dim, seed=seed) * scale) @ rotation(dim, seed + 1)).to(dtype)


def fine(x: torch.Tensor, **how) -> rk.SecondMoment:
    return rk.SecondMoment(x.shape[-1], products="float32", **how).update(x)


def error(found: rk.SecondMoment, x: torch.Tensor) -> torch.Tensor:
    """Of each entry, in units of `u √(C_ii C_jj)`."""
    exact = x.double().T @ x.double() / len(x)
    return (found.matrix - exact).abs() / torch.outer(*[exact.diagonal().sqrt()] * 2) / U


@theorem
@given(
    st.integers(1, 3000),
    st.integers(1, 300),
    st.integers(0, 2**20),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
def test_the_error_is_within_its_bound(count, dim, seed, dtype):
    x = data(count, dim, seed, dtype)
    # Rounding of the float64 reference shows where float32 makes no error at all.
    assert float(error(fine(x), x).max()) < min(count, FINE_ROWS) + 1e-6


def test_the_bound_is_far_from_what_is_usual_and_float32_is_really_used():
    x = data(4000, 300, 0, torch.float32)
    found = error(fine(x), x)
    assert 1e-3 < float(found.square().mean().sqrt()) < 2
    assert float(found.max()) < 16
    assert float(error(rk.SecondMoment(300, products="float64").update(x), x).max()) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_default_ridge_is_above_the_noise(dtype):
    for count in (100, 1000, 5000):  # of width 200: without full rank, too
        x = data(count, 200, count, dtype)
        noise = torch.linalg.eigvalsh(
            fine(x).matrix - rk.SecondMoment(200, products="float64").update(x).matrix
        )
        mean = rk.SecondMoment(200, products="float64").update(x).matrix.trace() / 200
        assert float(noise.abs().max() / mean) < 1e-6
        rk.Metric.from_moment(fine(x))


def test_all_sums_are_those_of_float64():
    x, w = data(3000, 40, 0, torch.float32), normal(3000, seed=1).abs()
    mask = torch.arange(3000) % 3 > 0
    one, other = fine(x), rk.SecondMoment(40, products="float64").update(x)
    weighted = [rk.SecondMoment(40, products=p).update(x, mask, w) for p in ("float32", "float64")]
    for found, expected in ((one, other), weighted):
        for figure in ("matrix", "mean"):
            assert relative(getattr(found, figure), getattr(expected, figure)) < 1e-6
        for figure in ("count", "fourth", "effective_count", "effective_rank"):
            assert getattr(found, figure) == pytest.approx(getattr(expected, figure), rel=1e-6)


def test_float64_is_never_narrowed():
    x = data(2000, 30, 0, torch.float64)
    assert torch.equal(fine(x).matrix, rk.SecondMoment(30, products="float64").update(x).matrix)


def test_numbers_whose_squares_float32_does_not_hold():
    x = (data(500, 30, 0, torch.float64) * 1e30).bfloat16()
    assert torch.equal(fine(x).matrix, rk.SecondMoment(30, products="float64").update(x).matrix)


def test_autocast_does_not_reach_the_products():
    x = data(2000, 200, 0, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = fine(x)
    assert torch.equal(found.matrix, fine(x).matrix)


def test_products_that_are_allowed_to_be_coarser_are_made_in_float64():
    x = data(2000, 30, 0, torch.float32)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")  # TF32, where there is any
        assert torch.equal(fine(x).matrix, rk.SecondMoment(30, products="float64").update(x).matrix)
        assert sums.measured(x, "float32", torch.device("cpu"))[0].dtype == torch.float64
    finally:
        torch.set_float32_matmul_precision(before)
    assert sums.measured(x, "float32", torch.device("cpu"))[0].dtype == torch.float32


def test_extreme_vectors_are_summed_in_float64():
    x = data(2000, 30, 0, torch.float32)
    x[::100] = 1e4 * x[0]
    found, expected = fine(x), rk.SecondMoment(30, products="float64").update(x)
    assert found.extremes.count == 20
    assert relative(found.matrix, expected.matrix) < 1e-6
    assert torch.equal(found.extremes.rows, expected.extremes.rows)


@pytest.mark.parametrize("dim", [1, 5, 127, 128, 129, 255, 256, 257, 700])
def test_half_of_the_matrix_is_made_and_kept(dim):
    x = normal(50, dim, seed=dim)
    triangle = Triangle(dim)
    triangle.add_product_(x, x)
    narrow = Triangle(dim)
    narrow.add_product_(x.float(), x.float())
    assert relative(triangle.matrix(), x.T @ x) < 1e-13
    assert relative(narrow.matrix(), x.T @ x) < 1e-5
    assert torch.equal(triangle.matrix(), triangle.matrix().T)
    assert triangle.trace() == pytest.approx(float(x.square().sum()))
    packed = triangle.packed()
    assert torch.equal(packed, triangle.matrix()[tuple(torch.triu_indices(dim, dim))])
    assert torch.equal(Triangle.from_packed(packed, dim).matrix(), triangle.matrix())
    kept = sum(stripe.numel() for stripe in triangle._stripes)
    assert kept <= dim * (dim + 1) / 2 + 256 * dim / 2


def test_collect_takes_the_setting():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 70), torch.nn.Linear(70, 3))
    batches = [torch.randn(200, 8) for _ in range(3)]
    found = rk.collect(model, "1", batches, progress=False, products="float32")["1"]
    exact = rk.collect(model, "1", batches, progress=False, products="float64")["1"]
    assert 0 < relative(found.matrix, exact.matrix) < 1e-6
    with pytest.raises(rk.ShapeError, match="collect: products must be 'float32' or 'float64'"):
        rk.collect(model, "1", batches, progress=False, products="half")


@pytest.mark.parametrize("count", [20, 90, 190])
@pytest.mark.parametrize("long", [10.0, 100.0, 1000.0])
def test_the_default_ridge_is_above_the_noise_of_one_long_direction(count, long):
    # Every vector has the direction, so that none is extreme.
    x, direction = normal(count, 200, seed=count), normal(1, 200, seed=2)
    x = (x + long * (2 + x[:, :1]) * direction / direction.norm()).float()
    moment = rk.SecondMoment(200).update(x)
    metric = rk.Metric.from_moment(moment)
    exact = rk.SecondMoment(200, products="float64").update(x)
    noise = float(-torch.linalg.eigvalsh(moment.matrix)[0])
    lowest = 1 / float(torch.linalg.eigvalsh(metric.solve(torch.eye(200, dtype=torch.float64)))[-1])
    assert lowest > 2.5 * noise
    # What it gives is what the exact statistics give with the same ridge.
    mean = float(exact.matrix.trace()) / 200
    ridge = (lowest + noise) / mean
    other = rk.Metric.from_matrix(exact.matrix, ridge=ridge)
    keys = normal(5, 200, seed=1)
    assert float((metric.solve(keys) / other.solve(keys) - 1).abs().median()) < 0.3


@pytest.mark.parametrize("rows", [1, 7, 500])
@pytest.mark.parametrize("offset", [0.0, 2.0, 10.0, 1e3, 1e5])
def test_the_covariance_of_vectors_far_from_the_origin_keeps_its_digits(offset, rows):
    x = (normal(2000, 30, seed=3) + offset * normal(1, 30, seed=4)).float()
    moment = rk.SecondMoment(30)
    for part in x.split(rows):
        moment.update(part)
    expected = torch.cov(x.double().T, correction=0)
    error = (moment.covariance - expected).norm() / expected.norm()
    assert float(error) < max(2e-5, 1e-12 * offset**2)
