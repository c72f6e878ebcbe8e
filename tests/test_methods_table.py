"""Published methods, written out as in their papers, against the one solver.

The papers write vectors as columns: W (m x d), keys K (d x n), values V (m x n), second moment C
(d x d). That notation is kept here on purpose, and with it `torch.linalg.inv`: no line of a formula
below is shared with the library.
"""

import pytest
import torch
from torch.linalg import inv

import rankedit as rk
from tests.problems import normal, relative, rotation, spd

pytestmark = pytest.mark.filterwarnings("error")

D, M, N = 12, 7, 4  # inputs, outputs, keys


def eye(size: int) -> torch.Tensor:
    return torch.eye(size, dtype=torch.float64)


@pytest.fixture(params=[0, 1, 2])
def seed(request) -> int:
    return 100 * request.param


@pytest.fixture
def W(seed):
    return normal(M, D, seed=seed)


@pytest.fixture
def K(seed):
    return normal(D, N, seed=seed + 1)


@pytest.fixture
def V(seed):
    return normal(M, N, seed=seed + 2)


@pytest.fixture
def C(seed):
    return spd(D, 1e3, seed + 3)


@pytest.fixture
def metric(C):
    return rk.Metric.from_matrix(C)


def edited(W, K, V, metric, **options):
    """The solver's weight, from columns."""
    return W + rk.solve_edit(W, K.T, V.T, metric, **options).delta()


def test_rome(W, K, V, C, metric):
    """Meng et al., arXiv 2202.05262, equation 2."""
    k, v = K[:, :1], V[:, :1]
    u = inv(C) @ k
    expected = W + (v - W @ k) @ u.T / (u.T @ k)
    assert relative(edited(W, k, v, metric), expected) < 1e-10


def test_r_rome(W, K, V, C, metric):
    """Gupta et al., arXiv 2403.07175: one key, the mean over contexts, wherever a key stands."""
    k = K.mean(1, keepdim=True)
    v = W @ k + V[:, :1]
    expected = W + (v - W @ k) @ (inv(C) @ k).T / (k.T @ inv(C) @ k)
    assert relative(edited(W, k, v, metric), expected) < 1e-10


@pytest.mark.parametrize(("s", "b", "eps"), [(1000.0, 0.0, 0.1), (1.0, 0.5, 1e-3)])
def test_emmet(W, K, V, C, s, b, eps):
    """Gupta et al., arXiv 2403.14236, equation 8, with the regularisers of the public code."""
    A = inv(s * C + b * eye(D))
    expected = W + (V - W @ K) @ inv(K.T @ A @ K + eps * eye(N)) @ K.T @ A
    metric = rk.Metric.from_matrix(s * C + b * eye(D))
    assert relative(edited(W, K, V, metric, softness=eps), expected) < 1e-10


def test_emmet_is_memit_with_another_constant(W, K, V, metric):
    emmet = edited(W, K, V, metric.scaled(1000.0), softness=0.1)
    memit = edited(W, K, V, metric.scaled(1000.0 * 0.1), softness=1.0)
    assert relative(emmet, memit) < 1e-10


def test_memit(W, K, V, C, metric):
    """Meng et al., arXiv 2210.07229, equation 14: λ pseudo-samples of the statistics."""
    lam = 15.0
    expected = W + (V - W @ K) @ K.T @ inv(lam * C + K @ K.T)
    assert relative(edited(W, K, V, metric.scaled(lam), softness=1.0), expected) < 1e-10


def test_encore(W, K, V, C):
    """Gupta et al., arXiv 2502.01636: MEMIT with a Frobenius term."""
    lam, b = 15.0, 10.0
    expected = W + (V - W @ K) @ K.T @ inv(lam * C + b * eye(D) + K @ K.T)
    metric = rk.Metric.from_matrix(lam * C + b * eye(D))
    assert relative(edited(W, K, V, metric, softness=1.0), expected) < 1e-10


