"""The ledger with a solver of one's own: exact undo, the original layer, and words for mistakes."""

import pytest
import torch

import rankedit as rk
from tests.problems import normal, relative, spd

WIDTH, OUT = 14, 5


def halved(layer, keys, values, metric):
    """Half of the equality edit: its numbers are nobody else's."""
    return 0.5 * rk.solve_edit(layer, keys, values, metric)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_library_s_solver_handed_over_gives_the_same_bits(dtype):
    layer = torch.nn.Linear(WIDTH, OUT, dtype=dtype)
    metric = rk.Metric.from_matrix(spd(WIDTH, 1e4, 1))

    def solver(*problem):
        return rk.solve_edit(*problem, softness=0.5)

    own, ledger = rk.Ledger(layer, metric, solver=solver), rk.Ledger(layer, metric, softness=0.5)
    for number in range(4):
        pair = normal(1, WIDTH, seed=number).to(dtype), normal(1, OUT, seed=9 + number).to(dtype)
        for each in (own, ledger):
            each.add(number, *pair)
    for each in (own, ledger):
        each.remove(1)
    assert torch.equal(own.edit().delta(), ledger.edit().delta())


def test_a_solver_of_one_s_own_is_undone_exactly_and_sees_the_original_layer():
    layer = torch.nn.Linear(WIDTH, OUT).double()
    metric = rk.Metric.from_matrix(spd(WIDTH, 1e4, 1))
    keys, values = normal(3, WIDTH, seed=2), normal(3, OUT, seed=3)
    ledger, never = (rk.Ledger(layer, metric, solver=halved) for _ in range(2))
    for number in (0, 1, 2):
        ledger.add(number, keys[number : number + 1], values[number : number + 1])
    for number in (0, 2):
        never.add(number, keys[number : number + 1], values[number : number + 1])
    whole = ledger.edit()
    assert relative(whole.delta(), halved(layer, keys, values, metric).delta()) < 1e-12
    ledger.remove(1)
    expected = never.edit().delta()
    with rk.attach(layer, whole):  # what the layer gives now is not what is corrected
        assert torch.equal(ledger.edit().delta(), expected)


def elsewhere(layer, keys, values, metric):
    """Corrects what the layer gives for inputs that are not the ledger's keys."""
    return rk.solve_edit(layer, 2 * keys, values, metric)


def sideways(layer, keys, values, metric):
    """Solves for the output side too."""
    side = rk.solve_edit(layer, values, keys, rk.Metric.identity(OUT), side="output")
    return side + rk.solve_edit(layer, keys, values, metric)


@pytest.mark.parametrize("solver", [elsewhere, sideways])
def test_other_inputs_run_the_layer_while_it_is_the_original_one(solver):
    layer = torch.nn.Linear(WIDTH, OUT, bias=False).double()
    metric = rk.Metric.identity(WIDTH)
    key, value = normal(1, WIDTH, seed=2), normal(1, OUT, seed=1)
    ledger = rk.Ledger(layer, metric, solver=solver)
    ledger.add("it", key, value)
    edit = ledger.edit()
    assert relative(edit.delta(), solver(layer, key, value, metric).delta()) < 1e-12
    with (
        rk.attach(layer, edit),
        pytest.raises(rk.SolveError, match=r"Ledger\.edit: .* detach or unfuse"),
    ):
        ledger.edit()


@pytest.mark.parametrize(
    ("solver", "error", "said"),
    [
        (lambda *_: {"up": 1}, rk.ShapeError, r"must return a LowRank .* \[5, 14\], got .*dict"),
        (lambda *p: rk.LowRank(halved(*p).down.T, halved(*p).up.T), rk.ShapeError,
         r"shape \[5, 14\], got one of \[14, 5\]; rankedit\.testing\.check_solver"),
        (lambda layer, *_: layer.weight, AttributeError, "only run, it has no 'weight'; use rank"),
    ],
)  # fmt: skip
def test_solvers_that_return_something_else_are_refused(solver, error, said):
    ledger = rk.Ledger(normal(OUT, WIDTH, seed=0), rk.Metric.identity(WIDTH), solver=solver)
    ledger.add("it", normal(1, WIDTH, seed=1), normal(1, OUT, seed=2))
    with pytest.raises(error, match=said):
        ledger.edit()


@pytest.mark.parametrize("options", [{"softness": 1.0}, {"hold": normal(1, WIDTH, seed=2)}])
def test_a_solver_takes_the_place_of_softness_and_hold(options):
    with pytest.raises(rk.ShapeError, match="leave them out, and let the solver decide"):
        rk.Ledger(normal(OUT, WIDTH, seed=0), rk.Metric.identity(WIDTH), solver=halved, **options)


@pytest.mark.parametrize("solver", [None, halved])
def test_rows_by_what_they_lack_are_edits_as_others_are(solver):
    layer = torch.nn.Linear(WIDTH, OUT).double()
    metric = rk.Metric.from_matrix(spd(WIDTH, 1e4, 1))
    keys, values = normal(5, WIDTH, seed=2), normal(5, OUT, seed=3)
    lacking = values - rk.linear_output(layer, keys)
    one, many = (rk.Ledger(layer, metric, solver=solver) for _ in range(2))
    for number in range(5):
        one.add(number, keys[number : number + 1], values[number : number + 1])
    many.add_lacking(range(3), keys[:3], lacking[:3])
    many.add_lacking([3, 4], keys[3:], lacking[3:])
    keys.zero_()  # the ledger has its own
    assert relative(many.edit().delta(), one.edit().delta()) < 1e-10
    for ledger in (one, many):
        ledger.remove(1)
        ledger.remove(4)
    assert many.names() == [0, 2, 3]
    assert relative(many.edit().delta(), one.edit().delta()) < 1e-10
    with rk.attach(layer, many.edit()), pytest.raises(rk.SolveError, match="attached edits"):
        many.add_lacking([9], values[:1, :1].expand(1, WIDTH), lacking[:1])


@pytest.mark.parametrize(
    ("names", "keys", "lacking", "error", "said"),
    [
        (["a", "there"], (2, WIDTH), (2, OUT), rk.SolveError, "'there' is in the ledger already"),
        (["a", "a"], (2, WIDTH), (2, OUT), rk.SolveError, "a name for each of 2 rows, and no two"),
        (["a"], (2, WIDTH), (2, OUT), rk.SolveError, "a name for each of 2 rows, .* got 1, 1 of"),
        (["a"], (1, OUT), (1, OUT), rk.ShapeError, r"add_lacking: keys must have shape \[n, 14\]"),
        (["a"], (1, WIDTH), (1, 1), rk.ShapeError, r"lacking must have shape \[1, 5\]"),
        (["a"], (1, WIDTH), (2, OUT), rk.ShapeError, r"lacking must have shape \[1, 5\]"),
        ([[]], (1, WIDTH), (1, OUT), rk.ShapeError, "name must be"),
    ],
)
def test_rows_that_cannot_be_entered_leave_the_ledger_as_it_was(names, keys, lacking, error, said):
    ledger = rk.Ledger(normal(OUT, WIDTH, seed=0), rk.Metric.identity(WIDTH))
    ledger.add("there", normal(1, WIDTH, seed=1), normal(1, OUT, seed=2))
    with pytest.raises(error, match=said):
        ledger.add_lacking(names, torch.ones(keys), torch.ones(lacking))
    assert ledger.names() == ["there"]
