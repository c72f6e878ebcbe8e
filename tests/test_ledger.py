"""The ledger: whatever is added, replaced and removed, the edit is the batch of what remains."""

import math

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import rankedit as rk
from tests.problems import HURRIED, cost, normal, relative, spd, theorem

WIDTH, OUT = 14, 5
NAMES = st.sampled_from(["paris", "rome", ("a", 1), 7, "bean"])


class LedgerMachine(RuleBasedStateMachine):
    """Random operations beside a plain dictionary."""

    @initialize(
        seed=st.integers(0, 2**20),
        condition=st.sampled_from([1.0, 1e4, 1e8]),
        softness=st.sampled_from([0.0, 0.5]),
        held=st.booleans(),
    )
    def begin(self, seed, condition, softness, held):
        self.seed, self.condition, self.softness = seed, condition, softness
        self.weight, self.matrix = normal(OUT, WIDTH, seed=seed), spd(WIDTH, condition, seed + 1)
        self.metric = rk.Metric.from_matrix(self.matrix)
        self.hold = normal(1, WIDTH, seed=seed + 2) if held else None
        self.ledger = rk.Ledger(self.weight, self.metric, softness=softness, hold=self.hold)
        self.model = {}

    def drawn(self, count, seed):
        return normal(count, WIDTH, seed=seed), normal(count, OUT, seed=seed + 1)

    @rule(name=NAMES, count=st.integers(1, 2), seed=st.integers(0, 2**20))
    def add(self, name, count, seed):
        pair = self.drawn(count, seed)
        if name in self.model:
            with pytest.raises(rk.SolveError, match="is in the ledger already; use replace"):
                self.ledger.add(name, *pair)
        else:
            self.ledger.add(name, *pair)
            self.model[name] = pair

    @rule(name=NAMES, count=st.integers(1, 2), seed=st.integers(0, 2**20))
    def replace(self, name, count, seed):
        pair = self.drawn(count, seed)
        if name in self.model:
            self.ledger.replace(name, *pair)
            self.model[name] = pair
        else:
            with pytest.raises(rk.SolveError, match="no edit is called"):
                self.ledger.replace(name, *pair)

    @rule(name=NAMES)
    def remove(self, name):
        if name in self.model:
            self.ledger.remove(name)
            del self.model[name]
        else:
            with pytest.raises(rk.SolveError, match="no edit is called"):
                self.ledger.remove(name)

    @invariant()
    def holds_the_same(self):
        assert self.ledger.names() == list(self.model)
        assert len(self.ledger) == len(self.model)
        assert all(name in self.ledger for name in self.model)

    @precondition(lambda self: self.model)
    @invariant()
    def equals_the_batch(self):
        # In another order than they came in: the batch has none.
        keys, values = (torch.cat(t) for t in zip(*reversed(self.model.values()), strict=True))
        batch = rk.solve_edit(
            self.weight, keys, values, self.metric, softness=self.softness, hold=self.hold
        ).delta()
        difference = cost(self.ledger.edit().delta() - batch, self.matrix)
        assert math.sqrt(difference / cost(batch, self.matrix)) < 1e-9


TestAnySequence = LedgerMachine.TestCase
TestAnySequence.settings = settings(
    theorem, max_examples=8 if HURRIED else 25, stateful_step_count=12
)


def ledger(**options) -> rk.Ledger:
    return rk.Ledger(torch.zeros(2, 3), rk.Metric.identity(3), **options)


