"""Fronts, areas and intervals, against what can be worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from personalisation.fronts import balance, bootstrap, front, hypervolume, interval, resampled
from personalisation.plots import labels


def test_front_keeps_what_nothing_beats():
    points = [(0.2, 0.9), (0.5, 0.5), (0.4, 0.5), (0.9, 0.1), (0.9, 0.05), (0.1, 0.2)]
    assert front(points) == [(0.2, 0.9), (0.5, 0.5), (0.9, 0.1)]
    assert front([(0.3, 0.3), (0.3, 0.3)]) == [(0.3, 0.3)]


def test_hypervolume_is_the_area_of_the_staircase():
    assert hypervolume([(1.0, 1.0)]) == 1.0
    # 0.2 x 0.9 and then 0.3 x 0.5 and 0.4 x 0.1
    points = [(0.2, 0.9), (0.5, 0.5), (0.9, 0.1)]
    assert hypervolume(points) == pytest.approx(0.18 + 0.15 + 0.04)
    assert hypervolume([*points, (0.1, 0.1), (0.5, 0.4)]) == hypervolume(points)


def test_hypervolume_counts_only_what_is_above_the_reference_in_both():
    points = [(0.2, 0.9), (0.5, 0.5), (0.9, 0.1)]
    assert hypervolume(points, (0.3, 0.2)) == pytest.approx(0.2 * 0.3)
    assert hypervolume(points, (0.95, 0.0)) == 0.0
    assert hypervolume([]) == 0.0


def test_hypervolume_agrees_with_random_points():
    rng = np.random.default_rng(0)
    points = [tuple(row) for row in rng.random((7, 2))]
    darts = rng.random((100_000, 2))
    hit = np.zeros(len(darts), dtype=bool)
    for x, y in points:
        hit |= (darts[:, 0] <= x) & (darts[:, 1] <= y)
    assert hypervolume(points) == pytest.approx(hit.mean(), abs=0.006)


def test_bootstrap_draws_concepts_and_then_pictures():
    rng = np.random.default_rng(1)
    groups = [list(centre + rng.normal(0, 0.1, 50)) for centre in rng.normal(0, 1, 30)]
    means = bootstrap(groups)
    middle = np.mean([np.mean(group) for group in groups])
    assert means.mean() == pytest.approx(middle, abs=0.02)
    # The spread between concepts decides, not that of 1,500 pictures.
    between = np.std([np.mean(group) for group in groups]) / 30**0.5
    assert means.std() == pytest.approx(between, rel=0.1)
    low, high = interval(means)
    assert high - low == pytest.approx(2 * 1.96 * between, rel=0.15)


def test_bootstrap_of_one_concept_still_draws_its_pictures():
    rng = np.random.default_rng(2)
    group = list(rng.normal(0, 1, 400))
    assert bootstrap([group, []]).std() == pytest.approx(1 / 20, rel=0.15)


def test_bootstrap_is_a_function_of_its_seed_and_pairs_concepts():
    groups = [[0.0, 1.0], [0.2, 0.4], [0.5]]
    assert (bootstrap(groups, draws=50) == bootstrap(groups, draws=50)).all()
    assert (bootstrap(groups, draws=50) != bootstrap(groups, draws=50, seed=1)).any()
    shifted = [[value + 1 for value in group] for group in groups]
    assert bootstrap(shifted, draws=50) == pytest.approx(bootstrap(groups, draws=50) + 1)
    assert (resampled(3, draws=50) == resampled(3, draws=50)).all()


def test_bootstrap_refuses_nothing():
    with pytest.raises(ValueError, match="at least one group with a number"):
        bootstrap([[], []])


def test_balance_is_the_harmonic_mean():
    assert balance(0.5, 1.0) == pytest.approx(2 / 3)
    assert balance(-0.1, 1.0) == 0.0


def test_settings_that_lie_on_each_other_share_a_label():
    points = [(1.0, 0.1), (1.0, 0.5), (0.99, 0.51), (0.99, 0.52), (0.7, 0.52)]
    found = labels(points, [1.4, 1.0, 0.8, 0.7, 0.5], (0.1, 0.05))
    assert found == [((1.0, 0.1), "1.4"), ((1.0, 0.5), "1 to 0.7"), ((0.7, 0.52), "0.5")]
