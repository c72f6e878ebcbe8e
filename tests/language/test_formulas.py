"""Methods that are functions of one projection, against their published formulas in float64."""

import pytest
import torch
from rankedit_recipes.language.methods import (
    METHODS,
    Features,
    leace_switch,
    rlsedit,
    ultraedit,
)
from torch.linalg import inv

import rankedit as rk
from tests.problems import normal, relative, spd

pytestmark = pytest.mark.filterwarnings("error")

D, M, N = 12, 7, 4


@pytest.fixture
def problem():
    return normal(M, D, seed=2), normal(N, D, seed=3), normal(N, M, seed=4)


def eye(size):
    return torch.eye(size, dtype=torch.float64)


def test_rlsedit(problem):
    """Wang et al., arXiv 2601.15686: the recursion, begun at λI + μ K₀ᵀK₀."""
    W, K, V = problem
    K0, lam, mu = normal(20, D, seed=5), 0.7, 0.3
    weight, P = W.clone(), inv(lam * eye(D) + mu * K0.T @ K0)
    for k, v in zip(K.split(1), V.split(1), strict=True):
        gain = P @ k.T / (1 + k @ P @ k.T)
        weight = weight + (v - k @ weight.T).T @ gain.T
        P = P - gain @ k @ P
    result = rlsedit(W, K, V, K0, ridge=lam, weight=mu)
    assert relative(W + result.delta(), weight) < 1e-10
    # The more an anchor weighs, the less it moves.
    moved = [float((K0 @ rlsedit(W, K, V, K0, weight=w).delta().T).norm()) for w in (1, 1e2, 1e4)]
    assert moved == sorted(moved, reverse=True)


def test_rlsedit_of_facts_has_the_corpus_as_anchors(problem):
    W, K, V = problem
    inputs, settings = normal(300, D, seed=6) @ spd(D, 10.0, 7), METHODS["rlsedit"]
    moment = rk.SecondMoment(D).update(inputs)
    lam = settings.weight * settings.ridge * moment.matrix.trace()
    anchored = rlsedit(W, K, V, inputs, ridge=float(lam), weight=settings.weight * D / 300)
    result = settings.solve(W, K, V, settings.metric(moment))
    assert relative(result.delta(), anchored.delta()) < 1e-9


def test_ultraedit(problem):
    """Gu et al., arXiv 2505.14679, over two turns: features are normalised by all of them."""
    W, K, _ = problem
    gradients, rate = normal(N, M, seed=8), 0.1
    seen, turns = (Features(), Features()), [slice(0, 3), slice(3, N)]
    for turn in turns:
        k, g = K[turn], gradients[turn]
        edit = ultraedit(W, k, g, seen, rate)
        hats = []
        for rows, all_rows in ((k, K[: turn.stop]), (g, gradients[: turn.stop])):
            hats.append((rows - all_rows.mean(0)) / all_rows.std(0))
        v = -rate * hats[0].square().sum(1, keepdim=True) * hats[1]
        assert relative(edit.delta().T, inv(k.T @ k + eye(D)) @ k.T @ v) < 1e-10
    dead = torch.ones(3, 2, dtype=torch.float64)
    assert torch.equal(Features().seen(dead), torch.zeros(3, 2, dtype=torch.float64))


def data():
    z = normal(400, 3, seed=9)
    x = normal(400, D, seed=10) @ spd(D, 10.0, 11) + 2
    x[:, :3] += z
    cross, moment = rk.CrossCovariance(D, 3).update(x, z), rk.SecondMoment(D).update(x)
    return x, z, cross, moment


def crossed(y, z):
    return (z - z.mean(0)).T @ (y - y.mean(0)) / len(y)


def test_leace_switch(problem):
    """Of one concept, as the affine map of the docstring, folded into the weight."""
    W = problem[0]
    x, z, cross, moment = data()
    sigma, key = moment.covariance, crossed(x, z)[:1]
    wanted = crossed(x, z)[1:2]
    row = key @ inv(sigma)
    published = (wanted - key).T @ row / (row @ key.T)  # r(x) = x + (x − E x) Pᵀ
    edit = leace_switch(W, cross, moment, source=[0], target=[1], ridge=0.0)
    assert relative(edit.delta(), W @ published) < 1e-9
    y = x @ (W + edit.delta()).T
    before = crossed(x @ W.T, z)
    assert relative(crossed(y, z)[0], before[1]) < 1e-9


def test_leace_switch_swaps_two_concepts_and_may_keep_the_mean(problem):
    W = problem[0]
    x, z, cross, moment = data()
    edit = leace_switch(W, cross, moment, source=[0, 1], target=[1, 0], keep_mean=True)
    y, before = x @ (W + edit.delta()).T, crossed(x @ W.T, z)
    assert relative(crossed(y, z)[:2], before[[1, 0]]) < 1e-9
    assert float((y.mean(0) - (x @ W.T).mean(0)).norm()) < 1e-9