def test_sequential_memit(W, K, V, C, metric, seed):
    """With earlier keys K_p in the metric; equal to one batch over all edits."""
    K_p, V_p, lam = normal(D, 2, seed=seed + 4), normal(M, 2, seed=seed + 5), 15.0
    first = W + (V_p - W @ K_p) @ K_p.T @ inv(lam * C + K_p @ K_p.T)
    expected = first + (V - first @ K) @ K.T @ inv(lam * C + K_p @ K_p.T + K @ K.T)
    second = edited(first, K, V, metric.scaled(lam).extended(K_p.T), softness=1.0)
    assert relative(second, expected) < 1e-10
    batch = edited(
        W, torch.cat([K_p, K], 1), torch.cat([V_p, V], 1), metric.scaled(lam), softness=1.0
    )
    assert relative(second, batch) < 1e-10


def test_recursive_least_squares(W, K, V, C, metric):
    """The textbook update of W and P = (C + Σ kkᵀ)⁻¹, one sample at a time."""
    weight, P = W.clone(), inv(C)
    for i in range(N):
        k, v = K[:, i : i + 1], V[:, i : i + 1]
        gain = P @ k / (1 + k.T @ P @ k)
        weight = weight + (v - weight @ k) @ gain.T
        P = P - gain @ k.T @ P
    assert relative(edited(W, K, V, metric, softness=1.0), weight) < 1e-10
    ledger = rk.Ledger(W, metric, softness=1.0)
    for i in range(N):
        ledger.add(i, K.T[i : i + 1], V.T[i : i + 1])
    assert relative(W + ledger.edit().delta(), weight) < 1e-10


@pytest.mark.parametrize("used", [3, 9])
@pytest.mark.parametrize("earlier", [1, 4])
def test_alphaedit(W, K, V, seed, used, earlier):
    """Fang et al., arXiv 2410.02355, equation 12: a non-symmetric d x d system."""
    columns = rotation(D, seed + 6)
    Q, span = columns[:, used:], columns[:, :used]
    C = span @ torch.diag(torch.linspace(1, 5, used, dtype=torch.float64)) @ span.T
    P, K_p, L2 = Q @ Q.T, normal(D, earlier, seed=seed + 7), 10.0
    R = V - W @ K
    expected = W + R @ K.T @ P @ inv(K_p @ K_p.T @ P + K @ K.T @ P + L2 * eye(D))
    metric = rk.Metric.null_space(C, relative=1e-10, scale=L2).extended(K_p.T)
    result = edited(W, K, V, metric, softness=1.0)
    assert relative(result, expected) < 1e-10
    assert float(((result - W) @ span).abs().max()) < 1e-12


def test_uce(W, K, seed):
    """Gandikota et al., arXiv 2308.14761, equation 7: erase K to the guide's output, preserve."""
    guide, preserve = normal(D, N, seed=seed + 4), normal(D, 6, seed=seed + 5)
    lam, erase_scale, preserve_scale = 0.5, 1.0, 0.3
    first = lam * W + erase_scale * W @ guide @ K.T + preserve_scale * W @ preserve @ preserve.T
    second = lam * eye(D) + erase_scale * K @ K.T + preserve_scale * preserve @ preserve.T
    metric = rk.Metric.identity(D, lam).extended(preserve.T, preserve_scale)
    result = edited(W, K, W @ guide, metric, softness=1 / erase_scale)
    assert relative(result, first @ inv(second)) < 1e-10


def test_time(W, K, seed):
    """Orgad et al., arXiv 2303.08084, equation 4: source tokens to destination tokens."""
    destination, lam = normal(D, N, seed=seed + 4), 0.1
    v = W @ destination
    expected = (lam * W + v @ K.T) @ inv(lam * eye(D) + K @ K.T)
    result = edited(W, K, v, rk.Metric.identity(D, lam), softness=1.0)
    assert relative(result, expected) < 1e-10


def test_time_with_more_tokens_than_inputs(W, seed):
    """77 tokens of a prompt, as in the paper: the primal form."""
    source, destination, lam = normal(D, 77, seed=seed + 4), normal(D, 77, seed=seed + 5), 0.1
    v = W @ destination
    expected = (lam * W + v @ source.T) @ inv(lam * eye(D) + source @ source.T)
    result = edited(W, source, v, rk.Metric.identity(D, lam), softness=1.0)
    assert relative(result, expected) < 1e-10