class TestSequences:
    def test_sequential_edits_equal_the_ledger(self):
        """MEMIT one edit after the other, earlier keys in the metric, each on the edited weight."""
        weight, metric = normal(OUT, WIDTH, seed=1), rk.Metric.from_matrix(spd(WIDTH, 1e4, 2))
        book, current, growing = rk.Ledger(weight, metric, softness=1.0), weight, metric
        for i in range(5):
            keys, values = normal(2, WIDTH, seed=10 + i), normal(2, OUT, seed=20 + i)
            book.add(i, keys, values)
            current = current + rk.solve_edit(current, keys, values, growing, softness=1.0).delta()
            growing = growing.extended(keys)
            assert relative(weight + book.edit().delta(), current) < 1e-9

    def test_undoing_all_but_one(self):
        book = rk.Ledger(normal(OUT, WIDTH, seed=1), rk.Metric.identity(WIDTH))
        book.add("kept", normal(1, WIDTH, seed=2), normal(1, OUT, seed=3))
        alone = book.edit().delta()
        for i in range(6):
            book.add(i, normal(1, WIDTH, seed=10 + i), normal(1, OUT, seed=20 + i))
        for i in range(6):
            book.remove(i)
        assert torch.equal(book.edit().delta(), alone)

    def test_what_it_was_given_may_change_afterwards(self):
        book, key, value = ledger(), torch.eye(3)[:1], torch.ones(1, 2)
        book.add("a", key, value)
        key.zero_(), value.zero_()
        assert book.edit().delta().tolist() == [[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]


class TestConflicts:
    def test_are_found_among_all_keys_worst_first(self):
        book = ledger()
        book.add("a", torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[1.0, 0.0]]))
        book.add("b", torch.tensor([[2.0, 0.2, 0.0]]), torch.tensor([[2.0, 0.0]]))
        book.add("c", torch.tensor([[-1.0, 0.01, 0.0]]), torch.tensor([[1.0, 0.0]]))
        book.add("d", torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[1.0, 0.0]]))
        found = book.conflicts()
        assert [(c.first, c.second) for c in found] == [("a", "c"), ("a", "b"), ("b", "c")]
        assert [c.cosine for c in found] == pytest.approx(
            [-0.99995, 1 / math.sqrt(1.01), -0.99399], abs=1e-5
        )
        assert found[1].disagreement < 0.02
        assert found[0].disagreement == pytest.approx(2.0, abs=1e-3)
        assert book.conflicts(threshold=0.9999) == found[:1]

    def test_within_one_edit(self):
        book = ledger()
        book.add("a", torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.1, 0.0]]), torch.ones(2, 2))
        assert [(c.first, c.second) for c in book.conflicts()] == [("a", "a")]

    def test_none(self):
        assert ledger().conflicts() == []
        book = ledger()
        book.add("a", torch.eye(3), torch.ones(3, 2))
        assert book.conflicts() == []

    def test_under_the_metric(self):
        keys = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
        book = rk.Ledger(
            torch.zeros(1, 2), rk.Metric.from_matrix(torch.diag(torch.tensor([1e-4, 1.0])))
        )
        book.add("a", keys, torch.ones(2, 1))
        assert book.conflicts()[0].cosine > 0.999


