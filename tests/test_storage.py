"""What is saved comes back: exactly, small, and only to the model that it was made for."""

import math
from dataclasses import dataclass, replace

import pytest
import torch

from rankedit.closed_form import solve_edit
from rankedit.edits import EditReport, LowRank
from rankedit.errors import EditFileError
from rankedit.files.container import DTYPES
from rankedit.files.storage import load, save
from rankedit.gated import GatedEdit
from rankedit.gates import Gate, Identity, JointSigmoid, Sigmoid
from rankedit.merging import merge
from rankedit.metric import Metric
from rankedit.moments import SecondMoment
from tests.storage_cases import gated_edit, moment_of, normal

BOUND = {torch.float16: 2**-11, torch.bfloat16: 2**-8}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "file.safetensors"


# -------------------------------------------------------------------- round trips


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_low_rank_edits_come_back_bit_for_bit(path, dtype):
    edit = LowRank(normal(4, 2, dtype=dtype), normal(2, 3, dtype=dtype))
    save({"a.b": edit}, path, dtype=dtype)
    back = load(path)["a.b"]
    assert back.up.dtype == dtype
    assert torch.equal(back.up, edit.up)
    assert torch.equal(back.down, edit.down)


@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_what_the_solver_reported_comes_back(path, dtype):
    unknown = EditReport(0.25, math.nan, math.inf, ("a key is unusual", "the condition is bad"))
    solved = solve_edit(normal(4, 3), normal(1, 3), normal(1, 4), Metric.identity(3))
    plain = LowRank(solved.up, solved.down)
    edits = {"a": solved, "b": replace(solved, report=unknown), "c": plain}
    save(edits, path, dtype=dtype)
    back = {name: edit.report for name, edit in load(path).items()}
    assert back["a"] == solved.report
    assert (back["b"].residual, back["b"].warnings) == (0.25, unknown.warnings)
    assert math.isnan(back["b"].drift)
    assert math.isnan(back["b"].condition)  # infinity is no JSON; like nan it means unknown
    assert back["c"] is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("imbalance", [1.0, 1e-7, 1e7])
def test_sixteen_bits_keep_their_digits_whatever_the_balance(path, dtype, imbalance):
    up = normal(40, 2) * torch.tensor([imbalance, 1.0])
    down = normal(2, 30) / torch.tensor([[imbalance], [1.0]])
    edit = LowRank(up, down)
    save(edit, path, dtype=dtype)
    back = load(path)[""]
    assert back.up.dtype == torch.float32
    error = (back.delta() - edit.delta()).norm() / edit.delta().norm()
    assert float(error) < 2 * BOUND[dtype]


def test_zeros_come_back_in_any_dtype(path):
    for dtype in DTYPES.values():
        save({"t": torch.zeros(3)}, path, dtype=dtype)
        assert torch.equal(load(path)["t"].float(), torch.zeros(3))


def test_half_precision_keeps_tensors_far_beyond_its_range(path):
    exact = normal(9, 9, dtype=torch.float64)
    for scale in (1e-35, 1e-30, 1e30, 1e37):
        save({"t": scale * exact}, path, dtype=torch.float16)
        back = load(path)["t"]
        assert float((back.double() / scale - exact).abs().max()) < 3 * BOUND[torch.float16]
    save({"t": 1e-60 * exact}, path, dtype=torch.float16)
    assert torch.equal(load(path)["t"], torch.zeros(9, 9))  # below float32, in which it comes back


@pytest.mark.parametrize(
    "gate",
    [
        Sigmoid(),
        Sigmoid(0.6, 0.15),
        Sigmoid(torch.tensor([0.5, 0.7]), 0.1),
        Sigmoid(torch.tensor([0.5, 0.7]), torch.tensor([0.1, 0.2])),
        JointSigmoid(torch.tensor([0.5, 0.7]), 0.1),
        Identity(),
    ],
)
def test_gated_edits_come_back_bit_for_bit(path, gate):
    floor = 0.25 if isinstance(gate, Sigmoid) else None
    edit = gated_edit(gate=gate, normalised=floor is not None, floor=floor)
    save({"x": edit}, path, dtype=torch.float64)
    back = load(path)["x"]
    for name in ("keys", "targets", "images"):
        assert torch.equal(getattr(back, name).double(), getattr(edit, name).double())
    assert repr(back.gate) == repr(gate)
    assert (back.normalised, back.floor) == (edit.normalised, edit.floor)
    assert back.statistics == edit.statistics != ""