def test_rece_pullback(seed):
    """Gong et al., arXiv 2407.12383, equation 10: the embedding that regenerates a concept.

    c' = (λI + Σ W_iᵀ W_i)⁻¹ Σ W_iᵀ W_i⁰ c. It is the problem for the 1 x d row c'ᵀ: keys are the
    rows of all W_i, values what the unedited layers gave along them.
    """
    new = [normal(M, D, seed=seed + i) for i in range(3)]
    old = [normal(M, D, seed=seed + 10 + i) for i in range(3)]
    c, lam = normal(D, 1, seed=seed + 20), 0.1
    expected = inv(lam * eye(D) + sum(w.T @ w for w in new)) @ sum(
        a.T @ b @ c for a, b in zip(new, old, strict=True)
    )
    keys, values = torch.cat(new), torch.cat([w @ c for w in old])
    nothing = torch.zeros(1, D, dtype=torch.float64)
    row = rk.solve_edit(nothing, keys, values, rk.Metric.identity(D, lam), softness=1.0)
    assert relative(row.delta().T, expected) < 1e-10


def test_speed(W, K, seed):
    """Li et al. (SPEED, ICLR 2026): ridge on the null space of what to retain, and D K₂ = 0."""
    used, scale = 5, 1.0
    columns = rotation(D, seed + 6)
    retained, P = columns[:, :used], columns[:, used:] @ columns[:, used:].T
    anchor, K2 = normal(D, N, seed=seed + 4), normal(D, 2, seed=seed + 5)
    E_at, E_tt = anchor @ K.T, K @ K.T
    Mi = inv(E_tt @ P + scale * eye(D))
    middle = eye(D) - Mi @ K2 @ inv(K2.T @ P @ Mi @ K2) @ K2.T @ P
    expected = W + W @ (E_at - E_tt) @ P @ middle @ Mi
    metric = rk.Metric.null_space(retained @ retained.T, relative=1e-10, scale=scale)
    result = edited(W, K, W @ anchor, metric, softness=1.0, hold=K2.T)
    assert relative(result, expected) < 1e-10


def test_custom_diffusion_merge(W, K, V, seed):
    """Kumari et al., arXiv 2212.04488, section 3.2: W + vᵀ d, with d = C (Cᵀ C_reg⁻¹ C)⁻¹ ..."""
    reg = normal(200, D, seed=seed + 4).T
    G = reg @ reg.T
    d = K.T @ inv(G)  # rows: c_i^T (C_reg^T C_reg)^-1
    v = inv(d @ K) @ (V - W @ K).T
    expected = W + v.T @ d
    moment = rk.SecondMoment(D).update(reg.T)
    result = edited(W, K, V, rk.Metric.from_moment(moment, ridge=0.0))
    assert relative(result, expected) < 1e-10


def test_mace_and_regmean_fusion(W, seed):
    """Lu et al., arXiv 2403.06135, equation 8; Jin et al., arXiv 2212.09849, equation 2.

    Fuse weights W_i, each of which matters on its own tokens X_i: ridge on the distance to W.
    """
    weights = [W + normal(M, D, seed=seed + 10 + i) for i in range(3)]
    tokens = [normal(D, 30, seed=seed + 20 + i) for i in range(3)]
    prior, lam = spd(D, 10.0, seed + 4), 0.7
    ridge = lam * eye(D) + prior
    A = sum(x @ x.T for x in tokens)
    B = sum(w @ x @ x.T for w, x in zip(weights, tokens, strict=True))
    expected = (W @ ridge + B) @ inv(ridge + A)
    keys = torch.cat(tokens, 1)
    values = torch.cat([w @ x for w, x in zip(weights, tokens, strict=True)], 1)
    result = edited(W, keys, values, rk.Metric.from_matrix(ridge), softness=1.0)
    assert relative(result, expected) < 1e-10


