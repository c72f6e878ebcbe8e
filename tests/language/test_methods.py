"""Each method against its published formula in float64, and the conformance kit.

The papers write vectors as columns: W (m x d), keys K (d x n), values V (m x n), second moment C.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rankedit_recipes.language import METHODS, LanguageError, Settings
from rankedit_recipes.language import methods as package
from rankedit_recipes.language.methods import INCONSISTENT
from torch.linalg import inv

import rankedit as rk
from rankedit.testing import check_solver
from tests.problems import normal, relative, rotation

pytestmark = pytest.mark.filterwarnings("error")

D, M, N = 12, 7, 4


@pytest.fixture
def moment():
    """Of data that hardly use some directions, as real ones."""
    spread = torch.logspace(0, -1, D, dtype=torch.float64)
    return rk.SecondMoment(D).update(normal(500, D, seed=0) * spread @ rotation(D, 1))


@pytest.fixture
def problem():
    return normal(M, D, seed=2), normal(D, N, seed=3), normal(M, N, seed=4)


def eye(size):
    return torch.eye(size, dtype=torch.float64)


def edited(settings, problem, moment):
    W, K, V = problem
    return W + settings.solve(W, K.T, V.T, settings.metric(moment)).delta()


def regularised(moment, ridge=1e-12):
    C = moment.matrix
    return C + ridge * C.trace() / D * eye(D)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_conforms(name):
    settings = METHODS[name]
    check_solver(settings.solve, softness=settings.softness)


@pytest.mark.parametrize("name", ["rome", "r-rome"])
def test_rome(problem, moment, name):
    """Meng et al., arXiv 2202.05262, equation 2."""
    W, K, V = problem
    k, v = K[:, :1], V[:, :1]
    u = inv(regularised(moment)) @ k
    expected = W + (v - W @ k) @ u.T / (k.T @ u)
    assert relative(edited(METHODS[name], (W, k, v), moment), expected) < 1e-6


def test_emmet_and_rome_for_several_facts(problem, moment):
    """Gupta et al., arXiv 2403.14236, equation 8, with the regularisers of the public code."""
    W, K, V = problem
    settings = METHODS["emmet"]
    A = inv(settings.weight * D * regularised(moment))
    gram = K.T @ A @ K
    soft = inv(gram + settings.softness * eye(N))
    assert relative(edited(settings, problem, moment), W + (V - W @ K) @ soft @ K.T @ A) < 1e-6
    hard = W + (V - W @ K) @ inv(gram) @ K.T @ A
    assert relative(edited(METHODS["rome"], problem, moment), hard) < 1e-6


def test_memit(problem, moment):
    """Meng et al., arXiv 2210.07229, equation 14, with λ vectors of the corpus."""
    W, K, V = problem
    settings = METHODS["memit"]
    lam = settings.weight * D
    expected = W + (V - W @ K) @ K.T @ inv(lam * regularised(moment) + K @ K.T)
    assert relative(edited(settings, problem, moment), expected) < 1e-8


def test_encore(problem, moment):
    """Gupta et al., arXiv 2502.01636, section 5: MEMIT with β on the diagonal."""
    W, K, V = problem
    settings = METHODS["encore"]
    lam = settings.weight * D
    beta = settings.ridge * lam * moment.matrix.trace() / D
    expected = W + (V - W @ K) @ K.T @ inv(lam * moment.matrix + beta * eye(D) + K @ K.T)
    assert relative(edited(settings, problem, moment), expected) < 1e-8
    assert settings.first_for == 2


def test_alphaedit(problem, moment):
    """Fang et al., arXiv 2410.02355, equation 12, with keys of earlier edits in the ledger."""
    W, K, V = problem
    settings = METHODS["alphaedit"]
    eigenvalues, columns = torch.linalg.eigh(moment.matrix)
    free = eigenvalues.cumsum(0) <= settings.energy * eigenvalues.sum()
    assert 0 < int(free.sum()) < D
    P = columns[:, free] @ columns[:, free].T
    L2 = settings.weight * moment.matrix.trace()
    K_p, V_p = normal(D, 3, seed=5), normal(M, 3, seed=6)

    def published(W, K, V, earlier):
        R = V - W @ K
        return W + R @ K.T @ P @ inv(earlier @ earlier.T @ P + K @ K.T @ P + L2 * eye(D))

    assert relative(edited(settings, problem, moment), published(W, K, V, K[:, :0])) < 1e-8
    first = published(W, K_p, V_p, K[:, :0])
    expected = published(first, K, V, K_p)
    ledger = rk.Ledger(W, settings.metric(moment), softness=settings.softness)
    ledger.add("earlier", K_p.T, V_p.T)
    ledger.add("now", K.T, V.T)
    assert relative(W + ledger.edit().delta(), expected) < 1e-8


def test_without_statistics_only_the_size_of_the_inputs_matters(problem, moment):
    W, K, V = problem
    settings = replace(METHODS["memit"], cost="identity")
    lam = settings.weight * moment.matrix.trace() / D
    expected = W + (V - W @ K) @ K.T @ inv(lam * eye(D) + K @ K.T)
    assert relative(edited(settings, problem, moment), expected) < 1e-10


def test_scaling_what_a_projection_reads_changes_no_edit(problem, moment):
    W, K, V = problem
    scaled = rk.SecondMoment.from_state(
        {
            name: tensor * {"outer_packed": 1e4, "total": 1e2, "fourth": 1e8}.get(name, 1.0)
            for name, tensor in moment.state().items()
        },
        rk.Provenance(),
        torch.float64,
    )
    for settings in METHODS.values():
        plain = edited(settings, problem, moment)
        result = edited(settings, (W / 100, K * 100, V), scaled) * 100
        assert relative(result, plain) < 1e-6


def test_every_method_is_short_and_says_where_it_comes_from():
    for file in Path(package.__file__).parent.glob("*.py"):
        if file.stem == "own":  # makes methods of other people's functions, and is none itself
            continue
        text = file.read_text()
        assert len(text.splitlines()) < 60
        if file.stem != "__init__":
            assert "arXiv" in text
            assert "Deviations" in text


def test_settings_travel_as_json():
    import json

    for settings in (*METHODS.values(), INCONSISTENT):
        assert Settings.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings
    with pytest.raises(LanguageError, match=r"Settings: unknown \['speed'\]"):
        Settings.from_dict({"method": "rome", "speed": 3})


@pytest.mark.parametrize(
    "changes",
    [
        {"weight": 0.0},
        {"softness": -1.0},
        {"depth": 1.5},
        {"energy": 0.0},
        {"contexts": (0,)},
        {"steps": 0},
        {"clamp": float("nan")},
    ],
)
def test_settings_out_of_range_are_refused(changes):
    with pytest.raises(LanguageError, match=f"out of range.*{next(iter(changes))}"):
        replace(METHODS["memit"], **changes)


@pytest.mark.parametrize(
    "changes", [{"steps": 1.5}, {"layers": True}, {"clamp": "x"}, {"chat": "no"}, {"seed": None}]
)
def test_settings_of_another_type_are_refused(changes):
    with pytest.raises(LanguageError, match=f"{next(iter(changes))} must be of type"):
        replace(METHODS["memit"], **changes)


def test_settings_that_contradict_each_other_are_refused():
    with pytest.raises(LanguageError, match="cost must be one of covariance"):
        replace(METHODS["memit"], cost="nothing")
    with pytest.raises(LanguageError, match="needs softness 0 and one layer"):
        replace(METHODS["memit"], consistent=False)