def test_a_joint_edit_of_merged_concepts_acts_as_before(path):
    metric = Metric.from_moment(moment_of(5))
    concepts = [
        GatedEdit(
            normal(1, 5, seed=i), normal(1, 3, seed=i + 9), metric, Sigmoid(0.5 + i / 10, 0.1)
        )
        for i in range(3)
    ]
    joint = merge(concepts)
    save({"x": joint}, path)
    back = load(path)["x"]
    x, weight = normal(20, 5, seed=7), normal(3, 5)
    added = [e.added(x, e.bind(lambda keys: keys.to(weight) @ weight.T)) for e in (joint, back)]
    torch.testing.assert_close(added[1], added[0], rtol=1e-5, atol=1e-5)


def test_concepts_saved_apart_can_be_merged_after_loading(tmp_path):
    metric = Metric.from_moment(moment_of(5))
    for i in range(2):
        edit = GatedEdit(normal(1, 5, seed=i), normal(1, 3, seed=i), metric)
        save({"x": edit}, tmp_path / f"{i}", dtype=torch.float16)
    joint = merge([load(tmp_path / f"{i}")["x"] for i in range(2)])
    assert joint.statistics == metric.fingerprint
    assert len(joint.keys) == 2


@dataclass(frozen=True)
class Ramp(Gate):
    """A gate of a user's own."""

    name = "ramp"
    start: float = 0.5

    def opening(self, similarity, parameters):
        return (similarity - parameters["start"]).clamp(0, 1)


def test_a_gate_of_ones_own_is_found_only_when_its_class_is_passed(path):
    save({"x": gated_edit(gate=Ramp(0.2))}, path)
    assert load(path, gates=[Ramp])["x"].gate == Ramp(0.2)
    with pytest.raises(EditFileError, match=r"gate 'ramp', known are identity, .*gates="):
        load(path)
    with pytest.raises(EditFileError, match="must be classes derived from Gate"):
        load(path, gates=[Ramp(0.2)])


def test_statistics_come_back_exactly_and_can_be_added_to(path):
    moment = moment_of(6)
    save({"a": moment}, path)
    back = load(path)["a"]
    assert torch.equal(back.matrix, moment.matrix)
    assert torch.equal(back.mean, moment.mean)
    for name in ("count", "fourth", "effective_count", "provenance", "dtype"):
        assert getattr(back, name) == getattr(moment, name)
    more = normal(10, 6, seed=3)
    assert torch.equal(back.update(more).matrix, moment.update(more).matrix)


def test_statistics_that_saw_nothing_yet_can_be_saved(path):
    save(SecondMoment(3), path)
    assert load(path)[""].count == 0


def test_statistics_take_half_a_matrix_and_float32_a_documented_error(path):
    dim = 200
    moment = moment_of(dim)
    save(moment, path)
    assert path.stat().st_size < 8 * dim * (dim + 1) // 2 + 8 * dim + 1024
    save(moment, path, dtype=torch.float32)
    assert path.stat().st_size < 4 * dim * (dim + 1) // 2 + 4 * dim + 1024
    error = (load(path)[""].matrix - moment.matrix).abs()
    assert bool((error <= 6e-8 * moment.matrix.abs()).all())


def test_plain_tensors_keep_shape_and_dtype(path):
    tensors = {
        "scalar": torch.tensor(2.5),
        "vector": normal(3, dtype=torch.float64),
        "matrix": normal(2, 3).T,
    }
    save(tensors, path)
    back = load(path)
    for name, tensor in tensors.items():
        assert torch.equal(back[name], tensor)
        assert back[name].dtype == tensor.dtype


def test_metadata_and_everything_at_once(path):
    items = {"a": LowRank(normal(3, 1), normal(1, 5)), "b": gated_edit(), "c": moment_of(5)}
    save(items | {"d": normal(4)}, path, metadata={"placeholder": "<bean>", "note": "né\n\t中"})
    back = load(path)
    assert {name: type(item) for name, item in back.items()} == {
        "a": LowRank,
        "b": GatedEdit,
        "c": SecondMoment,
        "d": torch.Tensor,
    }
    assert back.metadata == {"placeholder": "<bean>", "note": "né\n\t中"}
    assert back.base == {}


def test_tensors_that_require_gradients_or_are_views_are_stored_as_they_are(path):
    up, down = normal(3, 4).T[:, :2], normal(2, 3).requires_grad_()
    save({"a": LowRank(up, down)}, path)
    assert torch.equal(load(path)["a"].up, up)
    assert torch.equal(load(path)["a"].down, down)


def test_the_file_is_a_function_of_its_content(tmp_path):
    for name in ("one", "two"):
        save({"a": gated_edit(), "b": gated_edit(1)}, tmp_path / name, metadata={"k": "v"})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
