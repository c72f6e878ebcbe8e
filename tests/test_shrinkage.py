"""Shrinkage from sums alone, with scikit-learn as the oracle."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn import covariance

import rankedit as rk
from tests.problems import normal, relative, spd, theorem


def inputs(count: int, dim: int, condition: float, seed: int, scale: float = 1.0) -> torch.Tensor:
    return scale * normal(count, dim, seed=seed) @ spd(dim, condition, seed + 1)


cases = given(
    st.integers(2, 80),
    st.integers(2, 20),
    st.sampled_from([1.0, 1e2, 1e6, 1e10]),
    st.integers(0, 2**20),
    st.sampled_from([1.0, 1e-3, 1e4]),
)


@theorem
@cases
def test_ledoit_wolf_is_scikit_learn_s(count, dim, condition, seed, scale):
    x = inputs(count, dim, condition, seed, scale)
    moment = rk.SecondMoment(dim).update(x)
    shrunk, intensity = covariance.ledoit_wolf(x.numpy(), assume_centered=True)
    assert rk.ledoit_wolf(moment) == pytest.approx(intensity, abs=1e-10)
    metric = rk.Metric.from_moment(moment, ridge=1e-9, shrinkage=rk.ledoit_wolf)
    ridge = 1e-9 * float(moment.matrix.trace()) / dim
    expected = torch.from_numpy(shrunk) + ridge * torch.eye(dim)
    assert relative(metric.apply(torch.eye(dim)), expected) < 1e-9


@theorem
@cases
def test_oas_is_scikit_learn_s(count, dim, condition, seed, scale):
    x = inputs(count, dim, condition, seed, scale)
    intensity = covariance.oas(x.numpy(), assume_centered=True)[1]
    assert rk.oas(rk.SecondMoment(dim).update(x)) == pytest.approx(intensity, abs=1e-10)


@pytest.mark.parametrize("function", [rk.ledoit_wolf, rk.oas])
class TestBoth:
    def test_one_input_needs_none(self, function):
        assert function(rk.SecondMoment(1).update(normal(9, 1, seed=0))) == 0.0

    def test_streaming_and_merging_change_nothing(self, function):
        x = inputs(60, 8, 1e3, 5)
        parts = [rk.SecondMoment(8).update(part) for part in x.split(7)]
        merged = sum(parts[1:], parts[0])
        assert function(merged) == pytest.approx(function(rk.SecondMoment(8).update(x)), rel=1e-12)

    def test_fewer_data_are_shrunk_more(self, function):
        x = inputs(4000, 16, 1e3, 7)
        amounts = [function(rk.SecondMoment(16).update(x[:n])) for n in (10, 100, 4000)]
        assert amounts == sorted(amounts, reverse=True)
        assert amounts[-1] < 0.02 < amounts[0]

    @pytest.mark.parametrize("weights", [[2] * 30, [1, 2, 3, 0, 4] * 6])
    def test_a_weight_of_two_is_the_vector_twice(self, function, weights):
        x, w = inputs(30, 8, 1e3, 5), torch.tensor(weights)
        weighted = function(rk.SecondMoment(8).update(x, weights=w))
        repeated = x.repeat_interleave(w, dim=0)
        assert weighted == pytest.approx(function(rk.SecondMoment(8).update(repeated)), rel=1e-12)
        oracle = getattr(covariance, function.__name__)
        intensity = oracle(repeated.numpy(), assume_centered=True)[1]
        assert weighted == pytest.approx(intensity, abs=1e-10)
        assert weighted < 0.9 * function(rk.SecondMoment(8).update(x))  # more data, shrunk less

    def test_brings_the_metric_closer_to_the_truth(self, function):
        truth = spd(24, 1e2, 1)
        x = normal(40, 24, seed=2) @ torch.linalg.cholesky(truth).T
        moment = rk.SecondMoment(24).update(x)
        keys = normal(50, 24, seed=3)

        def error(metric: rk.Metric) -> float:
            return float((metric.solve(keys) - torch.linalg.solve(truth, keys.T).T).norm())

        shrunk = error(rk.Metric.from_moment(moment, shrinkage=function))
        assert shrunk < 0.7 * error(rk.Metric.from_moment(moment))

    def test_identical_directions_are_left_alone(self, function):
        moment = rk.SecondMoment(4).update(torch.eye(4, dtype=torch.float64))
        assert function(moment) in (0.0, 1.0)  # C is a multiple of the identity: either is the same
