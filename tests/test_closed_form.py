"""The theorems of the closed form: equalities hold, and no cheaper edit exists."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import rankedit as rk
from rankedit.closed_form import solve_lacking
from tests.problems import (
    Problem,
    cost,
    exact_edit,
    normal,
    problem,
    problems,
    relative,
    rotation,
    spd,
    theorem,
)

pytestmark = pytest.mark.filterwarnings("ignore::rankedit.RankeditWarning")


def solved(case: Problem, **options) -> torch.Tensor:
    metric = rk.Metric.from_matrix(case.matrix)
    return rk.solve_edit(case.weight, case.keys, case.values, metric, **options).delta()


class TestEquality:
    @theorem
    @given(problems())
    def test_every_key_gives_its_value(self, case):
        edited = case.weight.double() + solved(case)
        assert relative(case.keys.double() @ edited.T, case.values) < 1e-9

    @theorem
    @given(problems(), st.integers(0, 2**20))
    def test_no_cheaper_edit_exists(self, case, seed):
        delta, free = solved(case), case.free_directions()
        price = cost(delta, case.matrix)
        # The cheapest point of the affine space of all edits that meet the constraints, searched
        # for from this edit: the gain is what the solver left on the table.
        root = torch.linalg.cholesky(free.T @ case.matrix @ free)
        slope = torch.linalg.solve_triangular(root, free.T @ case.matrix @ delta.T, upper=False)
        assert float(slope.square().sum()) <= 1e-9 * price
        # And whichever way one steps, the price rises.
        step = normal(len(delta), free.shape[1], seed=seed) @ free.T
        step *= math.sqrt(price / cost(step, case.matrix))
        assert relative(case.keys.double() @ (delta + step).T, case.lacking) < 1e-6
        for size in (-1.0, -1e-2, 1e-2, 1.0):
            assert cost(delta + size * step, case.matrix) > price

    @theorem
    @given(problems(most_keys=4))
    def test_agrees_with_60_digit_arithmetic(self, case):
        expected = exact_edit(case.matrix, case.keys.double(), case.lacking)
        # The digits that the condition number leaves of float64, in the norm that is minimised.
        error = cost(solved(case) - expected, case.matrix) / cost(expected, case.matrix)
        assert math.sqrt(error) < max(1e-11, 1e-14 * case.condition)

    @theorem
    @given(problems(conditions=(1e2, 1e6)), st.floats(1e-5, 1e-3))
    def test_holds_for_keys_that_are_almost_parallel(self, case, apart):
        keys = torch.cat([case.keys[:1], case.keys[:1]]).double()
        keys[1] += apart * normal(keys.shape[1], seed=case.seed + 9)
        values = normal(2, len(case.weight), seed=case.seed + 10)
        metric = rk.Metric.from_matrix(case.matrix)
        edit = rk.solve_edit(case.weight, keys, values, metric)
        given_values = keys @ (case.weight.double() + edit.delta()).T
        size = float(keys.norm() * edit.delta().norm())
        assert float((given_values - values).abs().max()) < 1e-12 * size
        assert edit.report.residual < 1e-6

    @theorem
    @given(problems())
    def test_a_satisfied_key_gives_no_edit(self, case):
        metric = rk.Metric.from_matrix(case.matrix)
        satisfied = case.keys.double() @ case.weight.double().T
        edit = rk.solve_edit(case.weight, case.keys, satisfied, metric)
        assert float(edit.delta().abs().max()) == 0
        assert edit.report.residual == 0

    def test_as_many_keys_as_inputs_determine_the_weight(self):
        case = problem(6, 4, 6, 1e6)
        expected = torch.linalg.solve(case.keys, case.values).T
        assert relative(case.weight + solved(case), expected) < 1e-8

    def test_rank_is_the_number_of_keys(self):
        edit = rk.solve_edit(
            *(getattr(problem(8, 5, 3), n) for n in ("weight", "keys", "values")),
            rk.Metric.identity(8),
        )
        assert edit.rank == 3
        assert int(torch.linalg.matrix_rank(edit.delta())) == 3


class TestSoftness:
    @theorem
    @given(problems(), st.sampled_from([1e-6, 1e-2, 1.0, 1e3]), st.integers(1, 3))
    def test_gradient_of_the_objective_is_zero(self, case, softness, repeats):
        # Repeats make more keys than inputs: the primal form.
        keys = torch.cat([case.keys.double() + i for i in range(repeats)])
        values = torch.cat([case.values.double() - i for i in range(repeats)])
        soft = softness * (1 + torch.arange(len(keys), dtype=torch.float64))
        metric = rk.Metric.from_matrix(case.matrix)
        delta = rk.solve_edit(case.weight, keys, values, metric, softness=soft).delta()
        lacking = values - keys @ case.weight.double().T
        regular = delta @ case.matrix
        data = (keys @ delta.T - lacking).T / soft @ keys
        scale = float((lacking.T / soft @ keys).abs().max()) + float(regular.abs().max())
        assert float((regular + data).abs().max()) < 1e-8 * scale

    @theorem
    @given(problems(most_keys=4), st.sampled_from([1e-8, 1e-3, 1.0, 1e4]))
    def test_agrees_with_60_digit_arithmetic(self, case, softness):
        soft = torch.full((len(case.keys),), softness, dtype=torch.float64)
        expected = exact_edit(case.matrix, case.keys.double(), case.lacking, soft)
        error = cost(solved(case, softness=softness) - expected, case.matrix)
        assert math.sqrt(error / cost(expected, case.matrix)) < max(1e-11, 1e-14 * case.condition)

    @pytest.mark.parametrize("count", [3, 8, 30])
    def test_dual_and_primal_agree(self, count):
        case = problem(8, 5, count, 1e4, seed=count)
        matrix, keys, lacking = case.matrix, case.keys, case.lacking
        eye = torch.eye(count, dtype=torch.float64)
        images = torch.linalg.solve(matrix, keys.T).T
        dual = lacking.T @ torch.linalg.solve(images @ keys.T + 0.5 * eye, images)
        primal = torch.linalg.solve(matrix + keys.T @ keys / 0.5, keys.T @ lacking / 0.5).T
        found = solved(case, softness=0.5)
        assert relative(found, dual) < 1e-9
        assert relative(found, primal) < 1e-9

    def test_more_outputs_than_inputs_in_the_primal(self):
        case = problem(4, 9, 12)
        metric = rk.Metric.from_matrix(case.matrix)
        edit = rk.solve_edit(case.weight, case.keys, case.values, metric, softness=1.0)
        assert (edit.up.shape, edit.down.shape) == ((9, 4), (4, 4))

    def test_tends_to_the_equality_edit(self):
        case = problem(8, 5, 3)
        hard = solved(case)
        errors = [relative(solved(case, softness=s), hard) for s in (1e-2, 1e-5, 1e-8, 1e-14)]
        assert errors == sorted(errors, reverse=True)
        assert errors[-1] < 1e-12

    def test_each_key_has_its_own(self):
        case = problem(8, 5, 2)
        soft = torch.tensor([0.0, 10.0])
        edited = case.weight + solved(case, softness=soft)
        missed = (case.keys @ edited.T - case.values).norm(dim=1)
        assert float(missed[0]) < 1e-12
        assert float(missed[1]) > 0.1


class TestHold:
    @theorem
    @given(problems(most_keys=5), st.sampled_from([0.0, 0.3]), st.integers(1, 3))
    def test_held_keys_do_not_move_and_the_rest_is_optimal(self, case, softness, count):
        width = case.keys.shape[1]
        count = min(count, width - len(case.keys))
        hold = normal(count, width, seed=case.seed + 5)
        delta = solved(case, softness=softness, hold=hold)
        scale = float(delta.norm() * hold.norm())
        assert float((hold @ delta.T).abs().max()) < 1e-10 * scale
        keys = torch.cat([case.keys.double(), hold])
        lacking = torch.cat([case.lacking, case.lacking.new_zeros(count, len(case.weight))])
        soft = torch.tensor([softness] * len(case.keys) + [0.0] * count, dtype=torch.float64)
        expected = exact_edit(case.matrix, keys, lacking, soft)
        error = cost(delta - expected, case.matrix) / cost(expected, case.matrix)
        assert math.sqrt(error) < max(1e-10, 1e-13 * case.condition)

    def test_holding_what_is_to_change_is_refused(self):
        case = problem(6, 3, 2)
        with pytest.raises(rk.SolveError, match="depends linearly on others"):
            solved(case, hold=case.keys[:1] * 2)

    def test_holding_what_the_metric_holds_anyway_changes_nothing(self):
        case = problem(6, 3, 2)
        columns = rotation(6, 11)
        used = columns[:, :3]
        metric = rk.Metric.null_space(used @ used.T, relative=1e-8)
        hold = normal(4, 3, seed=12) @ used.T
        plain, held = (
            rk.solve_edit(case.weight, case.keys, case.values, metric, hold=h).delta()
            for h in (None, hold)
        )
        assert relative(held, plain) < 1e-12

    def test_a_satisfied_key_outside_the_subspace_is_no_error(self):
        used = rotation(6, 11)[:, :3]
        metric = rk.Metric.null_space(used @ used.T, relative=1e-8)
        key = used.T[:1]
        edit = rk.solve_edit(torch.zeros(3, 6), key, torch.zeros(1, 3), metric)
        assert float(edit.delta().abs().max()) == 0


class TestSide:
    @theorem
    @given(problems(), st.sampled_from([0.0, 0.7]))
    def test_output_side_is_the_problem_on_the_transpose(self, case, softness):
        metric = rk.Metric.from_matrix(case.matrix)
        transposed = case.weight.T.contiguous()
        mine = rk.solve_edit(
            transposed, case.keys, case.values, metric, softness=softness, side="output"
        )
        theirs = rk.solve_edit(case.weight, case.keys, case.values, metric, softness=softness)
        assert relative(mine.delta(), theirs.delta().T) < 1e-9
        assert mine.report.drift == pytest.approx(theirs.report.drift)
        if softness == 0:
            edited = transposed.double() + mine.delta()
            assert relative(case.keys.double() @ edited, case.values) < 1e-9


class TestScaling:
    @theorem
    @given(problems(), st.sampled_from([2**-7, 2**7]), st.sampled_from([0.0, 0.4]))
    def test_units_of_the_keys(self, case, unit, softness):
        case = Problem(
            case.weight.double(),
            case.keys.double(),
            case.values.double(),
            case.matrix,
            case.condition,
            case.seed,
        )
        inputs = normal(50, case.keys.shape[1], seed=case.seed + 7) @ case.matrix

        def edit(scale: float) -> torch.Tensor:
            moment = rk.SecondMoment(inputs.shape[1]).update((inputs * scale).float())
            return rk.solve_edit(
                case.weight / scale,
                case.keys * scale,
                case.values,
                rk.Metric.from_moment(moment),
                softness=softness,
            ).delta()

        # Inputs in other units, the weight in the inverse units: the same projection.
        assert relative(edit(unit) * unit, edit(1.0)) < 1e-9

    @theorem
    @given(problems(), st.sampled_from([1e-4, 1e-2, 1e2, 1e4]))
    def test_scaling_the_statistics_changes_no_equality_edit(self, case, factor):
        metrics = [rk.Metric.from_matrix(case.matrix)]
        metrics += [metrics[0].scaled(factor), rk.Metric.from_matrix(case.matrix * factor)]
        edits = [rk.solve_edit(case.weight, case.keys, case.values, m) for m in metrics]
        for edit in edits[1:]:
            assert relative(edit.delta(), edits[0].delta()) < 1e-14 * case.condition + 1e-9
            ratio = edit.report.drift / edits[0].report.drift
            assert ratio == pytest.approx(math.sqrt(factor), rel=1e-6)

    @theorem
    @given(problems(), st.sampled_from([1e-3, 1e3]))
    def test_scaling_the_statistics_is_dividing_the_softness(self, case, factor):
        metric = rk.Metric.from_matrix(case.matrix)
        scaled, divided = (
            rk.solve_edit(case.weight, case.keys, case.values, m, softness=s).delta()
            for m, s in ((metric.scaled(factor), 1.0), (metric, factor))
        )
        assert relative(scaled, divided) < 1e-9

    @pytest.mark.parametrize("lengths", [[1e-6, 1.0, 1e6], [1e3, 1e-5, 1e-5]])
    def test_the_lengths_of_single_keys_do_not_matter(self, lengths):
        case, lengths = problem(8, 5, 3, 1e4), torch.tensor(lengths).double()[:, None]
        metric = rk.Metric.from_matrix(case.matrix)
        mixed = rk.solve_edit(case.weight, case.keys * lengths, case.values * lengths, metric)
        assert relative(mixed.delta(), solved(case)) < 1e-10


class TestDependentKeys:
    @theorem
    @given(problems(most_keys=5))
    def test_consistent_ones_are_one_constraint(self, case):
        mixture = normal(3, len(case.keys), seed=case.seed + 4)
        keys = torch.cat([case.keys.double(), mixture @ case.keys.double()])
        values = torch.cat([case.values.double(), mixture @ case.values.double()])
        metric = rk.Metric.from_matrix(case.matrix)
        with pytest.warns(rk.RankeditWarning, match="linearly dependent; their values agree"):
            edit = rk.solve_edit(case.weight, keys, values, metric)
        assert cost(edit.delta() - solved(case), case.matrix) < 1e-9 * cost(
            solved(case), case.matrix
        ) * max(1, case.condition * 1e-6)

    @theorem
    @given(problems())
    def test_contradicting_ones_are_refused(self, case):
        keys = torch.cat([case.keys, case.keys[:1]])
        values = torch.cat([case.values, case.values[:1] + 1])
        with pytest.raises(rk.SolveError, match=r"contradicts theirs; drop one .* softness > 0"):
            rk.solve_edit(case.weight, keys, values, rk.Metric.from_matrix(case.matrix))

    def test_softness_compromises(self):
        case = problem(6, 3, 1)
        keys, values = case.keys.repeat(2, 1), torch.cat([case.values, case.values + 2])
        metric = rk.Metric.identity(6)
        edit = rk.solve_edit(case.weight, keys, values, metric, softness=1e-9)
        edited = case.weight + edit.delta()
        assert relative(case.keys @ edited.T, case.values + 1) < 1e-6


class TestNearlyDependentKeys:
    @pytest.mark.parametrize(("apart", "warns"), [(1e-4, False), (1e-7, True)])
    def test_are_solved_with_a_warning_where_the_edit_is_large(self, apart, warns):
        keys = torch.tensor([[1.0, 0.0, 0.0], [1.0, apart, 0.0]]).double()
        metric = rk.Metric.identity(3)
        edit = rk.solve_edit(torch.zeros(1, 3), keys, torch.tensor([[1.0], [2.0]]), metric)
        assert relative(edit.delta(), torch.tensor([[1.0, 1 / apart, 0.0]])) < 1e-6
        assert [note[:30] for note in edit.report.warnings] == (
            ["the keys are nearly dependent "] if warns else []
        )

    def test_the_keys_to_blame_are_named_as_they_were_given(self):
        metric = rk.Metric.identity(4).restricted(torch.eye(4)[:3])
        keys = torch.eye(4)[[3, 0, 0]]  # key 0 lies outside, and asks for nothing
        values = torch.tensor([[0.0], [1.0], [2.0]])
        with pytest.raises(rk.SolveError, match=r"key [12] depends linearly on others"):
            rk.solve_edit(torch.zeros(1, 4), keys, values, metric)
        with pytest.raises(rk.SolveError, match=r"key 0 depends linearly .* keys in hold"):
            rk.solve_edit(torch.zeros(1, 4), keys[1:2], values[1:2], metric, hold=keys[1:2])

    def test_beyond_float64_they_are_one_key(self):
        keys = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1e-12, 0.0]]).double()
        with pytest.raises(rk.SolveError, match=r"key . depends linearly on others"):
            rk.solve_edit(
                torch.zeros(1, 3), keys, torch.tensor([[1.0], [2.0]]), rk.Metric.identity(3)
            )


class TestReport:
    def test_figures(self):
        case = problem(8, 5, 3, 1e3)
        metric = rk.Metric.from_matrix(case.matrix)
        edit = rk.solve_edit(case.weight, case.keys, case.values, metric, softness=0.5)
        delta = edit.delta()
        missing = (case.keys @ delta.T - case.lacking).norm() / case.lacking.norm()
        assert edit.report.residual == pytest.approx(float(missing))
        assert edit.report.drift == pytest.approx(math.sqrt(cost(delta, case.matrix)))
        assert edit.report.condition == metric.condition
        assert str(edit.report).startswith("residual at the keys ")

    def test_drift_is_the_change_of_the_output_on_the_data(self):
        case = problem(8, 5, 3)
        inputs = normal(1000, 8, seed=1)
        moment = rk.SecondMoment(8).update(inputs)
        edit = rk.solve_edit(
            case.weight, case.keys, case.values, rk.Metric.from_moment(moment, ridge=0.0)
        )
        change = (inputs @ edit.delta().T).square().sum(1).mean().sqrt()
        assert edit.report.drift == pytest.approx(float(change))

    @pytest.mark.filterwarnings("default::rankedit.RankeditWarning")
    def test_ordinary_edits_warn_of_nothing(self, recwarn):
        edit = rk.solve_edit(
            torch.zeros(2, 4), torch.eye(4)[:2], torch.ones(2, 2), rk.Metric.identity(4)
        )
        assert edit.report.warnings == ()
        assert not recwarn

    def test_warns_of_a_key_unlike_the_data(self):
        inputs = normal(100, 6, seed=1)
        inputs[:, -1] *= 1e-5
        metric = rk.Metric.from_moment(rk.SecondMoment(6).update(inputs))
        with pytest.warns(rk.RankeditWarning, match="key 1 is .* times as unusual as the data"):
            rk.solve_edit(torch.zeros(2, 6), torch.eye(6)[[0, 5]], torch.ones(2, 2), metric)

    def test_warns_of_a_condition_beyond_float64(self):
        metric = rk.Metric.from_matrix(torch.diag(torch.tensor([1.0, 1e-16]).double()))
        with pytest.warns(rk.RankeditWarning, match=r"condition number 1.0e\+16; use a larger"):
            rk.solve_edit(torch.zeros(2, 2), torch.eye(2)[:1], torch.ones(1, 2), metric)

    def test_warns_of_a_key_that_is_mostly_outside_the_subspace(self):
        metric = rk.Metric.identity(4).restricted(torch.eye(4)[:2])
        key = torch.tensor([[1e-2, 0.0, 1.0, 0.0]])
        with pytest.warns(rk.RankeditWarning, match="only 1.0e-04 of a key's squared length"):
            edit = rk.solve_edit(torch.zeros(2, 4), key, torch.ones(1, 2), metric)
        assert relative(key.double() @ edit.delta().T, torch.ones(1, 2)) < 1e-12
        assert float(edit.delta()[:, 2:].abs().max()) == 0

    def test_warnings_are_in_the_report_and_point_at_the_caller(self):
        metric = rk.Metric.from_matrix(torch.diag(torch.tensor([1.0, 1e-16]).double()))
        with pytest.warns(rk.RankeditWarning) as caught:
            edit = rk.solve_edit(torch.zeros(2, 2), torch.eye(2)[:1], torch.ones(1, 2), metric)
        assert edit.report.warnings == (str(caught[0].message).removeprefix("solve_edit: "),)
        assert caught[0].filename == __file__


class TestArguments:
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
    def test_any_dtype_goes_in_and_float64_comes_out(self, dtype):
        case = problem(8, 5, 3, dtype=dtype)
        edit = rk.solve_edit(case.weight, case.keys, case.values, rk.Metric.identity(8))
        assert edit.up.dtype == edit.down.dtype == torch.float64
        edited = case.weight.double() + edit.delta()
        assert relative(case.keys.double() @ edited.T, case.values) < 1e-12

    def test_nothing_that_is_passed_is_changed(self):
        case = problem(8, 5, 3)
        hold = normal(2, 8, seed=8)
        given_tensors = [case.weight, case.keys, case.values, case.matrix, hold]
        before = [tensor.clone() for tensor in given_tensors]
        solved(case, hold=hold)
        assert all(map(torch.equal, given_tensors, before))

    def test_a_function_is_corrected_by_what_it_gives_without_its_bias(self):
        case = problem(8, 5, 3)
        bias = normal(5, seed=9)
        metric = rk.Metric.from_matrix(case.matrix)
        edit = rk.solve_edit(
            lambda x: x @ case.weight.T + bias, case.keys, case.values, metric
        ).delta()
        assert relative(edit, solved(case)) < 1e-12

    def test_values_that_require_gradients_are_read_as_they_are(self):
        case = problem(8, 5, 3)
        values = case.values.clone().requires_grad_()
        edit = rk.solve_edit(case.weight, case.keys, values, rk.Metric.identity(8))
        assert not edit.up.requires_grad

    def test_what_is_lacking_may_be_known_already(self):
        case = problem(8, 5, 3)
        metric = rk.Metric.from_matrix(case.matrix)
        edit = solve_lacking(case.keys, case.lacking, metric)
        assert torch.equal(edit.delta(), solved(case))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"side": "both"}, "side must be 'input' or 'output', got 'both'"),
            ({"softness": -1.0}, "finite and not negative, got float -1.0"),
            ({"softness": math.inf}, "finite and not negative, got float inf"),
            (
                {"softness": torch.ones(2, device="meta")},
                "softness must have data, got .*; make it on",
            ),
            ({"softness": torch.ones(3)}, r"softness must be one number or \[2\]"),
            ({"keys": torch.ones(2, 5)}, r"keys must have shape \[n, 4\]"),
            ({"keys": torch.ones(4)}, r"add the row axis with vector\[None\]"),
            ({"keys": torch.ones(2, 4, dtype=torch.int64)}, "must be a floating-point tensor"),
            ({"keys": torch.full((2, 4), torch.nan)}, "keys must be finite, got 8 NaN"),
            ({"values": torch.ones(2, 4)}, r"values must have shape \[2, 3\]"),
            ({"values": torch.ones(1, 3)}, r"values must have shape \[2, 3\]"),
            ({"hold": torch.ones(1, 5)}, r"hold must have shape \[n, 4\]"),
            ({"layer": torch.ones(3, 5)}, r"keys must have shape \[n, 5\]"),
            ({"layer": lambda x: x[:, :3] * torch.inf}, "the layer's output at the keys must be"),
            ({"side": "output"}, "keys must have the width 3 of the layer's output"),
        ],
    )
    def test_refusals(self, change, message):
        arguments = {
            "layer": torch.zeros(3, 4),
            "keys": torch.eye(4)[:2],
            "values": torch.ones(2, 3),
            "metric": rk.Metric.identity(4),
        }
        with pytest.raises(rk.ShapeError, match=message):
            rk.solve_edit(**(arguments | change))

    def test_a_key_that_nothing_can_move_is_refused(self):
        metric = rk.Metric.identity(4).restricted(torch.eye(4)[:2])
        keys = torch.eye(4)[[0, 3]]
        with pytest.raises(rk.SolveError, match="key 1 is zero inside the subspace"):
            rk.solve_edit(torch.zeros(3, 4), keys, torch.ones(2, 3), metric)

    @pytest.mark.parametrize(
        ("layer", "side", "message"),
        [
            ("weight", "input", "layer must be a weight tensor"),
            (lambda x: x, "output", "a bare function does not tell its input width"),
        ],
    )
    def test_layers_that_are_none(self, layer, side, message):
        with pytest.raises(rk.ProjectionError, match=message):
            rk.solve_edit(
                layer, torch.eye(4)[:1], torch.ones(1, 4), rk.Metric.identity(4), side=side
            )


def test_float32_weights_at_condition_1e9_meet_the_equality():
    """The benchmark `accuracy.py` shows the explicit float32 inverse beside this."""
    width, out, count = 256, 64, 8
    weight, keys, values = (
        normal(*shape, seed=2).float() for shape in [(out, width), (count, width), (count, out)]
    )
    edit = rk.solve_edit(weight, keys, values, rk.Metric.from_matrix(spd(width, 1e9, 1)))
    edited = weight + edit.delta().float()
    assert float((keys @ edited.T - values).norm() / values.norm()) < 1e-5


class TestManyKeys:
    """More equalities than coordinates: met if they can be, refused at once if not."""

    @pytest.mark.parametrize("dim", [1, 8, 64])
    @pytest.mark.parametrize("soft", [0, 3])
    def test_values_that_agree_are_met(self, dim, soft):
        keys, weight = normal(40 * dim + 2, dim, seed=1), normal(3, dim, seed=2)
        softness = torch.zeros(len(keys))
        softness[:soft] = 1.0
        with pytest.warns(rk.RankeditWarning, match="linearly dependent; their values agree"):
            edit = rk.solve_edit(
                torch.zeros(3, dim),
                keys,
                keys @ weight.T,
                rk.Metric.identity(dim),
                softness=softness,
            )
        torch.testing.assert_close(edit.delta(), weight, rtol=1e-10, atol=1e-10)

    def test_values_that_do_not_are_refused_without_a_square_matrix(self, monkeypatch):
        largest = []
        svd = torch.linalg.svd
        monkeypatch.setattr(
            torch.linalg, "svd", lambda x, **o: largest.append(x.numel()) or svd(x, **o)
        )
        monkeypatch.setattr(torch.linalg, "cholesky_ex", lambda *_: pytest.fail("n x n"))
        keys, values = normal(2000, 64, seed=1), normal(2000, 3, seed=2)
        with pytest.raises(rk.SolveError, match="depends linearly on others and asks for a value"):
            rk.solve_edit(torch.zeros(3, 64), keys, values, rk.Metric.identity(64))
        assert largest == [2000 * 64]


@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("bias", [-0.2, 0.0, 0.75])
def test_a_gate_that_is_open_at_zero_is_no_part_of_the_bias(bias, normalised):
    """Met beside a gated edit, whatever that adds to the output for zero."""
    layer, metric = torch.nn.Linear(8, 5), rk.Metric.identity(8)
    gated = rk.GatedEdit(
        normal(2, 8, seed=1),
        10 * normal(2, 5, seed=2),
        metric,
        rk.Sigmoid(bias, 0.3),
        normalised=normalised and bias > 0,
    )
    keys, values = normal(3, 8, seed=3).float(), normal(3, 5, seed=4).float()
    for view in (layer, rk.Projection(layer)):
        with rk.attach(layer, gated, strength=0.7):
            edit = rk.solve_edit(view, keys, values, metric)
            with rk.attach(layer, edit):
                given = (layer(keys) - layer.bias).detach()
        torch.testing.assert_close(given, values, rtol=1e-4, atol=1e-4)