def test_leace_folded_into_the_weight(W, seed):
    """Belrose et al., arXiv 2306.03819, theorem 4.2: P = I − W⁺ (WΣ_xz)(WΣ_xz)⁺ W, W = Σ^{-1/2}."""
    labels = normal(500, 2, seed=seed + 4)
    inputs = normal(500, D, seed=seed + 5) @ spd(D, 10.0, seed + 6) + 3
    inputs[:, :2] += labels
    centred = inputs - inputs.mean(0)
    sigma = centred.T @ centred / 500
    cross = centred.T @ (labels - labels.mean(0)) / 500
    eigenvalues, columns = torch.linalg.eigh(sigma)
    whiten = (columns / eigenvalues.sqrt()) @ columns.T
    unwhiten = (columns * eigenvalues.sqrt()) @ columns.T
    image = whiten @ cross
    P = eye(D) - unwhiten @ image @ torch.linalg.pinv(image) @ whiten
    moment = rk.SecondMoment(D).update(inputs)
    metric = rk.Metric.from_moment(moment, ridge=0.0, centred=True)
    result = edited(W, cross, torch.zeros(M, 2, dtype=torch.float64), metric)
    assert relative(result, W @ P) < 1e-10
    # And nothing linear is left of the labels in what the projection gives.
    given = centred @ result.T
    assert float((given.T @ labels).abs().max()) < 1e-9


def test_directional_removal(W, seed):
    """Arditi et al., arXiv 2406.11717, equation 5: W ← W − r rᵀ W, an edit of the output side."""
    r = normal(M, 1, seed=seed + 4)
    r = r / r.norm()
    nothing = torch.zeros(1, D, dtype=torch.float64)
    edit = rk.solve_edit(W, r.T, nothing, rk.Metric.identity(M), side="output")
    assert relative(W + edit.delta(), W - r @ r.T @ W) < 1e-10


def test_directional_removal_with_a_ridge(W, seed):
    """Gülmez, arXiv 2512.18901: several directions R, W ← W − R (RᵀR + λI)⁻¹ Rᵀ W."""
    R, lam = normal(M, 3, seed=seed + 4), 0.3
    nothing = torch.zeros(3, D, dtype=torch.float64)
    edit = rk.solve_edit(W, R.T, nothing, rk.Metric.identity(M), side="output", softness=lam)
    expected = W - R @ inv(R.T @ R + lam * eye(3)) @ R.T @ W
    assert relative(W + edit.delta(), expected) < 1e-10


def test_directional_removal_under_the_output_covariance(W, seed):
    """The oblique version: along S r instead of r, least change of what outputs are like."""
    r, S = normal(M, 1, seed=seed + 4), spd(M, 100.0, seed + 5)
    nothing = torch.zeros(1, D, dtype=torch.float64)
    edit = rk.solve_edit(W, r.T, nothing, rk.Metric.from_matrix(inv(S)), side="output")
    expected = W - S @ r @ r.T @ W / (r.T @ S @ r)
    assert relative(W + edit.delta(), expected) < 1e-9


def test_perfusion_with_a_linear_gate(W, K, V, C, metric, seed):
    """Tewel et al., arXiv 2305.01644, equations 3 and 4, with σ replaced by the identity."""
    i, o, x = K[:, :1], V[:, :1], normal(D, 20, seed=seed + 4)
    A = inv(C)
    energy = i.T @ A @ i
    similarity = i.T @ A @ x / energy
    parallel = i @ similarity
    expected = W @ (x - parallel) + o @ similarity
    edit = rk.GatedEdit(i.T, o.T, metric, rk.Identity())
    linear = edit.linearised(lambda keys: keys @ W.T)
    assert relative((W + linear.delta()) @ x, expected) < 1e-10
    assert relative(edited(W, i, o, metric) @ x, expected) < 1e-10
    # What runs in a model computes in float32.
    added = edit.added(x.T, edit.bind(lambda keys: keys @ W.T))
    assert relative(W @ x + added.T, expected) < 1e-5
