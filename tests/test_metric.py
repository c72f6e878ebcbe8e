"""The metric in all its forms, against dense matrices."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import rankedit as rk
from rankedit import factors
from rankedit.spectra import NOISE_FLOOR
from tests.problems import normal, relative, rotation, spd, theorem

D = 12


def dense(metric: rk.Metric) -> torch.Tensor:
    """A as a matrix."""
    return metric.solve(torch.eye(metric.dim, dtype=torch.float64))


def null_matrix(used: int, seed: int = 0, dim: int = D) -> tuple[torch.Tensor, torch.Tensor]:
    """A second moment with `used` directions of its own, and the columns of all others."""
    columns = rotation(dim, seed)
    sizes = torch.linspace(1, 2, used, dtype=torch.float64)
    return (columns[:, :used] * sizes) @ columns[:, :used].T, columns[:, used:]


def forms() -> dict[str, tuple[rk.Metric, torch.Tensor]]:
    """Every kind of metric, with its A written out as a dense matrix."""
    C, keys, eye = spd(D, 1e3, 1), normal(2, D, seed=2), torch.eye(D, dtype=torch.float64)
    many, basis = normal(9, D, seed=3), normal(5, D, seed=4)
    moment = rk.SecondMoment(D).update(normal(60, D, seed=5) @ C)
    matrix, mean = moment.matrix, moment.matrix.trace() / D
    few_used, few_free = null_matrix(3)
    much_used, much_free = null_matrix(9)

    def inverse(M: torch.Tensor) -> torch.Tensor:
        return torch.linalg.inv(M)

    def within(Q: torch.Tensor, M: torch.Tensor) -> torch.Tensor:
        return Q @ inverse(Q.T @ M @ Q) @ Q.T

    q = torch.linalg.qr(basis.T).Q
    base = rk.Metric.from_matrix(C)
    small, large = (
        rk.Metric.null_space(M, relative=1e-9, scale=2.0) for M in (few_used, much_used)
    )
    return {
        "matrix": (base, inverse(C)),
        "ridge": (rk.Metric.from_matrix(C, ridge=0.1), inverse(C + 0.1 * eye)),
        "moment": (rk.Metric.from_moment(moment, ridge=0.0), inverse(matrix)),
        "moment, default": (rk.Metric.from_moment(moment), inverse(matrix + 1e-12 * mean * eye)),
        "moment, shrunk": (
            rk.Metric.from_moment(moment, ridge=0.1, shrinkage=0.25),
            inverse(0.75 * matrix + (0.25 + 0.1) * mean * eye),
        ),
        "moment, centred": (
            rk.Metric.from_moment(moment, ridge=0.0, centred=True),
            inverse(moment.covariance),
        ),
        "identity": (rk.Metric.identity(D, 4.0), eye / 4),
        "scaled": (base.scaled(3.0), inverse(3 * C)),
        "extended, few": (base.extended(keys), inverse(C + keys.T @ keys)),
        "extended, many": (base.extended(many, 0.5), inverse(C + many.T @ many / 2)),
        "extended twice": (
            base.extended(keys).extended(many[:1], torch.tensor([3.0])),
            inverse(C + keys.T @ keys + 3 * many[:1].T @ many[:1]),
        ),
        "extended, then scaled": (
            base.extended(keys).scaled(2.0),
            inverse(2 * (C + keys.T @ keys)),
        ),
        "identity, extended": (
            rk.Metric.identity(D, 0.1).extended(keys),
            inverse(0.1 * eye + keys.T @ keys),
        ),
        "identity, extended by many": (
            rk.Metric.identity(D, 0.1).extended(many),
            inverse(0.1 * eye + many.T @ many),
        ),
        "restricted": (base.restricted(basis), within(q, C)),
        "restricted, extended": (
            base.restricted(basis).extended(keys[:1]),
            within(q, C + keys[:1].T @ keys[:1]),
        ),
        "extended, restricted": (
            base.extended(keys).restricted(basis),
            within(q, C + keys.T @ keys),
        ),
        "large null space": (small, few_free @ few_free.T / 2),
        "small null space": (large, much_free @ much_free.T / 2),
        "large null space, extended": (
            small.extended(keys),
            within(few_free, 2 * eye + keys.T @ keys),
        ),
        "large null space, extended by many": (
            small.extended(many),
            within(few_free, 2 * eye + many.T @ many),
        ),
        "small null space, extended": (
            large.extended(keys),
            within(much_free, 2 * eye + keys.T @ keys),
        ),
        "null space, scaled": (small.scaled(2.5), few_free @ few_free.T / 5),
        "null space, restricted": (
            small.restricted(few_free.T[:4]),
            few_free[:, :4] @ few_free[:, :4].T / 2,
        ),
    }


FORMS = forms()


@pytest.fixture(params=FORMS)
def form(request):
    return FORMS[request.param]


class TestEveryForm:
    def test_solve_is_multiplication_by_A(self, form):
        metric, A = form
        x = normal(4, D, seed=10)
        assert relative(metric.solve(x), x @ A) < 1e-10
        assert metric.solve(x).dtype == torch.float64

    def test_inner_energy_and_cosine(self, form):
        metric, A = form
        x, y = normal(4, D, seed=10), normal(3, D, seed=11)
        assert relative(metric.inner(x, y), x @ A @ y.T) < 1e-10
        energies = [(rows @ A * rows).sum(1) for rows in (x, y)]
        assert relative(metric.energy(x), energies[0]) < 1e-10
        cosines = (x @ A @ y.T) / torch.outer(*energies).sqrt()
        assert relative(metric.cosine(x, y), cosines) < 1e-10
        assert relative(metric.cosine(x, x).diagonal(), torch.ones(4)) < 1e-12

    def test_halves_of_A(self, form):
        metric, A = form
        x = normal(4, D, seed=10)
        white = metric.whiten(x)
        assert relative(white @ white.T, x @ A @ x.T) < 1e-10
        assert relative(metric.unwhiten(white), x @ A) < 1e-10

    def test_apply_undoes_solve(self, form):
        metric, A = form
        inside = normal(4, D, seed=10) @ A
        assert relative(metric.solve(metric.apply(inside)), inside) < 1e-9
        half = metric.half(inside)
        assert relative(half @ half.T, metric.apply(inside) @ inside.T) < 1e-10

    def test_reach_is_the_share_inside_the_subspace(self, form):
        metric, A = form
        columns = torch.linalg.svd(A).U[:, : metric.rank]
        x = normal(4, D, seed=10)
        expected = (x @ columns).square().sum(1) / x.square().sum(1)
        assert relative(metric.reach(x), expected) < 1e-10

    def test_rank_and_effective_rank(self, form):
        metric, A = form
        eigenvalues = torch.linalg.eigvalsh(A)
        costs = 1 / eigenvalues[eigenvalues > 1e-12 * eigenvalues[-1]]
        assert metric.rank == len(costs)
        expected = float(costs.sum() ** 2 / costs.square().sum())
        assert metric.effective_rank == pytest.approx(expected, rel=1e-6)

    def test_nothing_is_changed_in_place(self, form):
        metric, _ = form
        before, fingerprint = dense(metric), metric.fingerprint
        metric.scaled(3.0), metric.extended(normal(1, D, seed=1)), metric.condition
        assert torch.equal(dense(metric), before)
        assert metric.fingerprint == fingerprint


class TestWoodbury:
    @theorem
    @given(
        st.integers(2, 24),
        st.sampled_from([1.0, 1e4, 1e8]),
        st.integers(1, 6),
        st.sampled_from([1e-3, 1.0, 1e2]),
        st.integers(0, 2**20),
    )
    def test_equals_a_new_factorisation(self, dim, condition, count, size, seed):
        C, keys = spd(dim, condition, seed), size * normal(count, dim, seed=seed + 1)
        extended = rk.Metric.from_matrix(C).extended(keys)
        refactored = rk.Metric.from_matrix(C + keys.T @ keys)
        x = normal(3, dim, seed=seed + 2)
        difference = extended.whiten(x).square().sum(1) / refactored.whiten(x).square().sum(1) - 1
        assert float(difference.abs().max()) < 1e-13 * condition + 1e-10
        assert relative(extended.apply(x), refactored.apply(x)) < 1e-12

    def test_is_used_while_it_is_cheaper(self):
        metric = rk.Metric.from_matrix(spd(16, 10.0, 1))
        assert repr(metric.extended(normal(4, 16, seed=2))) == (
            "Metric(dim=16, rank=16, additions=4)"
        )
        assert "additions=0" in repr(metric.extended(normal(5, 16, seed=2)))

    def test_is_not_used_where_it_would_lose_digits(self):
        metric = rk.Metric.from_matrix(spd(16, 10.0, 1))
        key = 1e4 * normal(1, 16, seed=2)
        assert "additions=0" in repr(metric.extended(key))

    def test_keys_of_no_weight_change_nothing(self):
        metric = rk.Metric.from_matrix(spd(16, 10.0, 1))
        assert relative(dense(metric.extended(normal(2, 16, seed=2), 0.0)), dense(metric)) < 1e-14


class TestNullSpace:
    @pytest.mark.parametrize("used", [2, 10])
    def test_relative_and_energy_cuts_find_it(self, used):
        C, free = null_matrix(used)
        for cut in ({"relative": 1e-8}, {"energy": 1e-8}):
            metric = rk.Metric.null_space(C, **cut)
            assert metric.rank == D - used
            assert relative(dense(metric), free @ free.T) < 1e-12

    def test_whichever_basis_is_smaller_is_stored(self):
        for used in (2, 10):
            metric = rk.Metric.null_space(null_matrix(used)[0], relative=1e-8)
            assert metric._factors.space.rows.shape == (2, D)

    @theorem
    @given(st.sampled_from([1e-4, 1e-2, 1e2, 1e4]), st.integers(0, 2**20))
    def test_the_scale_of_the_data_does_not_matter(self, unit, seed):
        C = spd(D, 1e8, seed)
        for cut in ({"relative": 1e-5}, {"energy": 1e-5}):
            one, other = (rk.Metric.null_space(M, **cut) for M in (C, unit**2 * C))
            assert one.rank == other.rank < D
            assert relative(dense(one), dense(other)) < 1e-6

    def test_energy_cut_keeps_what_it_says(self):
        C = torch.diag(torch.tensor([1.0, 2.0, 3.0, 94.0]).double())
        assert [rk.Metric.null_space(C, energy=e).rank for e in (0.011, 0.031, 0.061)] == [1, 2, 3]

    def test_edits_under_it_do_not_move_the_data(self):
        C, _ = null_matrix(5)
        moment = rk.SecondMoment(D).update(normal(50, D, seed=1) @ C)
        metric = rk.Metric.null_space(moment, relative=1e-8)
        edit = rk.solve_edit(
            torch.zeros(3, D), normal(2, D, seed=2), torch.ones(2, 3, dtype=torch.float64), metric
        )
        assert edit.drift(moment) < 1e-12 * edit.norm()
        assert edit.report.residual < 1e-12

    def test_nothing_seen_is_all_free(self):
        assert rk.Metric.null_space(torch.zeros(4, 4), relative=1e-6).rank == 4

    @pytest.mark.parametrize(
        "cut",
        [
            {},
            {"relative": 0.1, "energy": 0.1},
            {"relative": 1.0},
            {"energy": -0.1},
            {"relative": math.nan},
        ],
    )
    def test_exactly_one_sensible_cut(self, cut):
        with pytest.raises(rk.ShapeError, match=r"give exactly one of relative=... and energy=..."):
            rk.Metric.null_space(torch.eye(3), **cut)

    def test_no_free_direction(self):
        with pytest.raises(rk.SolveError, match=r"no direction is free under the cut 0\.1: the"):
            rk.Metric.null_space(torch.eye(3), relative=0.1)


class TestRidge:
    @pytest.mark.parametrize("dtype", NOISE_FLOOR)
    def test_default_is_the_noise_floor_of_the_dtype(self, dtype):
        moment = rk.SecondMoment(D).update(normal(50, D, seed=1).to(dtype))
        ridge = NOISE_FLOOR[dtype] * moment.matrix.trace() / D
        expected = moment.matrix + ridge * torch.eye(D, dtype=torch.float64)
        metric = rk.Metric.from_moment(moment)
        assert relative(metric.apply(torch.eye(D)), expected) < 1e-13

    @theorem
    @given(st.sampled_from([2.0**-10, 2.0**10]), st.integers(0, 2**20))
    def test_is_in_units_of_the_data(self, unit, seed):
        x = normal(5, D, seed=seed)  # fewer than D: the ridge decides
        metrics = [
            rk.Metric.from_moment(rk.SecondMoment(D).update(x * u), ridge=1e-3) for u in (1.0, unit)
        ]
        assert relative(dense(metrics[1]) * unit**2, dense(metrics[0])) < 1e-12

    def test_the_remedy_in_the_message_works(self):
        C = spd(D, 1e6, 1)
        C = C - 2e-5 * torch.eye(D)
        with pytest.raises(rk.SolveError, match=r"pass ridge=.* or more, use shrinkage") as refusal:
            rk.Metric.from_matrix(C)
        ridge = float(str(refusal.value).split("ridge=")[1].split()[0])
        rk.Metric.from_matrix(C, ridge=ridge)

    def test_the_remedy_adds_to_the_ridge_that_was_not_enough(self):
        C = spd(D, 1e6, 1)
        C = C - 2e-5 * torch.eye(D)
        with pytest.raises(rk.SolveError, match=r"pass ridge=.* or more, use shrinkage") as refusal:
            rk.Metric.from_matrix(C, ridge=1e-7)
        ridge = float(str(refusal.value).split("ridge=")[1].split()[0])
        rk.Metric.from_matrix(C, ridge=ridge)

    def test_the_lengths_of_basis_rows_do_not_matter(self):
        metric, basis = rk.Metric.from_matrix(spd(D, 1e3, 1)), normal(3, D, seed=2)
        scales = torch.tensor([[1.0], [1e-11], [1e9]])
        scaled = metric.restricted(basis * scales)
        assert relative(dense(scaled), dense(metric.restricted(basis))) < 1e-9

    def test_statistics_of_nothing(self):
        with pytest.raises(rk.SolveError, match="all zero; collect some data first"):
            rk.Metric.from_moment(rk.SecondMoment(3).update(torch.zeros(5, 3)))


class TestFigures:
    @theorem
    @given(st.integers(2, 24), st.sampled_from([1.0, 1e3, 1e6, 1e10]), st.integers(0, 2**20))
    def test_condition_is_that_of_the_1_norm(self, dim, condition, seed):
        metric = rk.Metric.from_matrix(spd(dim, condition, seed))
        M = metric.apply(torch.eye(dim))
        exact = float(torch.linalg.matrix_norm(M, 1) * torch.linalg.matrix_norm(dense(metric), 1))
        assert exact / 3 <= metric.condition <= exact * (1 + 1e-6)
        assert condition / 3 <= metric.condition <= condition * dim * 1.01

    def test_condition_of_forms_without_a_matrix(self):
        assert rk.Metric.identity(5).condition == 1.0
        assert rk.Metric.null_space(null_matrix(2)[0], relative=1e-8).condition == 1.0
        extended = rk.Metric.identity(16).extended(torch.eye(16)[:1] * 3)
        assert extended.condition == pytest.approx(10.0)

    def test_energy_of_the_data_is_its_typical_energy(self):
        x = normal(500, D, seed=1)
        moment = rk.SecondMoment(D).update(x)
        metrics = [rk.Metric.from_moment(moment, ridge=0.0)]
        metrics += [metrics[0].scaled(5.0), metrics[0].restricted(normal(4, D, seed=2))]
        for metric in metrics:
            assert float(metric.energy(x).mean()) == pytest.approx(metric.typical_energy)
        assert rk.Metric.identity(D).typical_energy is None
        assert rk.Metric.identity(D).scaled(2.0).typical_energy is None

    def test_a_key_without_direction_has_no_cosine(self):
        metric = rk.Metric.identity(4).restricted(torch.eye(4)[:2])
        assert metric.cosine(torch.eye(4)[3:], torch.eye(4)).tolist() == [[0.0] * 4]
        assert float(metric.reach(torch.zeros(1, 4))) == 0.0


class TestFingerprint:
    def test_tells_statistics_and_settings_apart(self):
        found = [metric.fingerprint for metric, _ in FORMS.values()]
        assert len(set(found)) == len(found)
        assert all(len(mark) == 16 for mark in found)

    def test_is_the_same_for_the_same(self):
        assert [m.fingerprint for m, _ in forms().values()] == [
            m.fingerprint for m, _ in FORMS.values()
        ]

    def test_a_label_stands_for_what_was_added(self):
        metric, keys = rk.Metric.identity(8), normal(6, 8, seed=1)
        labelled = [metric.extended(rows, label="a").fingerprint for rows in (keys, keys + 1)]
        assert len(set(labelled)) == 1
        assert labelled[0] != metric.extended(keys).fingerprint

    def test_notices_one_entry_of_a_wide_matrix(self):
        C = spd(130, 10.0, 1)
        other = C.clone()
        other[5, 5] += 1e-9
        assert factors.fingerprint(C, "") != factors.fingerprint(other, "")


class TestArguments:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_any_dtype_gives_float64(self, dtype):
        metric, A = FORMS["matrix"]
        x = normal(3, D, seed=1).to(dtype)
        assert relative(metric.solve(x), x.double() @ A) < 1e-10
        assert relative(metric.inner(x, x), x.double() @ A @ x.double().T) < 1e-10

    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (
                lambda: rk.Metric.from_matrix(torch.ones(2, 3)),
                r"must be square \[dim, dim\]",
            ),
            (
                lambda: rk.Metric.from_matrix(torch.tensor([[1.0, 0.5], [0.0, 1.0]])),
                "matrix must be symmetric, but entries differ .* by up to 0.5",
            ),
            (lambda: rk.Metric.from_matrix(torch.eye(2), ridge=-1.0), "ridge must be at least 0"),
            (lambda: rk.Metric.from_matrix(torch.eye(2), ridge=math.nan), "got nan"),
            (lambda: rk.Metric.from_matrix(torch.eye(2) * torch.nan), "matrix must be finite"),
            (lambda: rk.Metric.identity(0), "dim must be at least 1 and scale positive, got 0"),
            (lambda: rk.Metric.identity(2, 0.0), "scale positive, got 2, 0.0"),
            (lambda: rk.Metric.identity(2).scaled(0.0), "factor must be positive, got 0.0"),
            (lambda: rk.Metric.identity(2).scaled(math.inf), "factor must be positive, got inf"),
            (
                lambda: rk.Metric.identity(2).extended(torch.ones(3, 2), torch.ones(2)),
                r"weights must be one number or \[3\], one for each key, finite",
            ),
            (lambda: rk.Metric.identity(2).extended(torch.ones(1, 2), -1.0), "got float -1.0"),
            (lambda: rk.Metric.identity(2).extended(torch.ones(1, 2), math.inf), "got float inf"),
            (
                lambda: rk.Metric.identity(2).extended(torch.ones(1, 3)),
                r"must have shape \[n, 2",
            ),
            (lambda: rk.Metric.identity(2).solve(torch.ones(2)), "Metric.solve: x must have shape"),
            (
                lambda: rk.Metric.from_moment(
                    rk.SecondMoment(2).update(torch.eye(2)), shrinkage=1.5
                ),
                r"shrinkage must be in \[0, 1\], got 1.5; pass a number, or",
            ),
        ],
    )
    def test_refusals(self, call, message):
        with pytest.raises(rk.ShapeError, match=message):
            call()

    @pytest.mark.parametrize(
        ("basis", "message"),
        [
            (torch.eye(3)[[0, 0]], "the 2 basis rows must be linearly independent in 3 dimensions"),
            (torch.ones(4, 3), "the 4 basis rows must be linearly independent"),
            (torch.eye(3)[2:], "basis must lie inside the subspace that the metric is already"),
        ],
    )
    def test_a_basis_that_is_none(self, basis, message):
        with pytest.raises(rk.SolveError, match=message):
            rk.Metric.identity(3).restricted(torch.eye(3)[:2]).restricted(basis)
