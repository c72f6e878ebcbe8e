"""Low-rank edits: their algebra, and compression that is optimal on the data."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

import rankedit as rk
from rankedit.shapes import check_vectors
from tests.problems import cost, normal, relative, spd, theorem


def low_rank(out: int, width: int, rank: int, seed: int = 0) -> rk.LowRank:
    return rk.LowRank(normal(out, rank, seed=seed), normal(rank, width, seed=seed + 1))


class Elsewhere(torch.Tensor):
    """A tensor on a pretended accelerator, with which `TwoDevices` keeps those of the CPU apart."""

    __torch_function__ = torch._C._disabled_torch_function_impl
    device = torch.device("cpu:0")


class TwoDevices(TorchFunctionMode):
    """Refuses operations between the pretended accelerator and the CPU, as torch does."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        given = [*args, *(kwargs or {}).values()]
        matrices = [t for t in tree_leaves(given) if isinstance(t, torch.Tensor) and t.ndim]
        places = {t.device for t in matrices}
        if len(places) > 1:
            raise RuntimeError("Expected all tensors to be on the same device")
        if func is torch.Tensor.to:
            places = {torch.device(g) for g in given if isinstance(g, torch.device | str)} or places
        kind = Elsewhere if Elsewhere.device in places else torch.Tensor
        result = func(*args, **(kwargs or {}))
        return tree_map(lambda t: t.as_subclass(kind) if isinstance(t, torch.Tensor) else t, result)


def elsewhere(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.clone().as_subclass(Elsewhere)


class TestAlgebra:
    @theorem
    @given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 6), st.integers(0, 2**20))
    def test_is_that_of_the_matrices(self, out, width, rank, seed):
        a, b = low_rank(out, width, rank, seed), low_rank(out, width, rank + 1, seed + 2)
        assert relative((a + b).delta(), a.delta() + b.delta()) < 1e-13
        assert relative((a * 3.0).delta(), 3 * a.delta()) < 1e-14
        assert relative((0.5 * a).delta(), a.delta() / 2) < 1e-14
        assert relative((-a).delta(), -a.delta()) < 1e-14
        assert relative((a - b).delta(), a.delta() - b.delta()) < 1e-13
        assert relative(sum([a, b, a]).delta(), 2 * a.delta() + b.delta()) < 1e-13
        assert (a + b).rank == 2 * rank + 1
        assert a.norm() == pytest.approx(float(a.delta().norm()))
        assert (a.in_features, a.out_features) == (width, out)

    def test_an_edit_and_its_negative_are_nothing(self):
        edit = low_rank(5, 4, 2)
        nothing = edit + -edit
        assert nothing.norm() < 1e-7 * edit.norm()
        assert float(nothing.delta().abs().max()) < 1e-14

    def test_of_other_projections_is_refused(self):
        with pytest.raises(rk.ShapeError, match=r"same projection \[out, in\], got \[5, 4\] and "):
            low_rank(5, 4, 2) + low_rank(4, 5, 2)

    def test_of_other_things_is_a_type_error(self):
        edit = low_rank(5, 4, 2)
        for wrong in (lambda: edit + 1, lambda: 1 + edit, lambda: edit - 1, lambda: 1 - edit):
            with pytest.raises(TypeError, match="unsupported operand"):
                wrong()

    @pytest.mark.parametrize("factor", [torch.tensor([1.0, 2.0]), torch.ones(1), None, [2.0]])
    def test_factors_are_numbers_and_no_scales_of_columns(self, factor):
        with pytest.raises(TypeError, match=r"unsupported operand|can't multiply"):
            low_rank(5, 4, 2) * factor
        with pytest.raises(TypeError, match=r"unsupported operand|can't multiply"):
            factor * low_rank(5, 4, 2)

    def test_a_number_may_be_a_tensor_without_axes(self):
        edit = low_rank(5, 4, 2)
        assert torch.equal((edit * torch.tensor(2.0)).delta(), (2 * edit).delta())

    @pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.complex64, torch.float8_e5m2])
    def test_dtypes_that_hold_no_edit(self, dtype):
        with pytest.raises(rk.ShapeError, match=r"to: dtype must be a floating-point type of 16 b"):
            low_rank(5, 4, 2).to(dtype)

    def test_equal_is_the_same_object(self):
        edit, twin = low_rank(5, 4, 2), low_rank(5, 4, 2)
        assert edit == edit
        assert edit != twin
        assert [twin, edit].index(edit) == 1
        assert len({edit, twin, edit}) == 2

    @pytest.mark.parametrize(
        ("up", "down", "message"),
        [
            (torch.ones(3), torch.ones(1, 2), r"LowRank: up must have shape \[n, dim\]"),
            (torch.ones(3, 2), torch.ones(1, 2), r"LowRank: down must have shape \[2, dim\]"),
            (torch.ones(3, 2) * torch.inf, torch.ones(2, 2), "LowRank: up must be finite"),
            (torch.ones(3, 0), torch.ones(0, 2), r"down must have shape \[0, dim\]"),
        ],
    )
    def test_factors_that_do_not_fit(self, up, down, message):
        with pytest.raises(rk.ShapeError, match=message):
            rk.LowRank(up, down)

    @pytest.mark.parametrize(
        ("down", "got"),
        [
            (torch.ones(2, 4).double(), "float32 on cpu and torch.float64 on cpu"),
            (elsewhere(torch.ones(2, 4)), "float32 on cpu and torch.float32 on cpu:0"),
        ],
    )
    def test_factors_of_two_kinds(self, down, got):
        with pytest.raises(
            rk.ShapeError, match=f"have one dtype and be on one device, got .*{got}"
        ):
            rk.LowRank(torch.ones(3, 2), down)

    def test_norm_in_half_precision(self):
        edit = rk.LowRank(100 * torch.ones(300, 1).half(), 100 * torch.ones(1, 300).half())
        assert edit.norm() == pytest.approx(3e6)

    def test_to_another_dtype(self):
        edit = low_rank(5, 4, 2).to(torch.float16)
        assert edit.up.dtype == edit.down.dtype == torch.float16
        assert edit.to(device="cpu").up.dtype == torch.float16