class TestRefusals:
    def test_an_empty_ledger_has_no_edit(self):
        with pytest.raises(rk.SolveError, match="the ledger is empty; add an edit first"):
            ledger().edit()

    def test_contradicting_edits(self):
        book = ledger()
        book.add("a", torch.eye(3)[:1], torch.zeros(1, 2) + 1)
        book.add("b", torch.eye(3)[:1], torch.zeros(1, 2) + 2)
        with pytest.raises(rk.SolveError, match="contradicts theirs"):
            book.edit()
        book.remove("a")
        assert book.edit().delta()[0, 0] == 2

    def test_a_layer_that_was_edited_meanwhile(self):
        weight = normal(2, 3, seed=1)
        book = rk.Ledger(weight, rk.Metric.identity(3))
        book.add("a", torch.eye(3)[:1], torch.ones(1, 2))
        weight += book.edit().delta()
        for call in (book.add, book.replace):
            with pytest.raises(rk.SolveError, match=r"no longer gives what it gave .*; detach or"):
                call("a" if call == book.replace else "b", torch.eye(3)[1:2], torch.ones(1, 2))
        assert book.names() == ["a"]

    def test_an_edit_left_on_the_layer_is_noticed_after_its_removal(self):
        layer = torch.nn.Linear(3, 2)
        book = rk.Ledger(layer, rk.Metric.identity(3))
        book.add("a", torch.eye(3)[:1], torch.ones(1, 2))
        with rk.attach(layer, book.edit()):
            book.remove("a")
            with pytest.raises(rk.SolveError, match=r"has attached edits \(1\); detach or unfuse"):
                book.add("b", torch.eye(3)[1:2], torch.ones(1, 2))
        book.add("b", torch.eye(3)[1:2], torch.ones(1, 2))
        assert book.names() == ["b"]

    @pytest.mark.parametrize("wrapped", [False, True], ids=["layer", "projection"])
    def test_an_edit_that_hides_from_every_probe(self, wrapped):
        """A dead zone: the edit acts at its own key alone, which no earlier key is like."""
        layer = torch.nn.Linear(8, 2)
        metric, hidden = rk.Metric.identity(8), torch.eye(8)[7:]
        gated = rk.GatedEdit(hidden, 10 * torch.ones(1, 2), metric, floor=0.9)
        book = rk.Ledger(rk.Projection(layer) if wrapped else layer, metric)
        book.add("a", torch.eye(8)[:1], torch.ones(1, 2))
        with rk.attach(layer, gated):
            for call in (book.add, book.replace):
                with pytest.raises(rk.SolveError, match=r"Ledger\.\w+: .* has attached edits"):
                    call("a" if call == book.replace else "b", hidden, torch.ones(1, 2))
            with pytest.raises(rk.SolveError, match="has attached edits"):
                rk.Ledger(layer, metric).add("b", hidden, torch.ones(1, 2))
        book.add("b", hidden, torch.ones(1, 2))
        with rk.attach(layer, book.edit()):
            given = layer(torch.eye(8)[[0, 7]]) - layer.bias
        torch.testing.assert_close(given.detach(), torch.ones(2, 2))

    def test_fused_edits_are_known_and_not_guessed(self):
        layer = torch.nn.Linear(8, 2)
        book = rk.Ledger(layer, rk.Metric.identity(8))
        book.add("a", torch.eye(8)[:1], torch.ones(1, 2))
        # zero at every key that the ledger knows, and at its random probe within the tolerance
        far = rk.LowRank(1e-5 * torch.ones(2, 1), torch.eye(8)[7:])
        rk.fuse_(layer, far)
        for call in (lambda: book.add("b", torch.eye(8)[7:], torch.ones(1, 2)),):
            with pytest.raises(rk.SolveError, match="edits were fused or unfused since; detach"):
                call()
        # an undone edit would stay in the weight: taking it out checks as putting it in does
        with pytest.raises(rk.SolveError, match=r"Ledger.remove: .* fused or unfused since"):
            book.remove("a")
        rk.unfuse_(layer)
        book.remove("a")
        rk.fuse_(layer, far)  # before the ledger was made: then this is the original
        again = rk.Ledger(layer, rk.Metric.identity(8))
        again.add("b", torch.eye(8)[7:], torch.ones(1, 2))
        rk.unfuse_(layer)
        with pytest.raises(rk.SolveError, match="fused or unfused since"):
            again.add("c", torch.eye(8)[6:7], torch.ones(1, 2))

    @pytest.mark.parametrize("softness", [-1.0, float("inf"), float("nan"), torch.ones(2)])
    def test_softness_is_one_number(self, softness):
        with pytest.raises(rk.ShapeError, match="softness must be one finite number of at least 0"):
            rk.Ledger(torch.zeros(2, 3), rk.Metric.identity(3), softness=softness)

    def test_held_keys_are_checked_at_once(self):
        with pytest.raises(rk.ShapeError, match="Ledger: hold must have shape"):
            rk.Ledger(torch.zeros(2, 3), rk.Metric.identity(3), hold=torch.ones(1, 4))

    def test_conflicts_at_threshold_zero_are_pairs(self):
        book = ledger()
        for i in range(3):
            book.add(i, torch.eye(3)[i : i + 1], torch.ones(1, 2))
        pairs = {(c.first, c.second) for c in book.conflicts(0.0)}
        assert pairs == {(0, 1), (0, 2), (1, 2)}

    def test_half_precision_is_no_change_of_the_layer(self):
        weight = normal(64, 96, seed=1).bfloat16()
        book = rk.Ledger(lambda x: x.bfloat16() @ weight.T + 3, rk.Metric.identity(96))
        for i in range(6):
            book.add(i, normal(5, 96, seed=2 + i), normal(5, 64, seed=20 + i))
        assert len(book) == 6

    @pytest.mark.parametrize(
        ("keys", "values", "message"),
        [
            (torch.ones(1, 4), torch.ones(1, 2), r"Ledger.add: keys must have shape \[n, 3\]"),
            (torch.ones(1, 3), torch.ones(1, 3), r"Ledger.add: values must have shape \[1, 2\]"),
        ],
    )
    def test_shapes(self, keys, values, message):
        book = ledger()
        with pytest.raises(rk.ShapeError, match=message):
            book.add("a", keys, values)
        assert "a" not in book
