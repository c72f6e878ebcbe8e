"""Cross-covariances as keys: what an edit makes of them, and how they are streamed."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import rankedit as rk
from tests.problems import normal, relative, spd, theorem

D, M, Z = 8, 5, 2


def data(seed=0, count=300):
    z = normal(count, Z, seed=seed)
    x = normal(count, D, seed=seed + 1) @ spd(D, 10.0, seed + 2) + 3
    x[:, :Z] += z
    return x, z


def centred(rows):
    return rows - rows.mean(0)


def crossed(x, z):
    return centred(z).T @ centred(x) / len(x)


@theorem
@given(st.integers(0, 2**20), st.lists(st.integers(1, 40), min_size=1, max_size=5))
def test_any_batches_give_the_same_as_all_at_once(seed, sizes):
    x, z = data(seed, sum(sizes))
    x = x + 1e6  # sums about zero would lose half of their digits
    parts = [
        rk.CrossCovariance(D, Z).update(*pair)
        for pair in zip(x.split(sizes), z.split(sizes), strict=True)
    ]
    joined = rk.CrossCovariance(D, Z)
    for part in parts:
        joined.merge_(part)
    assert joined.count == len(x)
    scale = float(centred(x).norm() * centred(z).norm()) / len(x) + 1e-9
    assert float((joined.matrix - crossed(x, z)).abs().max()) < 1e-9 * scale


@pytest.mark.parametrize("hold_mean", [False, True])
def test_an_edit_makes_the_outputs_cross_covariance_what_is_wanted(hold_mean):
    x, z = data()
    weight, wanted = normal(M, D, seed=5), normal(Z, M, seed=6)
    cross = rk.CrossCovariance(D, Z).update(x, z)
    metric = rk.Metric.from_moment(rk.SecondMoment(D).update(x), ridge=0.0, centred=True)
    hold = x.mean(0, keepdim=True) if hold_mean else None
    delta = rk.solve_edit(weight, cross.matrix, wanted, metric, hold=hold).delta()
    given_ = x @ (weight + delta).T
    assert relative(crossed(given_, z), wanted) < 1e-9
    moved = float((given_.mean(0) - (x @ weight.T).mean(0)).norm())
    assert (moved < 1e-10) == hold_mean
    # No other edit that achieves it changes the outputs less, about their mean.
    price = float(centred(x @ delta.T).square().sum())
    rows = cross.matrix if hold is None else torch.cat([cross.matrix, hold])
    free = torch.linalg.qr(rows.T, mode="complete").Q[:, len(rows) :]
    for seed in range(5):
        other = delta + 1e-3 * normal(M, free.shape[1], seed=seed) @ free.T
        assert relative(crossed(x @ (weight + other).T, z), wanted) < 1e-9
        assert float(centred(x @ other.T).square().sum()) > price


def test_what_is_refused():
    cross = rk.CrossCovariance(D, Z)
    with pytest.raises(rk.StatisticsError, match="no vectors were added; call update"):
        _ = cross.matrix
    x, z = data()
    with pytest.raises(rk.ShapeError, match=r"z must have shape \[300, 2\]"):
        cross.update(x, z[:, :1])
    with pytest.raises(rk.ShapeError, match="z must be finite"):
        cross.update(x, z * float("inf"))
    with pytest.raises(rk.ShapeError, match="merge_: both must have dim 8 and 2 labels"):
        cross.merge_(rk.CrossCovariance(D, Z + 1))
    assert cross.count == 0
