"""The methods against their published loops, written out over each projection of a pipeline."""

import dataclasses

import pytest
import torch
from rankedit_recipes import concepts
from rankedit_recipes.concepts.contexts import filled
from rankedit_recipes.concepts.methods.own import named
from rankedit_recipes.concepts.reading import read_empty, templates_of
from rankedit_recipes.concepts.solving import reduced
from rankedit_recipes.diffusion.parts import Parts
from torch.linalg import inv

import rankedit as rk
from rankedit.testing import check_solver
from tests.diffusion import pipelines
from tests.diffusion.pipelines import CAPTIONS
from tests.problems import relative

HELD = ("dog", "cup", "snow")


@pytest.fixture(scope="module")
def pipe():
    return pipelines.stable_diffusion().to(torch.float64)


def weights(pipe):
    return {n: layer.weight.data for n, layer in Parts(pipe).projections.items()}


def encoding(pipe, prompt):
    """All tokens of a prompt as columns, from the pipeline itself."""
    with torch.no_grad():
        return pipe.encode_prompt([prompt], "cpu", 1, False)[0][0].T


def last(pipe, word):
    """The last token before the end, as UCE's code counts it; of nothing the begin token."""
    count = int(pipe.tokenizer(word, return_tensors="pt")["attention_mask"].sum())
    place = max(count - 2, 0)
    return encoding(pipe, word)[:, place : place + 1]


def eye(size):
    return torch.eye(size, dtype=torch.float64)


def uce(old, erased, guides, kept, lam, erase_scale, preserve_scale):
    """Gandikota et al., arXiv 2308.14761, equation 7, as the public loop has it."""
    first, second = lam * old, lam * eye(old.shape[1])
    for c, g in zip(erased, guides, strict=True):
        first = first + erase_scale * (old @ g) @ c.T
        second = second + erase_scale * c @ c.T
    for p in kept:
        first = first + preserve_scale * (old @ p) @ p.T
        second = second + preserve_scale * p @ p.T
    return first @ inv(second)


def check(pipe, edited, expected):
    found = edited.edits(pipe)
    assert found.keys() == expected.keys()
    for name, old in weights(pipe).items():
        if name in expected:
            assert relative(old + found[name].delta(), expected[name]) < 1e-9
            assert relative(found[name].delta(), expected[name] - old) < 1e-7


REQUESTS = [concepts.erase("cat"), concepts.replace("blue", "red"), concepts.hold(*HELD)]


def test_uce(pipe):
    erased, guides = [last(pipe, w) for w in ("cat", "blue")], [last(pipe, w) for w in ("", "red")]
    kept = [last(pipe, word) for word in HELD]
    edited = concepts.edit(pipe, REQUESTS, method="uce")
    expected = {
        n: uce(old, erased, guides, kept, 0.5, 1.0, 1.0) for n, old in weights(pipe).items()
    }
    check(pipe, edited, expected)


def test_time(pipe):
    request = concepts.replace("cat", "dog")
    settings = named("time")
    templates = templates_of(Parts(pipe), request, settings)
    assert len(templates) > 5
    source = torch.cat([encoding(pipe, filled(t, "cat")) for t in templates], 1)
    goal = torch.cat([encoding(pipe, filled(t, "dog")) for t in templates], 1)
    expected = {
        n: (0.1 * old + old @ goal @ source.T) @ inv(0.1 * eye(len(source)) + source @ source.T)
        for n, old in weights(pipe).items()
    }
    check(pipe, concepts.edit(pipe, [request], method="time"), expected)


@pytest.mark.parametrize("rounds", [1, 3])
def test_rece(pipe, rounds):
    """Gong et al., arXiv 2407.12383, equation 10, then UCE on the edited weights, in a loop."""
    old, c, nothing = weights(pipe), last(pipe, "cat"), last(pipe, "")
    kept = [last(pipe, word) for word in HELD]
    new = {n: uce(w, [c], [nothing], kept, 0.1, 0.1, 0.1) for n, w in old.items()}
    for _ in range(rounds):
        system = 0.1 * eye(len(c)) + sum(w.T @ w for w in new.values())
        again = inv(system) @ sum(new[n].T @ old[n] @ c for n in old)
        new = {n: uce(w, [again], [nothing], kept, 0.1, 0.1, 0.1) for n, w in new.items()}
    settings = dataclasses.replace(named("rece"), rounds=rounds)
    requests = [concepts.erase("cat"), concepts.hold(*HELD)]
    check(pipe, concepts.edit(pipe, requests, method=settings), new)


