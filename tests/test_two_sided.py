"""The cost of both sides, `tr(H ΔW M ΔWᵀ)`, against dense least squares and its own optimality."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import rankedit as rk
from rankedit.testing import check_solver
from tests.problems import normal, problem, problems, relative, spd, theorem

pytestmark = pytest.mark.filterwarnings("ignore::rankedit.RankeditWarning")


def dense(case, H, softness, hold=None):
    """vec(ΔW) from the KKT system of `vecᵀ (H ⊗ M) vec`, all of it written out."""
    keys, lacking, soft = case.keys.double(), case.lacking, softness
    if hold is not None:
        keys = torch.cat([keys, hold])
        lacking = torch.cat([lacking, torch.zeros(len(hold), lacking.shape[1]).double()])
        soft = torch.cat([soft, torch.zeros(len(hold)).double()])
    out, width = case.weight.shape
    eye = torch.eye(out, dtype=torch.float64)
    rows = torch.kron(eye, keys)  # vec by rows of ΔW: all keys for one output after the other
    system = torch.cat(
        [
            torch.cat([torch.kron(H, case.matrix), rows.T], 1),
            torch.cat([rows, -torch.kron(eye, soft.diag())], 1),
        ]
    )
    right = torch.cat([torch.zeros(out * width).double(), lacking.T.reshape(-1)])
    return torch.linalg.solve(system, right)[: out * width].reshape(out, width)


def both(case, H, softness, **options):
    metric = rk.Metric.from_matrix(case.matrix)
    edit = rk.solve_edit(
        case.weight, case.keys, case.values, metric,
        softness=softness, value_metric=H if isinstance(H, rk.Metric) else rk.Metric.from_matrix(H),
        **options,
    )  # fmt: skip
    return edit.delta()


small = problems(most_keys=4, conditions=(1.0, 1e2, 1e4), dtypes=(torch.float64,))


@theorem
@given(small, st.sampled_from([1.0, 1e3]), st.integers(0, 2**20))
def test_it_is_the_dense_least_squares_solution(case, condition, seed):
    H, softness = spd(len(case.weight), condition, seed), normal(len(case.keys), seed=seed).exp()
    assert relative(both(case, H, softness), dense(case, H, softness)) < 1e-8


@theorem
@given(small, st.integers(0, 2**20))
def test_the_gradient_is_zero(case, seed):
    """`H ΔW M = (R − K ΔWᵀ)ᵀ S⁻¹ K`: the optimality condition, for one softness for each key."""
    H, softness = spd(len(case.weight), 1e2, seed), normal(len(case.keys), seed=seed).exp()
    delta, keys = both(case, H, softness), case.keys.double()
    missing = (case.lacking - keys @ delta.T) / softness[:, None]
    assert relative(H @ delta @ case.matrix, missing.T @ keys) < 1e-7


@theorem
@given(problems(most_keys=4, conditions=(1.0, 1e4)), st.integers(0, 2**20))
def test_it_drops_out_of_equalities(case, seed):
    plain = rk.solve_edit(case.weight, case.keys, case.values, rk.Metric.from_matrix(case.matrix))
    assert relative(both(case, spd(len(case.weight), 1e4, seed), 0.0), plain.delta()) < 1e-9


@pytest.mark.parametrize("equal", [0, 1, 2])
@pytest.mark.parametrize("held", [0, 2])
def test_soft_keys_beside_hard_and_held_ones(equal, held):
    case, H = problem(9, 5, 4, seed=20), spd(5, 1e2, 30)
    softness = torch.tensor([0.3, 1.0, 2.0, 0.1], dtype=torch.float64)
    softness[:equal] = 0
    hold = normal(held, 9, seed=31) if held else None
    delta = both(case, H, softness, hold=hold)
    assert relative(delta, dense(case, H, softness, hold)) < 1e-9
    assert float((case.keys @ delta.T - case.lacking)[:equal].norm()) < 1e-10


def test_more_keys_than_inputs():
    case, H = problem(6, 4, 20, seed=40), spd(4, 1e2, 41)
    softness = torch.full((20,), 0.5, dtype=torch.float64)
    assert relative(both(case, H, softness), dense(case, H, softness)) < 1e-10


def test_equalities_that_depend_on_each_other():
    case, H = problem(9, 5, 3, seed=45), spd(5, 1e2, 46)
    softness = torch.tensor([0.0, 0.0, 0.7], dtype=torch.float64)
    case.keys[1], case.values[1] = 2 * case.keys[0], 2 * case.values[0]
    once = problem(9, 5, 3, seed=45)
    once = type(once)(case.weight, case.keys[[0, 2]], case.values[[0, 2]], case.matrix, 1e2, 45)
    assert relative(both(case, H, softness), dense(once, H, softness[[0, 2]])) < 1e-9


def test_in_the_limits_it_is_the_one_sided_edit():
    case = problem(9, 5, 3, seed=50)
    metric = rk.Metric.from_matrix(case.matrix)
    args = case.weight, case.keys, case.values, metric
    # One cost for all directions is a factor of the softness.
    assert relative(
        both(case, rk.Metric.identity(5, 4.0), 0.25), rk.solve_edit(*args, softness=1.0).delta()
    ) < 1e-10  # fmt: skip
    # The softer H makes a direction, the less it moves; in the other it is met.
    H = torch.diag(torch.tensor([1e12, 1.0, 1e-12, 1.0, 1.0], dtype=torch.float64))
    delta = both(case, H, 1.0)
    hard = rk.solve_edit(*args).delta()
    assert float(delta[0].norm()) < 1e-9 * float(hard[0].norm())
    assert relative(delta[2], hard[2]) < 1e-9


def test_turning_and_scaling_the_outputs_turns_and_scales_the_edit():
    case, H = problem(9, 5, 3, seed=60), spd(5, 1e2, 61)
    metric = rk.Metric.from_matrix(case.matrix)
    turn = normal(5, 5, seed=62)  # any invertible one
    given_ = rk.solve_edit(
        turn @ case.weight, case.keys, case.values @ turn.T, metric, softness=0.5,
        value_metric=rk.Metric.from_matrix(torch.linalg.inv(turn).T @ H @ torch.linalg.inv(turn)),
    )  # fmt: skip
    # Not the error's weights: only an orthogonal turn leaves those.
    orthogonal = torch.linalg.qr(turn).Q
    turned = rk.solve_edit(
        orthogonal @ case.weight, case.keys, case.values @ orthogonal.T, metric, softness=0.5,
        value_metric=rk.Metric.from_matrix(orthogonal @ H @ orthogonal.T),
    )  # fmt: skip
    assert relative(turned.delta(), orthogonal @ both(case, H, 0.5)) < 1e-10
    assert relative(given_.delta(), turn @ both(case, H, 0.5)) > 1e-3
    # H and S only count together.
    assert relative(both(case, 1e6 * H, 0.5e-6), both(case, H, 0.5)) < 1e-10


def test_a_restricted_value_metric_confines_what_is_added():
    case, basis = problem(9, 5, 3, seed=70), normal(2, 5, seed=71)
    H = spd(5, 1e2, 72)
    metric, within = rk.Metric.from_matrix(case.matrix), rk.Metric.from_matrix(H).restricted(basis)
    edit = rk.solve_edit(
        case.weight, case.keys, case.values, metric, softness=0.3, value_metric=within
    )
    q = torch.linalg.qr(basis.T).Q
    assert relative(q @ q.T @ edit.delta(), edit.delta()) < 1e-12
    # In the basis it is the same problem of two outputs.
    inner = rk.solve_edit(
        q.T @ case.weight, case.keys, case.values @ q, metric, softness=0.3,
        value_metric=rk.Metric.from_matrix(q.T @ H @ q),
    )  # fmt: skip
    assert relative(edit.delta(), q @ inner.delta()) < 1e-9
    with pytest.raises(rk.SolveError, match=r"solve_edit: key \d must change by something inside"):
        rk.solve_edit(case.weight, case.keys, case.values, metric, value_metric=within)
    wanted = case.keys @ case.weight.T + normal(3, 2, seed=73) @ q.T
    met = rk.solve_edit(case.weight, case.keys, wanted, metric, value_metric=within)
    assert relative(case.keys @ (case.weight + met.delta()).T, wanted) < 1e-9


def test_the_output_side():
    case, H = problem(9, 5, 3, seed=80), spd(9, 1e2, 81)
    keys, values = normal(2, 5, seed=82), normal(2, 9, seed=83)
    arguments = {"softness": 0.4, "value_metric": rk.Metric.from_matrix(H)}
    metric = rk.Metric.from_matrix(spd(5, 10.0, 84))
    other = rk.solve_edit(case.weight, keys, values, metric, side="output", **arguments)
    same = rk.solve_edit(case.weight.T, keys, values, metric, **arguments)
    assert relative(other.delta(), same.delta().T) < 1e-12


def test_extreme_vectors_are_guarded_on_both_sides():
    inputs, gradients = normal(200, 9, seed=90), normal(200, 5, seed=91)
    sinks = [torch.cat([x, 400 * x[:2]]) for x in (inputs, gradients)]
    moments = [rk.SecondMoment(x.shape[1]).update(x) for x in sinks]
    assert all(moment.extremes.count == 2 for moment in moments)
    M, H = (rk.Metric.from_moment(moment) for moment in moments)
    case = problem(9, 5, 2, seed=92)
    arguments = case.weight, case.keys, case.values
    edit = rk.solve_edit(*arguments, M, softness=0.1, value_metric=H)
    full = rk.solve_edit(*arguments, M.guarded, softness=0.1, value_metric=H.guarded)
    assert relative(edit.delta(), full.delta()) < 1e-12
    rest = rk.solve_edit(*arguments, M, softness=0.1)
    along = torch.nn.functional.normalize(gradients[:2], dim=1)
    assert float((along @ edit.delta()).norm()) < 0.1 * float((along @ rest.delta()).norm())


def test_the_ledger_undoes_it_exactly_and_files_keep_it(tmp_path):
    case, H = problem(9, 5, 4, seed=100), rk.Metric.from_matrix(spd(5, 1e2, 101))
    metric = rk.Metric.from_matrix(case.matrix)
    ledger = rk.Ledger(case.weight, metric, softness=0.5, value_metric=H)
    for i in range(4):
        ledger.add(i, case.keys[i : i + 1], case.values[i : i + 1])
    together = rk.solve_edit(
        case.weight, case.keys, case.values, metric, softness=0.5, value_metric=H
    )
    assert relative(ledger.edit().delta(), together.delta()) < 1e-12
    for i in (0, 2):
        ledger.remove(i)
    left = case.keys[1::2], case.values[1::2]
    rest = rk.solve_edit(case.weight, *left, metric, softness=0.5, value_metric=H)
    assert relative(ledger.edit().delta(), rest.delta()) < 1e-12
    rk.save({"layer": rest}, tmp_path / "edit.safetensors")
    assert relative(rk.load(tmp_path / "edit.safetensors")["layer"].delta(), rest.delta()) < 1e-6


def test_solvers_with_it_conform():
    def hard(weight, keys, values, metric):
        H = rk.Metric.from_matrix(spd(len(weight), 1e2, 7))
        return rk.solve_edit(weight, keys, values, metric, value_metric=H)

    def soft(weight, keys, values, metric):
        H = rk.Metric.identity(len(weight), 2.0)
        return rk.solve_edit(weight, keys, values, metric, softness=0.1, value_metric=H)

    check_solver(hard)
    check_solver(soft, softness=0.2)


def test_what_is_refused():
    case, metric = problem(9, 5, 3, seed=110), rk.Metric.from_matrix(spd(9, 1e2, 111))
    arguments = case.weight, case.keys, case.values, metric
    with pytest.raises(rk.ShapeError, match=r"value_metric must have the width 5 .* got 9"):
        rk.solve_edit(*arguments, value_metric=metric)
    with pytest.raises(rk.ShapeError, match="value_metric must be a Metric"):
        rk.solve_edit(*arguments, value_metric=spd(5, 1.0, 0))
    with pytest.raises(rk.ShapeError, match="Ledger: softness, hold and value_metric"):
        rk.Ledger(case.weight, metric, value_metric=metric, solver=rk.solve_edit)
