"""Merging: one joint edit, which for linear gates is the equality edit of all keys."""

import pytest
import torch
from hypothesis import given

import rankedit as rk
from tests.problems import normal, problem, problems, relative, theorem
from tests.test_gated import Ramp


def separate(case, metric, gate=None, **options) -> list[rk.GatedEdit]:
    """One edit for each key."""
    return [
        rk.GatedEdit(case.keys[i : i + 1], case.values[i : i + 1], metric, gate, **options)
        for i in range(len(case.keys))
    ]


class TestJoint:
    @theorem
    @given(problems(most_keys=5, conditions=(1.0, 1e2, 1e4), dtypes=[torch.float64]))
    def test_equals_the_equality_edit_of_all_keys(self, case):
        metric = rk.Metric.from_matrix(case.matrix)
        joint = rk.merge(separate(case, metric, rk.Identity()))
        static = rk.solve_edit(case.weight, case.keys, case.values, metric)
        linear = joint.linearised(lambda keys: keys @ case.weight.T)
        assert relative(linear.delta(), static.delta()) < 1e-6

    def test_equals_the_edit_made_at_once(self):
        case, gate = problem(8, 5, 3), rk.Sigmoid(0.6, 0.15)
        metric = rk.Metric.from_matrix(case.matrix)
        at_once = rk.GatedEdit(case.keys, case.values, metric, gate, normalised=True, floor=0.1)
        merged = rk.merge(separate(case, metric, gate, normalised=True, floor=0.1))
        x = normal(20, 8, seed=5).float()
        found, expected = (
            e.added(x, e.bind(lambda k: k @ case.weight.T)) for e in (merged, at_once)
        )
        torch.testing.assert_close(found, expected)
        assert merged.statistics == metric.fingerprint

    def test_order_and_grouping_do_not_matter(self):
        case = problem(8, 5, 3)
        a, b, c = separate(case, rk.Metric.from_matrix(case.matrix))
        x = normal(20, 8, seed=5).float()
        merged = [rk.merge([a, b, c]), rk.merge([c, a, b]), rk.merge([rk.merge([a, b]), c])]
        results = [e.added(x, e.bind(lambda k: k @ case.weight.T)) for e in merged]
        torch.testing.assert_close(results[1], results[0])
        assert torch.equal(results[2], results[0])

    def test_takes_shared_parts_away_once(self):
        """Correlated keys: edits attached one by one would each subtract them."""
        keys = torch.tensor([[1.0, 0.0, 0.0], [0.9, 0.1, 0.0]])
        metric, weight = rk.Metric.identity(3), torch.eye(3)
        edits = [
            rk.GatedEdit(keys[i : i + 1], torch.zeros(1, 3), metric, rk.Identity()) for i in (0, 1)
        ]
        joint = rk.merge(edits)
        added = joint.added(keys, joint.bind(lambda k: k @ weight.T))
        assert relative(added, -keys) < 1e-5
        stacked = sum(e.added(keys, e.bind(lambda k: k @ weight.T)) for e in edits)
        assert relative(stacked, -keys) > 0.5

    def test_every_edit_keeps_its_own_parameters(self):
        metric = rk.Metric.identity(4)
        one = rk.GatedEdit(torch.eye(4)[:1], torch.ones(1, 2), metric, rk.Sigmoid(0.4, 0.2))
        two = rk.GatedEdit(torch.eye(4)[1:3], torch.ones(2, 2), metric, rk.Sigmoid(0.6))
        gate = rk.merge([one, two]).gate
        assert gate.bias.tolist() == pytest.approx([0.4, 0.6, 0.6])
        assert gate.temperature.tolist() == pytest.approx([0.2, 0.1, 0.1])

    def test_gates_of_one_s_own(self):
        metric = rk.Metric.identity(4)
        edits = [
            rk.GatedEdit(torch.eye(4)[i : i + 1], torch.ones(1, 2), metric, Ramp(0.1 * i))
            for i in range(3)
        ]
        assert rk.merge(edits).gate.start.tolist() == pytest.approx([0.0, 0.1, 0.2])

    def test_of_one_is_that_one(self):
        case = problem(8, 5, 2)
        edit = rk.GatedEdit(case.keys, case.values, rk.Metric.identity(8))
        merged = rk.merge([edit])
        x = normal(3, 8, seed=1).float()
        results = [e.added(x, e.bind(lambda k: k @ case.weight.T)) for e in (edit, merged)]
        assert torch.equal(*results)


class TestRefusals:
    def test_nothing(self):
        with pytest.raises(rk.SolveError, match="merge: needs at least one edit, got none"):
            rk.merge([])

    def test_parallel_keys_are_named_with_their_edits(self):
        metric = rk.Metric.identity(3)
        keys = torch.eye(3)[[0, 1, 0]]
        keys[2, 2] = 1e-4
        edits = [rk.GatedEdit(keys[:2], torch.ones(2, 2), metric)]
        edits.append(rk.GatedEdit(keys[2:], torch.ones(1, 2), metric))
        with pytest.raises(
            rk.SolveError, match=r"keys 0 and 2 have the cosine .* belong to edits \[0, 0, 1\]"
        ):
            rk.merge(edits)

    def test_unknown_statistics(self):
        keys = torch.eye(3)
        edits = [
            rk.GatedEdit.from_images(row[None], torch.ones(1, 2), row[None], rk.Sigmoid())
            for row in keys[:2]
        ]
        with pytest.raises(rk.SolveError, match=r"merge: the edits do not say .* statistics=met"):
            rk.merge(edits)
        assert rk.merge(edits[:1]).statistics == ""

    def test_gate_classes_of_one_name(self):
        namesake = type("Ramp", (rk.Identity,), {})
        metric = rk.Metric.identity(3)
        edits = [
            rk.GatedEdit(torch.eye(3)[i : i + 1], torch.ones(1, 2), metric, gate)
            for i, gate in enumerate((Ramp(), namesake()))
        ]
        with pytest.raises(rk.SolveError, match=r"the same gate class, but edit 0 has .*\.Ramp'>"):
            rk.merge(edits)

    @pytest.mark.parametrize(
        ("trait", "other"),
        [
            ("input width", (4, 2, "a", rk.Sigmoid(), {})),
            ("output width", (3, 3, "a", rk.Sigmoid(), {})),
            ("statistics", (3, 2, "b", rk.Sigmoid(), {})),
            ("gate class", (3, 2, "a", rk.Identity(), {})),
            ("normalised", (3, 2, "a", rk.Sigmoid(), {"normalised": True})),
            ("floor", (3, 2, "a", rk.Sigmoid(), {"floor": 0.1})),
        ],
    )
    def test_edits_that_differ(self, trait, other):
        width, out, statistics, gate, options = other
        first = rk.GatedEdit.from_images(
            torch.eye(3)[:1], torch.ones(1, 2), torch.eye(3)[:1], rk.Sigmoid(), statistics="a"
        )
        key = torch.eye(width)[1:2]
        second = rk.GatedEdit.from_images(
            key, torch.ones(1, out), key, gate, statistics=statistics, **options
        )
        with pytest.raises(rk.SolveError, match=f"the same {trait}, but edit 0 has .*1 h"):
            rk.merge([first, second])