class TestDrift:
    def test_by_metric_and_by_moment(self):
        inputs = normal(200, 6, seed=1) @ spd(6, 100.0, 2)
        moment, edit = rk.SecondMoment(6).update(inputs), low_rank(5, 6, 2)
        expected = float((inputs @ edit.delta().T).square().sum(1).mean().sqrt())
        assert edit.drift(moment) == pytest.approx(expected)
        assert edit.drift(rk.Metric.from_moment(moment, ridge=0.0)) == pytest.approx(expected)
        assert edit.to(torch.float32).drift(moment) == pytest.approx(expected, rel=1e-5)

    def test_of_an_edit_on_another_device(self):
        moment, edit = rk.SecondMoment(6).update(normal(20, 6, seed=3)), low_rank(5, 6, 2)
        for statistics in (moment, rk.Metric.from_moment(moment), rk.Metric.identity(6)):
            expected = edit.drift(statistics)
            with TwoDevices():
                away = rk.LowRank(elsewhere(edit.up), elsewhere(edit.down))
                assert away.drift(statistics) == pytest.approx(expected)


class TestCompress:
    @theorem
    @given(
        st.integers(2, 9),
        st.integers(2, 9),
        st.integers(2, 7),
        st.integers(1, 6),
        st.sampled_from([1.0, 1e3, 1e6, 1e9]),
        st.integers(0, 2**20),
    )
    def test_never_drifts_more_than_plain_truncation(self, out, width, rank, kept, condition, seed):
        edit, C = low_rank(out, width, rank, seed), spd(width, condition, seed + 2)
        metric = rk.Metric.from_matrix(C)
        mine, plain = edit.compress(kept, metric), edit.compress(kept)
        assert mine.rank <= max(kept, min(rank, kept))
        errors = [cost(e.delta() - edit.delta(), C) for e in (mine, plain)]
        total = cost(edit.delta(), C)
        assert errors[0] <= errors[1] * (1 + 1e-9) + 1e-18 * total
        # Optimal: what is lost are the smallest singular values in the metric's coordinates.
        values = torch.linalg.svdvals(edit.delta() @ torch.linalg.cholesky(C))
        lost = float(values[kept:].square().sum())
        assert errors[0] == pytest.approx(lost, rel=1e-6, abs=1e-18 * total)

    def test_plain_is_the_truncated_svd(self):
        edit = low_rank(8, 6, 5)
        U, s, Vh = torch.linalg.svd(edit.delta())
        expected = (U[:, :2] * s[:2]) @ Vh[:2]
        assert relative(edit.compress(2).delta(), expected) < 1e-12

    def test_can_be_far_better_on_the_data(self):
        C = torch.diag(torch.tensor([1.0, 1e-4]).double())
        edit = rk.LowRank(torch.eye(2).double(), torch.tensor([[1.0, 0.0], [0.0, 10.0]]).double())
        metric = rk.Metric.from_matrix(C)
        errors = [(e + -edit).drift(metric) for e in (edit.compress(1, metric), edit.compress(1))]
        assert errors == pytest.approx([0.1, 1.0])

    def test_enough_rank_returns_the_edit_itself(self):
        edit = low_rank(5, 4, 2)
        assert edit.compress(2) is edit
        assert edit.compress(7) is edit

    def test_redundant_components_cost_nothing(self):
        edit = low_rank(8, 6, 2)
        doubled = edit + edit + -edit
        assert relative(doubled.compress(2).delta(), edit.delta()) < 1e-12

    def test_keeps_the_dtype(self):
        assert low_rank(8, 6, 5).to(torch.float32).compress(2).up.dtype == torch.float32

    def test_half_precision_does_not_overflow(self):
        edit = rk.LowRank(200 * normal(64, 3, seed=0).half(), 200 * normal(3, 64, seed=1).half())
        expected = edit.to(torch.float64).compress(2)
        assert expected.norm() > torch.finfo(torch.float16).max
        found = edit.compress(2)
        assert found.up.dtype == found.down.dtype == torch.float16
        assert relative(found.to(torch.float64).delta(), expected.delta()) < 1e-2

    def test_on_another_device_than_the_metric(self):
        edit, metric = low_rank(8, 6, 4), rk.Metric.from_matrix(spd(6, 100.0, 2))
        expected = edit.compress(2, metric)
        with TwoDevices():
            away = rk.LowRank(elsewhere(edit.up), elsewhere(edit.down)).compress(2, metric)
        assert away.up.device == away.down.device == Elsewhere.device
        assert relative((away.up @ away.down).as_subclass(torch.Tensor), expected.delta()) < 1e-12

    def test_at_least_one(self):
        with pytest.raises(rk.ShapeError, match="rank must be at least 1, got 0"):
            low_rank(5, 4, 2).compress(0)


