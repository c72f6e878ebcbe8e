"""A few vectors of any length, all in few directions, move no figure, and edits protect them."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import rankedit as rk
from rankedit.extremes import EXTREME, FEWEST, Energies
from rankedit.learning.sites import _Image
from tests.problems import normal, relative, spd, theorem

D = 32
ESTIMATORS = {
    "ridge": rk.Metric.from_moment,
    "Ledoit-Wolf": lambda moment: rk.Metric.from_moment(moment, shrinkage=rk.ledoit_wolf),
    "OAS": lambda moment: rk.Metric.from_moment(moment, shrinkage=rk.oas),
    "centred": lambda moment: rk.Metric.from_moment(moment, centred=True),
    "energy cut": lambda moment: rk.Metric.null_space(moment, energy=0.02),
    "relative cut": lambda moment: rk.Metric.null_space(moment, relative=5e-2),
}


def ordinary(count: int = 2000, condition: float = 1e2, seed: int = 0) -> torch.Tensor:
    return normal(count, D, seed=seed) @ spd(D, condition, seed + 1)


def with_sinks(x, directions, length, share=0.01, seed=0):
    """Rows among others, `length` times as long as their median, in these directions."""
    each = max(1, round(share * len(x)) // len(directions))
    units = torch.nn.functional.normalize(directions)
    sinks = units.repeat_interleave(each, 0) * length * x.norm(dim=1).median()
    rows = torch.cat([x, sinks])
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))], sinks


def moment_of(x: torch.Tensor, **how) -> rk.SecondMoment:
    return rk.SecondMoment(x.shape[1], **how).update(x)


def cosines(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cosine_similarity(a, b)


def free_share(metric: rk.Metric, x: torch.Tensor) -> float:
    return float((metric.reach(x) * x.square().sum(1)).sum() / x.square().sum())


lengths = st.sampled_from([7.0, 20.0, 550.0, 1e6, 1e12])
sinks = given(
    st.sampled_from(list(ESTIMATORS)),
    lengths,
    st.sampled_from([0.001, 0.01, 0.05]),
    st.sampled_from([10.0, 1e2, 1e4]),
    st.integers(1, 2),
    st.integers(0, 2**20),
)


class TestTheorem:
    @theorem
    @sinks
    def test_no_metric_is_moved(self, name, length, share, condition, count, seed):
        x, keys = ordinary(1000, condition, seed), ordinary(5, condition, seed + 5)
        # A direction in which the others hardly vary is the worst.
        directions = torch.linalg.eigh(x.T @ x).eigenvectors.T[:count]
        if seed % 2:
            directions = normal(count, D, seed=seed + 9)
        rows, added = with_sinks(x, directions, length, share, seed)
        found, expected = (moment_of(part) for part in (rows, x))
        assert found.extremes.count == len(added)
        a, b = (ESTIMATORS[name](moment) for moment in (found, expected))
        assert float(cosines(a.solve(keys), b.solve(keys)).min()) > 1 - 1e-9
        assert abs(free_share(a, x) - free_share(b, x)) < 1e-9
        assert found.effective_rank == pytest.approx(expected.effective_rank)

    @theorem
    @given(st.floats(0.01, 5.2), st.integers(0, 2**20))
    def test_what_is_not_told_apart_moves_no_unit_far(self, length, seed):
        """Vectors of a length that others have too belong to the data."""
        x = ordinary(1000, 1e2, seed)
        rows, _ = with_sinks(x, normal(1, D, seed=seed + 9), length, 0.01, seed)
        found, expected = (moment_of(part) for part in (rows, x))
        # One in a hundred, at most as long as the bound and its bin allow: 0.01 · 25 · 1.25 · q,
        # with q the ratio of the upper quartile and the mean of these energies.
        most = 1 + 0.01 * EXTREME * 1.25 * 1.5
        assert 0.98 < float(found.matrix.trace() / expected.matrix.trace()) < most
        cut = (rk.Metric.null_space(moment, energy=0.02) for moment in (found, expected))
        shares = [free_share(metric, x) for metric in cut]
        assert shares[0] - shares[1] <= 0.01

    def test_counted_together_they_move_everything(self):
        """The tests above would notice."""
        x, keys = ordinary(), ordinary(5, seed=5)
        rows, _ = with_sinks(x, normal(1, D, seed=9), 550)
        found = moment_of(rows, extremes="together")
        assert not found.extremes
        for name in ("Ledoit-Wolf", "OAS", "energy cut"):
            a, b = (ESTIMATORS[name](moment) for moment in (found, moment_of(x)))
            assert float(cosines(a.solve(keys), b.solve(keys)).min()) < 0.99

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
    def test_without_such_vectors_no_bit_changes(self, dtype):
        x = ordinary(3000).to(dtype)
        apart, together = (rk.SecondMoment(D, extremes=e) for e in ("apart", "together"))
        for batch in x.split([1, 40, 500, 2459]):
            apart.update(batch)
            together.update(batch)
        state = apart.state()
        assert state.keys() - together.state().keys() == {"energies"}
        assert all(torch.equal(state[name], t) for name, t in together.state().items())
        metrics = [rk.Metric.from_moment(moment) for moment in (apart, together)]
        assert metrics[0].guarded is metrics[0]
        assert metrics[0].fingerprint == metrics[1].fingerprint


class TestTelling:
    def test_few_vectors_are_not_told_apart(self):
        x = torch.ones(FEWEST - 2, D, dtype=torch.float64)
        moment = moment_of(torch.cat([x, 1e3 * x[:1]]))
        assert not moment.extremes
        assert moment.seen == moment.count == FEWEST - 1
        # To look changes nothing: with one more, the same vector is judged by all that is known.
        assert moment.update(x[:1]).extremes.count == 1

    def test_vectors_of_zeros_say_nothing_of_lengths(self):
        x = ordinary(500)
        moment = moment_of(torch.cat([torch.zeros(5000, D, dtype=torch.float64), x]))
        assert not moment.extremes
        assert not moment_of(torch.zeros(500, D)).extremes

    @theorem
    @given(st.integers(0, 2**20))
    def test_the_bound_is_what_it_says(self, seed):
        energies = normal(400, seed=seed).square() * 10.0 ** (seed % 40 - 20)
        histogram = Energies.on("cpu")
        for some in energies.split(77):
            histogram.add_(some, None)
        usual = float(energies.quantile(0.75, interpolation="lower"))
        assert 1 <= histogram.bound() / (EXTREME * usual) <= 1.25
        restored = Energies.from_state(histogram.state())
        assert torch.equal(restored.counts, histogram.counts)
        assert restored.rows == 400

    @theorem
    @given(st.integers(0, 2**20), st.data())
    def test_streamed_permuted_and_merged_are_the_same(self, seed, draw):
        x, w = ordinary(300, seed=seed), normal(303, seed=seed + 2).abs() + 0.1
        rows, added = with_sinks(x, normal(1, D, seed=seed), 100.0, 0.01, seed)
        whole = rk.SecondMoment(D).update(rows, weights=w)
        cuts = [0, 1, *sorted(draw.draw(st.lists(st.integers(1, 303), max_size=4))), 303]
        order = torch.randperm(303, generator=torch.Generator().manual_seed(seed))
        shards = [order[a:b] for a, b in itertools.pairwise(cuts)]
        streamed, parts = rk.SecondMoment(D), []
        for shard in shards:
            streamed.update(rows[shard], weights=w[shard])
            parts.append(rk.SecondMoment(D).update(rows[shard], weights=w[shard]))
        # Parts that are large enough to be judged alone see the sinks; small ones are not judged.
        for found in (streamed, sum(parts[1:], parts[0])):
            assert len(added) == 3
            assert found.extremes.count == pytest.approx(whole.extremes.count)
            assert relative(found.matrix, whole.matrix) < 1e-12
            assert relative(found.together().matrix, whole.together().matrix) < 1e-12

    def test_a_weight_of_two_counts_twice(self):
        rows, _ = with_sinks(ordinary(200), normal(1, D, seed=3), 100.0)
        w = torch.arange(len(rows)) % 3
        found = rk.SecondMoment(D).update(rows, weights=w)
        expected = moment_of(rows.repeat_interleave(w, 0))
        assert found.extremes.count == expected.extremes.count
        assert relative(found.matrix, expected.matrix) < 1e-12
        assert relative(found.together().matrix, expected.together().matrix) < 1e-12


class TestKeeping:
    def test_nothing_is_lost_however_many_directions(self):
        """Beyond 32 directions, the rest counts with the ordinary vectors."""
        rows, _ = with_sinks(ordinary(4000), normal(40, D, seed=3), 30.0, 0.1)
        rows = torch.cat([rows, torch.nn.functional.pad(rows[:400], (D, 0))[:, :D] * 1e-3])
        apart = rk.SecondMoment(D)
        for batch in rows.split(500):
            apart.update(batch)
        together = moment_of(rows, extremes="together")
        assert len(apart.extremes.rows) <= 128 < apart.extremes.count
        whole = apart.together()
        for figure in ("matrix", "mean"):
            assert relative(getattr(whole, figure), getattr(together, figure)) < 1e-12
        for figure in ("count", "fourth", "effective_count", "effective_rank"):
            assert getattr(whole, figure) == pytest.approx(getattr(together, figure))
        assert apart.seen == together.count
        energy = (rows.square().sum() - apart.matrix.trace() * apart.count) / rows.square().sum()
        assert apart.extreme_share == pytest.approx(float(energy))

    def test_directions_are_as_many_as_make_them_extreme(self):
        x, units = ordinary(2000), torch.linalg.qr(normal(D, 2, seed=3)).Q.T
        rows, _ = with_sinks(x, units, 200.0)
        rows[rows.norm(dim=1) > 50 * x.norm(dim=1).median()] += x[0]  # each a little beside
        moment = moment_of(rows)
        keys = moment.extreme_keys()
        assert keys.shape == (2, D)
        assert relative(keys @ keys.T, torch.eye(2)) < 1e-12
        assert float((keys @ units.T).square().sum()) == pytest.approx(2, abs=1e-3)
        assert moment_of(x).extreme_keys() is None

    def test_state_and_copies(self):
        rows, _ = with_sinks(ordinary(600), normal(1, D, seed=3), 100.0)
        moment = moment_of(rows[:400].float())
        back = rk.SecondMoment.from_state(moment.state(), moment.provenance, moment.dtype)
        for copied in (back, moment.clone(), moment.to("cpu")):
            copied.update(rows[400:].float())
        moment.update(rows[400:].float())
        for copied in (back,):
            for name, tensor in moment.state().items():
                assert torch.equal(copied.state()[name], tensor), name
        assert "extreme" in repr(moment)

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("extreme_rows", torch.ones(2, D + 1)),
            ("extreme_rows", torch.full((2, D), torch.nan)),
            ("extreme_rows", torch.ones(500, D)),
            ("extremes", -torch.ones(3)),
            ("energies", torch.tensor([[0.5], [1.0]])),
            ("energies", torch.tensor([[1e6], [1.0]])),
            ("energies", torch.tensor([[1.0], [-1.0]])),
        ],
    )
    def test_impossible_states_are_refused(self, name, value):
        rows, _ = with_sinks(ordinary(600), normal(1, D, seed=3), 100.0)
        state = moment_of(rows).state() | {name: value.double()}
        with pytest.raises(rk.ShapeError, match=r"from_state: (extremes|energies) must"):
            rk.SecondMoment.from_state(state, rk.Provenance(), torch.float32)

    @pytest.mark.parametrize("how", [{"extremes": "drop"}, {"products": "bfloat16"}])
    def test_settings_that_there_are_none_of(self, how):
        with pytest.raises(rk.ShapeError, match=r"SecondMoment: \w+ must be '\w+' or '\w+', got"):
            rk.SecondMoment(3, **how)

    def test_files(self, tmp_path):
        rows, _ = with_sinks(ordinary(600), normal(1, D, seed=3), 100.0)
        path, moment = tmp_path / "m.safetensors", moment_of(rows)
        rk.save({"a": moment}, path)
        back = rk.load(path)["a"]
        more = 50 * rows[:30]
        for one in (back, moment):
            one.update(more)
        for name, tensor in moment.state().items():
            assert torch.equal(back.state()[name], tensor), name
        assert b'\\"version\\":2' in path.read_bytes()
        rk.save({"a": moment_of(ordinary())}, path)
        assert b'\\"version\\":1' in path.read_bytes()


class TestGuard:
    """Edits leave alone what the ordinary spectrum does not show."""

    def moved(self, edit: rk.LowRank, rows: torch.Tensor) -> float:
        return float((rows @ edit.delta().T).norm(dim=1).max())

    @pytest.mark.parametrize("name", list(ESTIMATORS))
    def test_edits_move_extreme_vectors_no_more_than_others(self, name):
        x = ordinary(2000, 1e4)
        rows, added = with_sinks(x, torch.linalg.eigh(x.T @ x).eigenvectors.T[:1], 500.0)
        moment, keys, values = moment_of(rows), x[:3], normal(3, 5, seed=4)
        metric, weight = ESTIMATORS[name](moment), torch.zeros(5, D, dtype=torch.float64)
        edit = rk.solve_edit(weight, keys, values, metric)
        assert relative(keys @ edit.delta().T, values) < 1e-6
        bare = values.T @ torch.linalg.inv(metric.inner(keys, keys)) @ metric.solve(keys)
        unguarded = float((added @ bare.T).norm(dim=1).max())
        assert unguarded > 3 * float(values.norm())
        assert self.moved(edit, added) < 0.01 * unguarded
        ledger = rk.Ledger(weight, metric)
        ledger.add("a", keys, values)
        assert relative(ledger.edit().delta(), edit.delta()) < 1e-9
        gated = rk.GatedEdit(keys, values, metric, rk.Identity())
        linear = gated.linearised(lambda rows: rk.linear_output(weight, rows))
        assert self.moved(linear, added) < 0.02 * unguarded
        held = rk.solve_edit(weight, keys, values, metric, hold=moment.extreme_keys())
        assert self.moved(held, added) < 1e-6 * unguarded

    def test_solvers_of_ones_own_are_guarded_too(self):
        x = ordinary(2000, 1e4)
        rows, added = with_sinks(x, torch.linalg.eigh(x.T @ x).eigenvectors.T[:1], 500.0)
        metric, keys, values = rk.Metric.from_moment(moment_of(rows)), x[:3], normal(3, 5, seed=4)
        weight = torch.zeros(5, D, dtype=torch.float64)

        def by_hand(layer, keys, values, metric):
            images = metric.solve(keys)
            return rk.LowRank(torch.linalg.solve(images @ keys.T, values).T, images)

        ledger = rk.Ledger(weight, metric, solver=by_hand)
        ledger.add("a", keys, values)
        edit = rk.solve_edit(weight, keys, values, metric)
        assert relative(ledger.edit().delta(), edit.delta()) < 1e-9
        assert self.moved(ledger.edit(), added) < 0.01 * self.moved(
            by_hand(weight, keys, values, metric), added
        )

    def test_keys_that_are_learned_have_guarded_images(self):
        x = ordinary(2000, 1e4)
        rows, _ = with_sinks(x, torch.linalg.eigh(x.T @ x).eigenvectors.T[:1], 500.0)
        metric, keys = rk.Metric.from_moment(moment_of(rows)), x[:2].clone().requires_grad_()
        wanted = rk.GatedEdit(keys.detach(), normal(2, 5, seed=4), metric, rk.Identity()).images
        images = _Image.apply(keys, metric)
        assert torch.equal(images.detach(), wanted)
        assert relative(images.detach(), metric.solve(keys.detach())) > 1e-3
        grown = normal(2, D, seed=5)
        (images * grown).sum().backward()
        assert relative(keys.grad, metric.guarded.solve(grown)) < 1e-9

    def test_the_guard_is_what_counting_them_together_would_cost(self):
        rows, added = with_sinks(ordinary(2000), normal(1, D, seed=3), 20.0)
        moment = moment_of(rows)
        guarded = rk.Metric.from_moment(moment, ridge=0.0).guarded
        whole = moment.together()
        C = whole.matrix * whole.count / moment.count
        assert relative(guarded.apply(torch.eye(D)), C) < 1e-10
        assert len(added) == 20

    def test_it_goes_with_what_is_made_of_a_metric(self):
        rows, _ = with_sinks(ordinary(2000), normal(1, D, seed=3), 20.0)
        metric, keys = rk.Metric.from_moment(moment_of(rows)), normal(2, D, seed=4)
        basis, eye = normal(5, D, seed=5), torch.eye(D, dtype=torch.float64)
        for change in (
            lambda m: m.scaled(3.0),
            lambda m: m.extended(keys),
            lambda m: m.restricted(basis),
            lambda m: m.extended(keys).scaled(2.0).restricted(basis),
        ):
            assert relative(
                change(metric).guarded.apply(eye), change(metric.guarded).apply(eye)
            ) < (1e-9)
        assert metric.fingerprint != rk.Metric.from_moment(moment_of(ordinary())).fingerprint

    @pytest.mark.parametrize("count", [3, 20])
    def test_null_spaces_lose_the_directions_whichever_basis_is_kept(self, count):
        x = normal(1000, count, seed=1) @ normal(count, D, seed=2)
        rows, added = with_sinks(x, normal(2, D, seed=3), 100.0)
        metric = rk.Metric.null_space(moment_of(rows), relative=1e-9, scale=2.0)
        assert metric.rank == D - count
        keys = normal(2, D, seed=4)
        for one in (metric, metric.extended(keys)):
            assert one.guarded.rank == D - count - 2
            assert float(one.guarded.reach(added).max()) < 1e-12
            assert float(one.guarded.reach(x).max()) < 1e-12


class TestChange:
    def test_is_that_of_gaussian_vectors(self):
        x = ordinary(20_000, 1e4)
        found = rk.relative_change(moment_of(x[:18_000]), moment_of(x), ridge=0.0)
        assert found == pytest.approx(math.sqrt(0.1 * D / (0.9 * 20_000)), rel=0.1)

    def test_sees_directions_of_little_energy_and_no_sink(self):
        scale = torch.logspace(0, -3, D, dtype=torch.float64)
        x = normal(20_000, D, seed=1) * scale
        later = torch.cat([x, x[:2000] * torch.where(scale < 1e-2, 3.0, 1.0)])
        plain = moment_of(later).matrix - moment_of(x).matrix
        assert float(plain.norm() / moment_of(x).matrix.norm()) < 1e-2
        assert rk.relative_change(moment_of(x), moment_of(later), ridge=0.0) > 0.1
        rows, _ = with_sinks(x, normal(1, D, seed=3), 500.0)
        assert rk.relative_change(moment_of(x), moment_of(rows)) < 1e-9

    def test_of_other_widths(self):
        with pytest.raises(rk.ShapeError, match="relative_change: before and after must have"):
            rk.relative_change(moment_of(torch.ones(2, 3)), moment_of(torch.ones(2, 4)))
        with pytest.raises(rk.StatisticsError, match="relative_change: after must have seen"):
            rk.relative_change(moment_of(torch.ones(2, 3)), rk.SecondMoment(3))


class TestRounding:
    """What is left of the protection where an edit's factors are rounded to 16 bits."""

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("along", ["one coordinate", "many"])
    def test_moves_sinks_by_no_more_than_roundoff(self, dtype, along):
        x, keys = ordinary(), ordinary(3, seed=5)
        direction = torch.eye(D)[7:8] if along == "one coordinate" else normal(1, D, seed=9)
        rows, sinks = with_sinks(x, direction, 550.0)
        metric = rk.Metric.from_moment(moment_of(rows))
        edit = rk.solve_edit(torch.zeros(D, D), keys, normal(3, D, seed=6), metric)
        kept = edit.to(dtype)
        up, down = edit.up.double(), edit.down.double()
        sink = sinks[0].double()
        moved = kept.up.double() @ (kept.down.double() @ sink) - up @ (down @ sink)
        eps, least = torch.finfo(dtype).eps, torch.finfo(dtype).smallest_normal
        # Below the normal numbers entries are rounded to multiples of the least of them times eps.
        bound = eps * up.abs() @ ((down.abs() + least) @ sink.abs())
        assert bool((moved.abs() <= 1.01 * bound).all())
        if along == "one coordinate":  # whose factor is small there, and rounded as such
            assert float(moved.norm()) < 1e-2 * float((up @ (down @ keys[0].double())).norm())
