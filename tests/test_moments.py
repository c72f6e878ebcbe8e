"""Sums of shards are the sums of the whole, in any order, on any number of processes."""

import itertools
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import rankedit as rk
from rankedit.moments import CHUNK_ROWS
from tests.problems import normal, relative, spd, theorem

FIGURES = ("matrix", "mean")
NUMBERS = ("count", "effective_count", "effective_rank", "fourth")


def same(found: rk.SecondMoment, expected: rk.SecondMoment, tolerance: float = 1e-12) -> bool:
    tensors = all(relative(getattr(found, f), getattr(expected, f)) <= tolerance for f in FIGURES)
    numbers = [(getattr(found, f), getattr(expected, f)) for f in NUMBERS]
    return tensors and all(abs(a - b) <= tolerance * abs(b) for a, b in numbers)


def data(count: int, dim: int, seed: int = 0) -> torch.Tensor:
    return normal(count, dim, seed=seed) @ spd(dim, 1e4, seed + 1) + 0.5


class TestSums:
    def test_are_those_of_the_definition(self):
        x = data(100, 5)
        moment = rk.SecondMoment(5).update(x)
        assert moment.count == moment.effective_count == 100
        assert relative(moment.matrix, x.T @ x / 100) < 1e-14
        assert relative(moment.mean, x.mean(0)) < 1e-14
        assert relative(moment.covariance, torch.cov(x.T, correction=0)) < 1e-12
        assert moment.fourth == pytest.approx(float(x.square().sum(1).square().mean()), rel=1e-14)
        eigenvalues = torch.linalg.eigvalsh(x.T @ x / 100)
        expected = float(eigenvalues.sum() ** 2 / eigenvalues.square().sum())
        assert moment.effective_rank == pytest.approx(expected)
        assert torch.equal(moment.matrix, moment.matrix.T)

    @theorem
    @given(st.integers(1, 200), st.integers(1, 9), st.integers(0, 99), st.data())
    def test_streamed_permuted_and_merged_equal_the_batch(self, count, dim, seed, draw):
        x = data(count, dim, seed)
        w = normal(count, seed=seed + 2).abs() + 0.1
        batch = rk.SecondMoment(dim).update(x, weights=w)
        sizes = draw.draw(st.lists(st.integers(0, count), max_size=4))
        cuts = [0, *sorted(sizes), count]
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
        shards = [order[a:b] for a, b in itertools.pairwise(cuts)]
        streamed = rk.SecondMoment(dim)
        for shard in shards:
            streamed.update(x[shard], weights=w[shard])
        assert same(streamed, batch)
        parts = [rk.SecondMoment(dim).update(x[shard], weights=w[shard]) for shard in shards]
        left = parts[0]
        for part in parts[1:]:
            left = left + part
        right = parts[-1]
        for part in reversed(parts[:-1]):
            right = part + right
        assert same(left, batch)
        assert same(right, left)

    def test_addition_leaves_its_operands_alone(self):
        a, b = (rk.SecondMoment(3).update(data(10, 3, seed)) for seed in (0, 1))
        before = a.matrix, b.matrix
        assert (a + b).count == 20
        assert torch.equal(a.matrix, before[0])
        assert torch.equal(b.matrix, before[1])

    def test_more_rows_than_a_chunk(self):
        x = data(2 * CHUNK_ROWS + 7, 3)
        moment = rk.SecondMoment(3).update(x)
        assert moment.count == len(x)
        assert relative(moment.matrix, x.T @ x / len(x)) < 1e-12

    def test_any_leading_axes(self):
        x = data(24, 3)
        moment = rk.SecondMoment(3).update(x.reshape(2, 3, 4, 3))
        assert same(moment, rk.SecondMoment(3).update(x))
        assert rk.SecondMoment(3).update(x[0]).count == 1

    def test_an_empty_batch_adds_nothing(self):
        moment = rk.SecondMoment(3).update(data(4, 3))
        before = moment.clone()
        moment.update(torch.zeros(0, 3, dtype=torch.bfloat16))
        assert same(moment, before, 0.0)
        assert moment.dtype == torch.float64

    def test_gradients_are_not_kept(self):
        x = data(4, 3).requires_grad_()
        assert not rk.SecondMoment(3).update(x).matrix.requires_grad