class TestBalanced:
    def test_same_matrix_with_even_factors(self):
        edit = low_rank(5, 4, 3)
        lopsided = rk.LowRank(edit.up * 1e6, edit.down * 1e-6)
        even = lopsided.balanced()
        assert relative(even.delta(), edit.delta()) < 1e-12
        assert relative(even.up.norm(dim=0), even.down.norm(dim=1)) < 1e-12

    def test_saves_half_precision(self):
        edit = low_rank(5, 4, 3)
        lopsided = rk.LowRank(edit.up * 1e6, edit.down * 1e-6)
        half = lopsided.balanced().to(torch.float16).delta()
        assert relative(half, edit.delta()) < 1e-2

    def test_in_half_precision_itself(self):
        up, down = 1e4 * torch.ones(2, 1).half(), 1e-4 * torch.ones(1, 2).half()
        even = rk.LowRank(up, down).balanced()
        assert even.up.dtype == torch.float16
        assert even.delta().flatten().tolist() == pytest.approx([1.0] * 4, rel=1e-2)

    def test_dead_components_stay_dead(self):
        edit = rk.LowRank(torch.tensor([[1.0, 0.0, 2.0]]), torch.tensor([[0.0], [3.0], [4.0]]))
        assert float(edit.balanced().delta()) == pytest.approx(8.0)


