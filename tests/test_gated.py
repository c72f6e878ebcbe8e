"""The gated edit against its formula in float64, and against the static edits it generalises."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import rankedit as rk
from tests.problems import Problem, normal, problem, problems, relative, theorem

MILD = (1.0, 1e2, 1e4)


def output(edit: rk.GatedEdit, weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """What the edited projection gives."""
    tensors = edit.bind(lambda keys: keys.double() @ weight.double().T)
    return x.float() @ weight.float().T + edit.added(x.float(), tensors)


def formula(case: Problem, x: torch.Tensor, gate) -> torch.Tensor:
    """y(x) = W (x − Iᵀ c(x)) + Σ_j gate(s_j(x)) o_j, vectors as columns, one input at a time."""
    W, keys, targets = (t.double() for t in (case.weight, case.keys, case.values))
    A = torch.linalg.inv(case.matrix)
    rows = []
    for vector in x.double():
        c = torch.linalg.inv(keys @ A @ keys.T) @ keys @ A @ vector
        y = W @ (vector - keys.T @ c)
        for j, (i, o) in enumerate(zip(keys, targets, strict=True)):
            y = y + gate(i @ A @ vector / (i @ A @ i), c[j]) * o
        rows.append(y)
    return torch.stack(rows)


class TestFormula:
    @theorem
    @given(problems(most_keys=4, conditions=MILD), st.floats(0.2, 0.9), st.floats(0.05, 0.5))
    def test_of_perfusion(self, case, bias, temperature):
        metric = rk.Metric.from_matrix(case.matrix)
        edit = rk.GatedEdit(case.keys, case.values, metric, rk.Sigmoid(bias, temperature))
        x = torch.cat([normal(6, case.keys.shape[1], seed=case.seed + 5), case.keys.double()])
        expected = formula(case, x, lambda s, c: torch.sigmoid((s - bias) / temperature))
        # float32 at run time: its rounding, times what the coordinates amplify.
        c = x @ metric.solve(case.keys).T @ torch.linalg.inv(metric.inner(case.keys, case.keys))
        size = float(expected.abs().max() + c.abs().max() * case.values.abs().max())
        assert float((output(edit, case.weight, x) - expected).abs().max()) < 3e-4 * size

    @theorem
    @given(problems(most_keys=4, conditions=MILD))
    def test_opening_in_float64(self, case):
        metric = rk.Metric.from_matrix(case.matrix)
        edit = rk.GatedEdit(case.keys, case.values, metric)
        x = normal(6, case.keys.shape[1], seed=case.seed + 5)
        squares = metric.energy(case.keys)
        expected = metric.inner(x, case.keys) / squares
        assert relative(edit.similarity(x), expected) < 1e-9
        torch.testing.assert_close(
            edit.opening(x).double(), torch.sigmoid((expected - 0.75) / 0.1), atol=1e-3, rtol=1e-3
        )
        torch.testing.assert_close(
            edit.similarity(case.keys).diagonal(), torch.ones(len(squares)).double()
        )


class TestIdentityGate:
    @theorem
    @given(problems(most_keys=1, conditions=MILD, dtypes=[torch.float64]))
    def test_with_one_key_is_rome(self, case):
        metric = rk.Metric.from_matrix(case.matrix)
        edit = rk.GatedEdit(case.keys, case.values, metric, rk.Identity())
        rome = rk.solve_edit(case.weight, case.keys, case.values, metric)
        x = normal(6, case.keys.shape[1], seed=case.seed + 5)
        expected = x @ (case.weight + rome.delta()).T
        scale = float(expected.abs().max())
        assert float((output(edit, case.weight, x) - expected).abs().max()) < 1e-4 * scale
        linear = edit.linearised(lambda keys: keys @ case.weight.T)
        assert relative(linear.delta(), rome.delta()) < 1e-9

    @theorem
    @given(problems(most_keys=6, conditions=MILD, dtypes=[torch.float64]))
    def test_with_many_keys_is_the_equality_edit(self, case):
        metric = rk.Metric.from_matrix(case.matrix)
        edit = rk.GatedEdit(case.keys, case.values, metric, rk.Identity())
        static = rk.solve_edit(case.weight, case.keys, case.values, metric)
        linear = edit.linearised(lambda keys: keys @ case.weight.T)
        assert relative(linear.delta(), static.delta()) < 1e-6
        at_keys = output(edit, case.weight, case.keys)
        amplified = float(linear.down.norm() * case.keys.norm())
        scale = float(case.values.abs().max() + (case.keys @ case.weight.T).abs().max())
        assert float((at_keys - case.values).abs().max()) < 1e-5 * amplified * scale


class TestNearlyParallelKeys:
    """Coordinates on such keys are a thousand times their inputs; nothing of that may be seen."""

    def test_cost_no_digits(self):
        keys = torch.zeros(3, 64)
        keys[:, 0], keys[1, 1], keys[2, 2] = 1, 3e-3, -4e-3
        weight, targets = normal(40, 64, seed=1).float(), normal(3, 40, seed=2).float()
        edit = rk.GatedEdit(keys, targets, rk.Metric.identity(64))
        x = normal(200, 64, seed=3).float()
        # At this accuracy the definition itself needs float64.
        wide = keys.double()
        c = torch.linalg.solve(wide @ wide.T, wide @ x.double().T).T
        expected = edit.opening(x) @ targets.double() - c @ wide @ weight.double().T
        assert float(c.abs().max()) > 300
        added = edit.added(x, edit.bind(lambda k: k.double() @ weight.double().T))
        assert float((added - expected).abs().max()) < 1e-5 * float(expected.abs().max())


class TestNormalised:
    def test_is_exactly_the_target_at_the_key_and_the_layer_away_from_it(self):
        case = problem(8, 5, 1)
        metric = rk.Metric.identity(8)
        edit = rk.GatedEdit(torch.eye(8)[:1], case.values, metric, normalised=True)
        assert edit.opening(torch.eye(8)).flatten().tolist() == [1.0] + [0.0] * 7
        found = output(edit, case.weight, torch.eye(8))
        assert relative(found[0], case.values[0]) < 1e-6
        assert torch.equal(found[1:], case.weight.float().T[1:])

    def test_otherwise_a_part_is_missing(self):
        edit = rk.GatedEdit(torch.eye(8)[:1], torch.ones(1, 5), rk.Metric.identity(8))
        assert edit.opening(torch.eye(8)[:2]).flatten().tolist() == pytest.approx(
            [0.92414, 0.00055], abs=1e-5
        )

    def test_a_gate_that_cannot_be_is_refused(self):
        with pytest.raises(rk.ShapeError, match="too little apart to normalise"):
            rk.GatedEdit(
                torch.eye(3)[:1],
                torch.ones(1, 2),
                rk.Metric.identity(3),
                rk.Sigmoid(bias=90.0),
                normalised=True,
            )


class TestFloor:
    def test_below_it_nothing_at_all_is_added(self):
        case = problem(8, 5, 2)
        edit = rk.GatedEdit(case.keys, case.values, rk.Metric.from_matrix(case.matrix), floor=0.3)
        x = torch.cat([normal(200, 8, seed=5), case.keys])
        added = edit.added(x, edit.bind(lambda keys: keys @ case.weight.T))
        closed = edit.similarity(x).amax(1) < 0.3
        assert 0 < int(closed.sum()) < len(x)
        assert torch.equal(added[closed], torch.zeros_like(added[closed]))
        assert not bool(torch.signbit(added[closed]).any())
        assert float(added[~closed].abs().amax(1).min()) > 0
        assert torch.equal(edit.opening(x)[closed], torch.zeros_like(edit.opening(x)[closed]))
        free = rk.GatedEdit(case.keys, case.values, rk.Metric.from_matrix(case.matrix))
        reference = free.added(x, free.bind(lambda keys: keys @ case.weight.T))
        assert torch.equal(added[~closed], reference[~closed])

    def test_leaves_an_infinite_output_of_the_layer_alone(self):
        edit = rk.GatedEdit(torch.eye(3)[:1], torch.ones(1, 2), rk.Metric.identity(3), floor=0.5)
        weight = torch.full((2, 3), 1e30)
        x = torch.tensor([[0.0, 1e20, 0.0]])
        assert torch.equal(output(edit, weight, x), x @ weight.T)


class TestGradients:
    def test_reach_the_targets_only_if_asked_for(self):
        case = problem(8, 5, 3)
        metric = rk.Metric.from_matrix(case.matrix)
        targets = case.values.clone().requires_grad_()
        edit = rk.GatedEdit(case.keys, targets, metric)
        x = normal(6, 8, seed=5).float()
        edit.added(x, edit.bind(lambda keys: keys @ case.weight.T)).sum().backward()
        opening = edit.opening(x).sum(0)
        expected = opening[:, None].expand(3, 5)
        torch.testing.assert_close(targets.grad, expected.double(), rtol=1e-3, atol=1e-4)

    def test_reach_the_input_as_differences_do(self):
        case = problem(6, 4, 2, condition=10.0)
        edit = rk.GatedEdit(case.keys, case.values, rk.Metric.from_matrix(case.matrix))
        tensors = edit.bind(lambda keys: keys @ case.weight.T)
        x = normal(3, 6, seed=5).float().requires_grad_()
        step = normal(3, 6, seed=6).float()
        edit.added(x, tensors).sum().backward()
        with torch.no_grad():
            h = 1e-2
            difference = edit.added(x + h * step, tensors) - edit.added(x - h * step, tensors)
        numeric = float(difference.double().sum() / (2 * h))
        assert float((x.grad * step).sum()) == pytest.approx(numeric, rel=2e-2, abs=2e-2)

    def test_reach_learned_images(self):
        case = problem(6, 4, 2)
        images = rk.Metric.from_matrix(case.matrix).solve(case.keys).requires_grad_()
        edit = rk.GatedEdit.from_images(case.keys, case.values, images, rk.Sigmoid())
        x = normal(3, 6, seed=5).float()
        edit.added(x, edit.bind(lambda keys: keys @ case.weight.T)).sum().backward()
        assert float(images.grad.abs().max()) > 0


class TestConstants:
    def test_from_images_needs_no_metric(self):
        case = problem(6, 4, 2)
        metric = rk.Metric.from_matrix(case.matrix)
        made = rk.GatedEdit(case.keys, case.values, metric, floor=0.1)
        again = rk.GatedEdit.from_images(
            made.keys, made.targets, made.images, made.gate, floor=0.1, statistics=made.statistics
        )
        assert made.statistics == metric.fingerprint == again.statistics
        tensors = [e.bind(lambda keys: keys @ case.weight.T) for e in (made, again)]
        assert tensors[0].keys() == tensors[1].keys()
        assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0])

    def test_what_is_bound_is_float32_and_named_after_the_gate(self):
        case = problem(6, 4, 2)
        edit = rk.GatedEdit(case.keys, case.values, rk.Metric.identity(6), floor=0.1)
        tensors = edit.bind(lambda keys: keys @ case.weight.T)
        assert set(tensors) == {
            *("read", "to_similarity", "to_coordinates", "targets", "removed"),
            *("bias", "temperature", "floor"),
        }
        assert {t.dtype for t in tensors.values()} == {torch.float32}
        assert edit.settings() == {"bias", "temperature", "floor"}
        # Of the second key, what is orthogonal to the first one.
        first, second = case.keys
        kept = second - first * (first @ second) / (first @ first)
        removed = -torch.stack([first, kept]) @ case.weight.T
        assert relative(tensors["removed"], removed) < 1e-6

    def test_settings_act_when_they_are_changed(self):
        case = problem(6, 4, 1)
        metric = rk.Metric.identity(6)
        edit = rk.GatedEdit(case.keys, case.values, metric)
        tensors = edit.bind(lambda keys: keys @ case.weight.T)
        tensors |= {"bias": torch.tensor(0.2), "temperature": torch.tensor(0.5)}
        other = edit.with_gate(rk.Sigmoid(0.2, 0.5))
        x = normal(5, 6, seed=5).float()
        expected = other.added(x, other.bind(lambda keys: keys @ case.weight.T))
        assert torch.equal(edit.added(x, tensors), expected)

    def test_another_gate_keeps_the_rest(self):
        metric = rk.Metric.identity(4)
        edit = rk.GatedEdit(torch.eye(4)[:1], torch.ones(1, 2), metric, normalised=True, floor=0.2)
        kept = edit.with_gate(rk.Sigmoid(0.6))
        assert (kept.gate, kept.normalised, kept.floor) == (rk.Sigmoid(0.6), True, 0.2)
        changed = edit.with_gate(edit.gate, normalised=False, floor=None)
        assert (changed.normalised, changed.floor) == (False, None)
        assert edit.with_gate(edit.gate, floor=0.0).floor == 0.0

    def test_equal_is_the_same_object(self):
        edit, twin = (
            rk.GatedEdit(torch.eye(4)[:2], torch.ones(2, 3), rk.Metric.identity(4)) for _ in "ab"
        )
        assert edit != twin
        assert [twin, edit].index(edit) == 1
        assert len({edit, twin}) == 2

    def test_other_targets(self):
        case = problem(6, 4, 2)
        edit = rk.GatedEdit(case.keys, case.values, rk.Metric.identity(6), rk.Identity())
        assert torch.equal(edit.with_targets(case.values + 1).targets, case.values + 1)
        assert edit.with_targets(case.values + 1).gate == rk.Identity()

    def test_each_key_has_its_own_gate(self):
        gate = rk.Sigmoid(bias=torch.tensor([0.1, 0.9]))
        edit = rk.GatedEdit(torch.eye(4)[:2], torch.ones(2, 3), rk.Metric.identity(4), gate)
        x = torch.tensor([[0.1, 0.9, 0.0, 0.0]])
        assert edit.opening(x).flatten().tolist() == pytest.approx([0.5, 0.5], abs=1e-6)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
    def test_leading_axes_and_dtypes(self, dtype):
        case = problem(6, 4, 2)
        edit = rk.GatedEdit(case.keys, case.values, rk.Metric.identity(6))
        tensors = edit.bind(lambda keys: keys @ case.weight.T)
        x = normal(2, 3, 6, seed=5).to(dtype)
        added = edit.added(x, tensors)
        assert (added.shape, added.dtype) == ((2, 3, 4), torch.float32)
        flat = edit.added(x.reshape(6, 6), tensors)
        torch.testing.assert_close(added.reshape(6, 4), flat)

    def test_autocast_does_not_coarsen_it(self):
        case = problem(6, 4, 2)
        edit = rk.GatedEdit(case.keys, case.values, rk.Metric.identity(6))
        tensors = edit.bind(lambda keys: keys @ case.weight.T)
        x = normal(3, 6, seed=5).float()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside = edit.added(x, tensors)
        assert torch.equal(inside, edit.added(x, tensors))

    def test_is_an_edit(self):
        assert isinstance(
            rk.GatedEdit(torch.eye(3)[:1], torch.ones(1, 2), rk.Metric.identity(3)), rk.Edit
        )


class TestLinearised:
    def test_reports_how_far_it_is(self):
        case = problem(6, 4, 2)
        edit = rk.GatedEdit(case.keys, case.values, rk.Metric.identity(6))
        x = normal(50, 6, seed=5).float()

        def outputs(keys):
            return keys @ case.weight.T.to(keys)

        linear = edit.linearised(outputs, x)
        gated = edit.added(x, edit.bind(outputs)).double()
        expected = float((x.double() @ linear.delta().T - gated).norm() / gated.norm())
        assert linear.report.residual > 0.01
        assert "nan" not in str(linear.report)
        assert linear.report.warnings[0].startswith("linearised: differs from the gated edit by ")
        assert (
            linear.report.warnings[1]
            == f"linearised: differs by {expected:.1%} on the inputs given"
        )

    def test_is_exact_for_the_identity_gate(self):
        case = problem(6, 4, 2)
        edit = rk.GatedEdit(case.keys, case.values, rk.Metric.identity(6), rk.Identity())
        linear = edit.linearised(lambda keys: keys @ case.weight.T.to(keys))
        assert linear.report.residual < 1e-5


class TestRefusals:
    def test_parallel_keys(self):
        keys = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [2.0, 1e-5, 0.0]])
        with pytest.raises(rk.SolveError, match=r"keys 0 and 2 have the cosine 1\.0000000"):
            rk.GatedEdit(keys, torch.ones(3, 2), rk.Metric.identity(3))

    def test_a_key_outside_the_metric(self):
        metric = rk.Metric.identity(3).restricted(torch.eye(3)[:2])
        with pytest.raises(rk.SolveError, match="key 1 has no length under the metric"):
            rk.GatedEdit(torch.eye(3)[[0, 2]], torch.ones(2, 2), metric)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"keys": torch.ones(1, 4)}, r"GatedEdit: keys must have shape \[n, 3\]"),
            ({"targets": torch.ones(3, 2)}, r"GatedEdit: targets must have shape \[2, dim\]"),
            (
                {"gate": rk.Sigmoid(torch.ones(3))},
                r"gate's bias must be one number or \[2\], one",
            ),
            ({"gate": rk.Sigmoid(float("inf"))}, "Sigmoid: bias must be a finite number"),
            ({"floor": float("nan")}, "floor must be a finite number, or None .*, got float nan"),
            ({"floor": float("inf")}, "floor must be a finite number, or None .*, got float inf"),
            ({"floor": torch.ones(2)}, "floor must be a finite number, or None .*, got a float32"),
        ],
    )
    def test_shapes(self, change, message):
        arguments = {
            "keys": torch.eye(3)[:2],
            "targets": torch.ones(2, 2),
            "metric": rk.Metric.identity(3),
        }
        with pytest.raises(rk.ShapeError, match=message):
            rk.GatedEdit(**(arguments | change))

    def test_images_of_another_shape(self):
        with pytest.raises(rk.ShapeError, match=r"GatedEdit: images must have shape \[1, 3\]"):
            rk.GatedEdit.from_images(
                torch.ones(1, 3), torch.ones(1, 2), torch.ones(2, 3), rk.Identity()
            )


@dataclass(frozen=True)
class Ramp(rk.Gate):
    """A gate that a user might write."""

    name = "ramp"
    start: float | torch.Tensor = 0.5

    def opening(self, similarity, parameters):
        return ((similarity - parameters["start"]) / (1 - parameters["start"])).clamp(0, 1)


def test_a_gate_of_one_s_own():
    edit = rk.GatedEdit(torch.eye(3)[:1], torch.ones(1, 2), rk.Metric.identity(3), Ramp(0.5))
    assert edit.settings() == {"start"}
    x = torch.tensor([[1.0, 0.0, 0.0], [0.75, 0.0, 0.0], [0.2, 5.0, 0.0]])
    assert edit.opening(x).flatten().tolist() == pytest.approx([1.0, 0.5, 0.0])
    assert output(edit, torch.zeros(2, 3), x)[1].tolist() == pytest.approx([0.5, 0.5])


def test_other_keys_are_checked_against_all_that_stays():
    edit = rk.GatedEdit(
        torch.eye(3)[:2], torch.ones(2, 4), rk.Metric.identity(3), rk.Sigmoid(torch.full((2,), 0.5))
    )
    three = {"keys": torch.eye(3), "images": torch.eye(3).double()}
    with pytest.raises(rk.ShapeError, match=r"targets must have shape \[3, dim\].*of the 3 keys"):
        edit.changed(**three)
    with pytest.raises(rk.ShapeError, match=r"gate's bias must be one number or \[3\]"):
        edit.changed(**three, targets=torch.ones(3, 4))
    with pytest.raises(rk.ShapeError, match=r"images must have shape \[3, 3\].*of the 3 keys"):
        edit.changed(keys=torch.eye(3))
    found = edit.changed(**three, targets=torch.ones(3, 4), gate=rk.Identity())
    wanted = rk.GatedEdit(torch.eye(3), torch.ones(3, 4), rk.Metric.identity(3), rk.Identity())
    assert torch.equal(found.similarity(torch.eye(3)), wanted.similarity(torch.eye(3)))