class Allocated(TorchDispatchMode):
    """The most memory that tensors made inside it had at one time, in bytes."""

    def __init__(self, *known: torch.Tensor) -> None:
        super().__init__()
        self._alive = {}
        self._known = {t.untyped_storage()._cdata for t in known}
        self.peak = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self._alive = {k: v for k, v in self._alive.items() if not v[0].expired()}
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self._known:
                    self._alive[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.peak = max(self.peak, sum(size for _, size in self._alive.values()))
        return result


class TestMemory:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
    @pytest.mark.parametrize("given", [(), ("mask",), ("weights",), ("mask", "weights")])
    def test_of_an_update_is_that_of_three_chunks(self, dtype, given):
        dim, count = 64, 20 * CHUNK_ROWS
        x = torch.ones(count, dim, dtype=dtype)
        each = {"mask": torch.arange(count) % 8 > 0, "weights": torch.full((count,), 2.0)}
        moment = rk.SecondMoment(dim, products="float64")
        parts = moment._parts
        sums = (*parts._sums.outer._stripes, parts._sums.total, parts._energies.counts)
        with Allocated(x, *each.values(), *sums) as allocated:
            moment.update(x, **{name: each[name] for name in given})
        chunk, per_vector = CHUNK_ROWS * dim * 8, 8
        assert chunk < allocated.peak < 3 * chunk + per_vector * count
        assert 3 * chunk + per_vector * count < 20 * chunk / 4  # a copy of a float16 batch


class TestMaskAndWeights:
    def test_a_mask_leaves_vectors_out(self):
        x = data(12, 3).reshape(3, 4, 3)
        mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]])
        expected = rk.SecondMoment(3).update(x[mask.bool()])
        for kind in (mask.bool(), mask, mask.float()):
            assert same(rk.SecondMoment(3).update(x, mask=kind), expected, 1e-14)

    def test_what_is_masked_may_be_anything(self):
        x = data(4, 3)
        x[2] = torch.nan
        mask = torch.tensor([True, True, False, True])
        assert rk.SecondMoment(3).update(x, mask=mask).count == 3

    def test_a_weight_of_two_counts_twice(self):
        x = data(3, 4)
        weights = torch.tensor([2.0, 1.0, 0.0])
        repeated = rk.SecondMoment(4).update(x[[0, 0, 1]])
        weighted = rk.SecondMoment(4).update(x, weights=weights)
        assert relative(weighted.matrix, repeated.matrix) < 1e-14
        assert weighted.count == repeated.count == 3
        assert weighted.fourth == pytest.approx(repeated.fourth)
        assert weighted.effective_count == pytest.approx(9 / 5)

    def test_mask_and_weights_together(self):
        x, weights = data(4, 3), torch.tensor([1.0, 2.0, 3.0, 4.0])
        mask = torch.tensor([False, True, True, False])
        both = rk.SecondMoment(3).update(x, mask=mask, weights=weights)
        assert same(both, rk.SecondMoment(3).update(x[1:3], weights=weights[1:3]), 1e-14)


class TestDtypes:
    @pytest.mark.parametrize(
        "dtype",
        [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2],
    )
    def test_sums_are_in_float64_whatever_comes(self, dtype):
        x = data(200, 4).to(dtype)
        moment = rk.SecondMoment(4, products="float64").update(x)
        assert moment.matrix.dtype == torch.float64
        assert relative(moment.matrix, x.double().T @ x.double() / 200) < 1e-14

    def test_the_coarsest_dtype_is_remembered(self):
        moment = rk.SecondMoment(3)
        seen = [moment.dtype]
        for dtype in (torch.float32, torch.bfloat16, torch.float64, torch.float16):
            moment.update(torch.ones(1, 3, dtype=dtype))
            seen.append(moment.dtype)
        names = [torch.float64, torch.float32, torch.bfloat16, torch.bfloat16, torch.bfloat16]
        assert seen == names
        fine = rk.SecondMoment(3).update(torch.ones(1, 3))
        assert (fine + moment).dtype == torch.bfloat16
        narrow = rk.SecondMoment(3).update(torch.ones(1, 3).to(torch.float8_e5m2))
        assert narrow.dtype == torch.bfloat16

    def test_ten_thousand_small_batches_keep_their_digits(self):
        x = torch.full((10, 2), 0.1, dtype=torch.float32)
        moment = rk.SecondMoment(2, products="float64")
        for _ in range(10_000):
            moment.update(x)
        expected = float(x[0, 0].double() ** 2)
        assert float(moment.matrix[0, 1]) == pytest.approx(expected, rel=1e-12)