class TestProtocol:
    def test_low_rank_is_an_edit(self):
        assert isinstance(low_rank(5, 4, 2), rk.Edit)
        assert not isinstance(torch.ones(2), rk.Edit)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
    def test_added_is_the_product(self, dtype):
        edit, x = low_rank(5, 4, 2), normal(2, 3, 4, seed=9).to(dtype)
        tensors = edit.bind(lambda keys: keys)
        added = edit.added(x, tensors)
        assert added.dtype == torch.float32
        assert relative(added, x.double() @ edit.delta().T) < 1e-5
        assert edit.settings() == frozenset()

    def test_autocast_does_not_coarsen_it(self):
        edit, x = low_rank(5, 4, 2), normal(3, 4, seed=9).float()
        tensors = edit.bind(lambda keys: keys)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside = edit.added(x, tensors)
        assert torch.equal(inside, edit.added(x, tensors))

    def test_check_vectors(self):
        with pytest.raises(rk.ShapeError, match=r"attach: x must be a .* tensor \[..., 4\], got"):
            check_vectors("attach", "x", torch.ones(2, 3), 4)


def test_report_reads_well():
    report = rk.EditReport(0.25, 3.0, 1e4, ("something is odd",))
    expected = "residual at the keys 0.25, drift 3, condition 1e+04; something is odd"
    assert str(report) == expected


def test_report_leaves_out_what_is_unknown():
    nan = float("nan")
    assert str(rk.EditReport(0.25, nan, nan, ("a note",))) == "residual at the keys 0.25; a note"
    assert str(rk.EditReport(nan, nan, nan, ("a note",))) == "a note"


FACTORS = (normal(3, 2, seed=0), normal(2, 4, seed=1))
POWERS = [(-46, 37), (-150, 149), (-20, 44), (30, -42), (-44, 30), (38, -60)]


@pytest.mark.parametrize("powers", POWERS)
def test_factors_out_of_range_act_as_their_product(powers, tmp_path):
    up, down = (10.0**power * factor for power, factor in zip(powers, FACTORS, strict=True))
    edit = rk.LowRank(
        torch.cat([up, normal(3, 1, seed=2)], 1), torch.cat([down, normal(1, 4, seed=3)])
    )
    layer, x = torch.nn.Linear(4, 3, bias=False), normal(5, 4, seed=4).float()
    torch.nn.init.zeros_(layer.weight)
    with rk.attach(layer, edit):
        torch.testing.assert_close(layer(x), (x.double() @ edit.delta().T).float())
    rk.save({"layer": edit}, tmp_path / "edit")
    rk.to_lora({"layer": edit}, tmp_path / "lora")
    found = [rk.load(tmp_path / "edit"), rk.from_lora(tmp_path / "lora")]
    for narrow in (edit.to(torch.float32), *(read["layer"] for read in found)):
        assert relative(narrow.to(torch.float64).delta(), edit.delta()) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("powers", [(-9, 4), (6, -9), (-20, 19)])
def test_half_precision_keeps_what_it_can(dtype, powers):
    up, down = (10.0**power * factor for power, factor in zip(powers, FACTORS, strict=True))
    edit, error = rk.LowRank(up, down), 4 * torch.finfo(dtype).eps
    assert relative(edit.to(dtype).to(torch.float64).delta(), edit.delta()) < error
    scaled = 1e-3 * (1e3 * edit.to(dtype))
    assert relative(scaled.to(torch.float64).delta(), edit.delta()) < error


def test_an_edit_that_a_dtype_cannot_hold_is_refused():
    edit = rk.LowRank(1e-12 * FACTORS[0], FACTORS[1])
    with pytest.raises(rk.ShapeError, match=r"LowRank\.to: .* range of torch.float16, but an edit"):
        edit.to(torch.float16)
    # A component that is rounding beside the others may go.
    mixed = rk.LowRank(torch.cat([edit.up, normal(3, 2, seed=1)], 1), normal(4, 4, seed=5))
    assert relative(mixed.to(torch.float16).to(torch.float64).delta(), mixed.delta()) < 4e-3