def test_speed(pipe):
    """Li et al., arXiv 2503.07392: null space of the influenced concepts, and the empty prompt."""
    parts = Parts(pipe)
    k, g = last(pipe, "cat"), last(pipe, "dog")
    retained = torch.cat([last(pipe, w) for w in HELD[1:]], 1)
    size = len(k)
    alone = (g - k) @ k.T @ inv(eye(size) + k @ k.T)
    moved = (alone @ retained).norm(dim=0)
    retained = retained[:, moved >= moved.mean()]
    assert retained.shape[1] == 1  # the filter took one away
    unit = retained / retained.norm()
    P, K2 = eye(size) - unit @ unit.T, read_empty(parts).T
    M = inv(k @ k.T @ P + eye(size))
    middle = eye(size) - M @ K2 @ inv(K2.T @ P @ M @ K2) @ K2.T @ P
    delta = (g - k) @ k.T @ P @ middle @ M
    targets = parts.targets
    expected = {n: w + w @ delta for n, w in weights(pipe).items() if n in targets.values}
    requests = [concepts.erase("cat", to="dog"), concepts.hold(*HELD[1:])]
    edited = concepts.edit(pipe, requests, method="speed")
    check(pipe, edited, expected)
    assert float((edited.map.delta() @ K2).abs().max()) < 1e-9


def test_covariance_is_least_squares_over_captions_and_keys(pipe):
    """The minimum of its objective: nothing near it is better, and held keys do not move."""
    settings = dataclasses.replace(named("covariance"), rank=0)
    edited = concepts.edit(
        pipe, [concepts.erase("cat"), concepts.hold("dog")], method=settings,
        statistics=CAPTIONS, progress=False,
    )  # fmt: skip
    rows, metric = (
        edited.rows["cat"],
        rk.Metric.from_moment(edited.kept.moment, ridge=settings.ridge),
    )
    held = edited.kept.held
    C = metric.apply(eye(metric.dim))
    R = (rows.guides - rows.keys).T
    K, s = rows.keys.T, settings.softness * len(rows.keys)
    H = held.T
    G = C + K @ K.T / s
    soft = R @ K.T / s @ inv(G)
    hard = soft - soft @ H @ inv(H.T @ inv(G) @ H) @ H.T @ inv(G)
    assert relative(edited.map.delta(), hard) < 1e-7
    assert float((edited.map.delta() @ H).norm()) < 1e-8 * float(H.norm())


def test_what_is_held_is_chosen_by_influence_under_every_cost(pipe):
    """Of what is to be held, what would move more than the mean does not move at all."""
    settings = dataclasses.replace(named("covariance"), influence=True, rank=0)
    requests = [concepts.erase("cat", to="dog"), concepts.hold("cup", "snow", "bear", "grass")]
    edited = concepts.edit(pipe, requests, method=settings, statistics=CAPTIONS, progress=False)
    held = edited.kept.held
    moved = (held @ edited.map.delta().T).norm(dim=1)
    fixed = moved < 1e-9 * held.norm(dim=1)
    assert 0 < int(fixed.sum()) < len(held)


@pytest.mark.parametrize("count", [40, 300])
@pytest.mark.parametrize("hard", [False, True])
def test_many_keys_are_reduced_without_a_change(count, hard):
    """More keys than dimensions, of weights that differ: the same map as by all of them."""
    draw = torch.Generator().manual_seed(count)
    keys, guides = (torch.randn(count, 24, generator=draw).double() for _ in range(2))
    softness = 0.1 + torch.rand(count, generator=draw).double()
    held = torch.randn(3, 24, generator=draw).double() if hard else None
    metric = rk.Metric.identity(24, 0.3)
    fewer, goals = reduced(keys, guides, softness)
    assert len(fewer) == 24
    every = rk.solve_edit(lambda x: x, keys, guides, metric, softness=softness, hold=held)
    found = rk.solve_edit(lambda x: x, fewer, goals, metric, softness=1.0, hold=held)
    assert relative(found.delta(), every.delta()) < 1e-9


def test_what_is_lacking_is_told_of_all_keys(pipe):
    settings = dataclasses.replace(named("time"), softness=0.5)
    edited = concepts.edit(pipe, [concepts.replace("cat", "dog")], method=settings)
    rows = edited.rows["cat"]
    assert len(rows.keys) > rows.keys.shape[1]
    lacking = rows.guides - rows.keys
    left = lacking - rows.keys @ edited.map.delta().T
    assert edited.map.report.residual == pytest.approx(float(left.norm() / lacking.norm()))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_limit_of_the_rank_is_for_each_concept(pipe, count):
    settings = dataclasses.replace(named("covariance"), rank=2)
    requests = [concepts.erase(word) for word in ("cat", "dog", "blue")[:count]]
    edited = concepts.edit(
        pipe, requests, method=settings, statistics=CAPTIONS, progress=False
    )  # fmt: skip
    assert edited.map.rank == 2 * count


@pytest.mark.parametrize("name", concepts.METHODS)
def test_every_method_is_a_solver(name):
    settings = named(name)
    check_solver(settings.solve, softness=settings.softness)


def test_a_method_of_ones_own(pipe):
    def mine(layer, keys, values, metric):
        return rk.solve_edit(layer, keys, values, metric, softness=1.0)

    edited = concepts.edit(pipe, REQUESTS, method=mine)
    assert edited.settings.method.endswith("mine")
    assert relative(edited.map.delta(), concepts.edit(pipe, REQUESTS, method="uce").map.delta()) < (
        1e-9
    )
    with pytest.raises(concepts.ConceptsError, match="a name, settings, or a function"):
        concepts.method_of(lambda layer: layer)
    with pytest.raises(concepts.ConceptsError, match="holds keys exactly"):
        concepts.method_of(mine, "speed")