class TestState:
    def test_round_trip(self):
        moment = rk.SecondMoment(5, provenance=rk.Provenance(model="m")).update(data(20, 5).float())
        restored = rk.SecondMoment.from_state(moment.state(), moment.provenance, moment.dtype)
        assert same(restored, moment, 0.0)
        assert (restored.dtype, restored.provenance) == (moment.dtype, moment.provenance)
        assert restored.update(data(3, 5)).count == 23
        assert moment.count == 20

    def test_half_of_the_matrix_is_stored(self):
        state = rk.SecondMoment(5).update(data(20, 5)).state()
        assert {name: list(t.shape) for name, t in state.items()} == {
            "outer_packed": [15],
            "total": [5],
            "count": [],
            "weight_squares": [],
            "fourth": [],
            "energies": [2, state["energies"].shape[1]],
        }
        assert state["energies"].shape[1] <= 21  # a bin for each vector, and their number

    @pytest.mark.parametrize(("name", "shape"), [("outer_packed", [14]), ("total", [4])])
    def test_inconsistent_shapes_are_refused(self, name, shape):
        state = rk.SecondMoment(5).update(data(20, 5)).state() | {name: torch.zeros(shape)}
        with pytest.raises(rk.ShapeError, match="from_state: outer_packed must have shape"):
            rk.SecondMoment.from_state(state, rk.Provenance(), torch.float32)

    def test_nan_is_refused(self):
        state = rk.SecondMoment(5).update(data(20, 5)).state()
        state["total"][0] = torch.nan
        with pytest.raises(rk.ShapeError, match="from_state: total must be finite"):
            rk.SecondMoment.from_state(state, rk.Provenance(), torch.float32)

    @pytest.mark.parametrize("name", ["count", "weight_squares", "fourth"])
    @pytest.mark.parametrize("value", [torch.nan, torch.inf, -1.0, [1.0, 2.0]])
    def test_impossible_numbers_are_refused(self, name, value):
        state = rk.SecondMoment(5).update(data(20, 5)).state() | {name: torch.tensor(value)}
        match = f"from_state: {name} must be one finite number, not negative, got .*; the state"
        with pytest.raises(rk.ShapeError, match=match):
            rk.SecondMoment.from_state(state, rk.Provenance(), torch.float32)

    def test_interrupting_and_resuming_changes_no_bit(self):
        x = data(60, 7).float()
        straight, halted = rk.SecondMoment(7), rk.SecondMoment(7)
        for batch in x.split(10):
            straight.update(batch)
            halted.update(batch)
            halted = rk.SecondMoment.from_state(halted.state(), halted.provenance, halted.dtype)
        assert torch.equal(halted.matrix, straight.matrix)

    def test_says_what_it_is(self):
        moment = rk.SecondMoment(2).update(torch.ones(3, 2))
        assert repr(moment) == "SecondMoment(dim=2, count=3, dtype=torch.float32)"


class TestRefusals:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"x": torch.ones(2, 4)}, r"x must be a floating-point tensor \[..., 3\], got a float"),
            ({"x": torch.ones(2, 3).int()}, "got a int32 tensor"),
            ({"x": [[1.0, 2.0, 3.0]]}, "got list"),
            ({"x": torch.tensor([[1.0, torch.nan, 3.0]])}, "x must be finite, got 1 NaN"),
            (
                {"mask": torch.ones(3)},
                r"mask must be a tensor with the shape of x without its last .*, \[2\]",
            ),
            ({"weights": torch.ones(2, 1)}, "weights must be a tensor with the shape of x without"),
            ({"weights": [1, 2]}, r"weights must be a tensor .*, \[2\], got list \[1, 2\]; use"),
            ({"mask": [True, False]}, r"mask must be a tensor .*, got list \[True, False\]; use"),
            (
                {"mask": torch.tensor([0.0, -torch.inf])},
                "mask must be booleans.*mask == 0 if it is",
            ),
            ({"mask": torch.tensor([0, -10000])}, "mask must be booleans"),
            ({"mask": torch.tensor([1.0, torch.nan])}, "mask must be booleans"),
            ({"mask": torch.tensor([1.0, 0.5])}, "mask must be booleans.* weights="),
            ({"mask": torch.tensor([2, 1])}, "mask must be booleans.* weights="),
            ({"weights": torch.tensor([1.0, -2.0])}, "weights must not be negative, got -2.0"),
            ({"weights": torch.tensor([1.0, torch.inf])}, "weights must be finite"),
        ],
    )
    def test_of_a_batch_which_then_adds_nothing(self, arguments, message):
        moment = rk.SecondMoment(3).update(data(5, 3))
        before = moment.clone()
        with pytest.raises(rk.ShapeError, match=message):
            moment.update(**({"x": torch.ones(2, 3)} | arguments))
        assert same(moment, before, 0.0)

    def test_of_a_batch_whose_last_chunk_is_bad(self):
        x = torch.ones(2 * CHUNK_ROWS + 1, 3)
        x[-1, 0] = torch.nan
        moment = rk.SecondMoment(3)
        with pytest.raises(rk.ShapeError, match="x must be finite, got 1 NaN"):
            moment.update(x)
        assert moment.count == 0
        assert not moment.packed().any()

    def test_of_no_width(self):
        with pytest.raises(rk.ShapeError, match="dim must be at least 1, got 0"):
            rk.SecondMoment(0)

    @pytest.mark.parametrize("figure", ["matrix", "mean", "covariance", "fourth"])
    def test_of_figures_without_data(self, figure):
        with pytest.raises(rk.StatisticsError, match="no vector has been seen yet"):
            getattr(rk.SecondMoment(3), figure)

    def test_of_other_widths(self):
        with pytest.raises(rk.ShapeError, match="same width, got 3 and 4; they belong to"):
            rk.SecondMoment(3) + rk.SecondMoment(4)

    def test_of_other_things(self):
        with pytest.raises(TypeError):
            rk.SecondMoment(3) + 1


class TestProvenance:
    @pytest.mark.parametrize("field", ["model", "weights", "module", "tokenizer"])
    def test_of_another_source_is_refused(self, field):
        moments = [
            rk.SecondMoment(2, provenance=replace(rk.Provenance(), **{field: name}))
            for name in ("a", "b")
        ]
        with pytest.raises(
            rk.StatisticsError, match=f"same {field}, got 'a' and 'b'; collect both"
        ):
            moments[0].merge_(moments[1])

    def test_of_a_sum(self):
        a = rk.Provenance(model="m", corpus="books", tokens=3)
        b = rk.Provenance(model="m", corpus="web", tokens=4, dtype="bfloat16")
        both = rk.Provenance(model="m", corpus="books + web", tokens=7, dtype="bfloat16")
        assert a.merged(b) == b.merged(a) == both
        assert both.merged(a).corpus == "books + web"


WORKER = """
import sys, warnings
warnings.simplefilter("error")
import torch, torch.distributed as dist, rankedit as rk
rank, store, case = int(sys.argv[1]), sys.argv[2], sys.argv[3]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
x = torch.randn(101, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
shards = [x[:40], x[40:].float()]
dim = 6 + rank if case == "widths" else 6
names = {case: "ab"[rank]} if case in ("model", "weights", "module", "tokenizer") else {}
source = rk.Provenance(**{"corpus": ["web", "books"][rank], "tokens": rank + 1} | names)
moment = rk.SecondMoment(dim, provenance=source)
if case == "sum":
    moment.update(shards[rank])
    moment.all_reduce_()
    batch = rk.SecondMoment(6).update(shards[0]).update(shards[1])
    assert float((moment.matrix - batch.matrix).abs().max()) < 1e-12 * float(batch.matrix.max())
    assert float((moment.mean - batch.mean).abs().max()) < 1e-12
    assert moment.count == 101 and abs(moment.fourth / batch.fourth - 1) < 1e-12
    assert moment.dtype == torch.float32
    assert moment.provenance == rk.Provenance(corpus="books + web", tokens=3)
    gathered = [None, None]
    dist.all_gather_object(gathered, moment.matrix)
    assert torch.equal(*gathered)
else:
    expected = f"same {case}, got 'a' and 'b'" if names else "same width, got 6 to 7"
    try:
        moment.all_reduce_()
    except rk.StatisticsError as error:
        assert str(error).startswith("SecondMoment.all_reduce_: ") and expected in str(error), error
        assert moment.provenance == source
    else:
        raise SystemExit("was not refused")
dist.destroy_process_group()
"""


class TestAllReduce:
    @pytest.mark.parametrize(
        "case",
        [
            "sum",
            *(pytest.param(c, marks=pytest.mark.slow) for c in ("widths", "model", "tokenizer")),
        ],
    )
    def test_two_processes(self, tmp_path, case):
        command = [sys.executable, "-c", WORKER]
        workers = [
            subprocess.Popen(
                [*command, str(rank), str(tmp_path / "store"), case],
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(2)
        ]
        errors = [worker.communicate(timeout=120)[1] for worker in workers]
        assert [worker.returncode for worker in workers] == [0, 0], errors

    def test_alone(self):
        with pytest.raises(rk.StatisticsError, match="needs an initialised process group; call"):
            rk.SecondMoment(2).all_reduce_()
