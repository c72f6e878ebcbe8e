"""Names of rows, layers that are fused, and errors that are ours whatever is passed."""

import itertools
import json

import pytest
import safetensors.torch
import torch
from torch import nn

from rankedit.edits import LowRank
from rankedit.errors import AttachError, EditFileError, RankeditError, ShapeError
from rankedit.files.lora import from_lora, to_lora
from rankedit.files.storage import check_base, load, save
from rankedit.models.fingerprints import fingerprint
from rankedit.models.fusing import fuse_, unfuse_
from rankedit.models.patching import attach
from tests.attacks.forging import gated, low_rank
from tests.storage_cases import gated_edit, moment_of, normal


@pytest.fixture
def path(tmp_path):
    return tmp_path / "file.safetensors"


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict({"qkv": nn.Linear(5, 12, bias=False), "out": nn.Linear(4, 4)})


# -------------------------------------------------------------------- rows of a layer


def test_edits_of_rows_are_saved_loaded_and_attached(path):
    edits = {
        "qkv[0:4]": LowRank(normal(4, 2), normal(2, 5)),
        "qkv[4:7]": gated_edit(2, width=3),
        "qkv": LowRank(normal(12, 1), normal(1, 5)),
    }
    net = model()
    save(edits, path, model=net)
    loaded = load(path)
    assert loaded.keys() == edits.keys()
    assert loaded.base == dict.fromkeys(sorted(edits), fingerprint(net["qkv"])[:16])
    check_base(net, loaded)
    x = normal(6, 5, seed=3)
    with attach(net, edits):
        expected = net["qkv"](x)
    with attach(net, loaded):
        torch.testing.assert_close(net["qkv"](x), expected, rtol=1e-5, atol=1e-6)
    assert not torch.equal(net["qkv"](x), expected)


def test_rows_of_the_model_itself(path):
    save({"[1:4]": LowRank(normal(3, 1), normal(1, 5))}, path)
    assert list(load(path)) == ["[1:4]"]


@pytest.mark.parametrize(
    "name",
    ["qkv[8:16]", "qkv[3:3]", "qkv[6:3]", "qkv[00:3]", "qkv[0:03]", "qkv[0:3][0:3]", "qkv[-3:0]",
     "qkv[:3]", "qkv[0:3].x", "../x[0:3]", "qkv[0:3", "qkv[\u0660:\u0663]", "qkv[0:3]\n"],
)  # fmt: skip
def test_other_spans_are_refused_on_the_way_out_and_in(path, name):
    for edit, file in (
        (LowRank(normal(3, 1), normal(1, 2)), low_rank(module=name)),
        (gated_edit(2, width=3), gated(modules={name: 3})),
    ):
        with pytest.raises(EditFileError, match=r"save: .*; give the module's name in the model"):
            save({name: edit}, path)
        path.write_bytes(file)
        with pytest.raises(EditFileError, match=r"must name as many rows|names consist"):
            load(path)
    path.write_bytes(low_rank(module="qkv[0:3]"))
    assert list(load(path)) == ["qkv[0:3]"]


def test_only_edits_may_name_rows(path):
    for item in (moment_of(5), normal(4)):
        with pytest.raises(EditFileError, match="names consist of letters"):
            save({"qkv[0:4]": item}, path)


def test_a_lora_of_rows_is_refused_in_words_that_work(path):
    up, down = normal(4, 2), normal(2, 5)
    with pytest.raises(EditFileError, match=r"some rows of a layer.*pad\(up, \(0, 0, start, rows"):
        to_lora({"qkv[4:8]": LowRank(up, down)}, path)
    whole = LowRank(nn.functional.pad(up, (0, 0, 4, 12 - 8)), down)
    to_lora({"qkv": whole}, path)
    net, x = model(), normal(6, 5, seed=3)
    with attach(net, {"qkv[4:8]": LowRank(up, down)}):
        expected = net["qkv"](x)
    with attach(net, from_lora(path)):
        torch.testing.assert_close(net["qkv"](x), expected)


# -------------------------------------------------------------------- fused layers


def test_the_fingerprint_of_a_fused_layer_is_not_recorded(path):
    net = model()
    before, edit = fingerprint(net["qkv"]), LowRank(normal(12, 1), normal(1, 5))
    for names in (["qkv"], ["qkv", "out"], ["qkv[0:12]"]):
        items = {n: LowRank(normal(4, 1), normal(1, 4)) if n == "out" else edit for n in names}
        fuse_(net, {"qkv": edit})
        with pytest.raises(AttachError, match=r"save: 'qkv.*fused into its weight.*unfuse_\(model"):
            save(items, path, model=net)
        assert not path.exists()
        unfuse_(net)
        save(items, path, model=net)
        assert load(path).base[names[0]] == before[:16]
        fuse_(net, {"qkv": edit})
        with pytest.raises(AttachError, match=r"check_base: 'qkv.*unfuse_\(model\) first"):
            check_base(net, load(path))
        unfuse_(net)
        check_base(net, load(path))
        path.unlink()
    fuse_(net, {"qkv": edit})
    save({"out": LowRank(normal(4, 1), normal(1, 4))}, path, model=net)  # another layer's


# -------------------------------------------------------------------- errors that are ours


TENSORS = {
    "meta": lambda: torch.empty(3, 3, device="meta"),
    "sparse": lambda: torch.eye(3).to_sparse(),
    "sparse rows": lambda: torch.eye(3).to_sparse_csr(),
    "complex": lambda: torch.eye(3, dtype=torch.complex64),
    "whole": lambda: torch.eye(3, dtype=torch.int64),
    "flags": lambda: torch.eye(3, dtype=torch.bool),
    "quantised": lambda: torch.quantize_per_tensor(torch.eye(3), 0.1, 0, torch.qint8),
    "empty": lambda: torch.zeros(0, 3),
    "nan": lambda: torch.full((3,), torch.nan),
    "infinite": lambda: torch.full((3,), torch.inf),
}


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", TENSORS)
@pytest.mark.filterwarnings("ignore:.*(beta state|deprecated):UserWarning")
def test_tensors_that_cannot_be_kept_are_refused_by_name(path, kind, dtype):
    with pytest.raises(ShapeError, match=r"save: tensor 'a' must be (a non-empty|finite)"):
        save({"a": TENSORS[kind]()}, path, dtype=dtype)
    assert not path.exists()


@pytest.mark.parametrize("scale", [1e39, 1e60, 1e80, 1e140])
@pytest.mark.parametrize("dtype", [None, torch.float32, torch.float16, torch.bfloat16])
def test_what_is_saved_can_be_loaded_also_at_the_ends_of_float64(path, scale, dtype):
    edit = LowRank(scale * normal(3, 1).double(), normal(1, 2).double() / scale)
    save(edit, path, dtype=dtype)  # balanced first: the product is what counts
    exact = dtype in (None, torch.float32)
    found = load(path)[""].delta().double()
    torch.testing.assert_close(found, edit.delta(), rtol=1e-5 if exact else 0.02, atol=0)
    with pytest.raises(ShapeError, match="pass a wider dtype="):
        save({"t": torch.tensor([scale], dtype=torch.float64)}, path, dtype=dtype or torch.float32)
    save(edit, path, dtype=torch.float64)
    assert torch.equal(load(path)[""].up, edit.up)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_factors_whose_squares_overflow_are_not_lost(path, dtype):
    """The norm of 1e30 is infinite in float32; a component of no norm would be dropped."""
    edit = LowRank(1e30 * normal(3, 2), 1e-30 * normal(2, 4))
    save(edit, path, dtype=dtype)
    torch.testing.assert_close(load(path)[""].delta(), edit.delta(), rtol=0.02, atol=0.02)
    to_lora({"a": edit}, path, layout="diffusers", dtype=dtype)
    torch.testing.assert_close(from_lora(path)["a"].delta(), edit.delta(), rtol=0.02, atol=0.02)


METADATA = [{1: "a"}, {"a": 1}, {"a": None}, {"a": ["b"]}, {"a": object}, {None: "a"}, "text",
            [("a", "b")], {"a": "\x00"}, {"\ud800": "a"}, {"a": b"b"}, 3]  # fmt: skip


@pytest.mark.parametrize("metadata", METADATA, ids=repr)
def test_metadata_is_text_and_nothing_is_made_text_in_silence(path, metadata):
    edit = LowRank(torch.ones(3, 1), torch.ones(1, 3))
    for write in (save, to_lora):
        with pytest.raises(EditFileError, match=rf"{write.__name__}: metadata.*must be"):
            write({"a": edit}, path, metadata=metadata)
        assert not path.exists()


def test_wrong_arguments_end_in_errors_of_ours(path):
    edit = LowRank(torch.ones(3, 1), torch.ones(1, 3))
    items = [None, 3, "a", [edit], {}, {"a": None}, {3: edit}, {"a": [edit]}, {"a": "b"}]
    dtypes = ["float32", 32, torch.int8, torch.complex64, float]
    cases = [(value, None) for value in items] + [({"a": edit}, dtype) for dtype in dtypes]
    for (value, dtype), write in itertools.product(cases, (save, to_lora)):
        options = {} if dtype is None else {"dtype": dtype}
        with pytest.raises(RankeditError, match=f"{write.__name__}: "):
            write(value, path, **options)
    assert not path.exists()


@pytest.mark.parametrize("opened", ["[", '{"a":'])
@pytest.mark.parametrize("depth", [50, 400, 800, 900, 950, 990, 2_000, 100_000])
def test_json_however_deep_is_an_error_of_ours(path, depth, opened):
    """Deep enough to be parsed, too deep to be printed in a message."""
    closed = {"[": "]", '{"a":': "}"}[opened]
    nested = opened * depth + "1" + closed * depth
    for field in ("metadata", "entries", "version", "base"):
        save(LowRank(torch.ones(3, 1), torch.ones(1, 3)), path)
        text = json.dumps({"digest": "0" * 32, "version": 1, "entries": []} | {field: None})
        text = text.replace("null", nested)
        safetensors.torch.save_file({"0": torch.ones(1)}, path, {"rankedit": text})
        with pytest.raises(EditFileError, match=r"load: .*Nothing was loaded"):
            load(path)
    layer = {"a.lora_A.weight": torch.ones(1, 3), "a.lora_B.weight": torch.ones(3, 1)}
    for text in (nested, f'{{"lora_alpha": {nested}}}', f'{{"alpha_pattern": {nested}}}'):
        safetensors.torch.save_file(layer, path, {"lora_adapter_metadata": text})
        with pytest.raises(EditFileError, match=r"from_lora: .*Nothing was loaded"):
            from_lora(path)


@pytest.mark.parametrize("number", ["1e999", "-1e999", "9" * 4_300, "9" * 5_000, "1e-999", "NaN"])
def test_numbers_beyond_all_bounds_are_errors_of_ours(path, number):
    save({"a": gated_edit(), "b": gated_edit()}, path)
    plain = json.loads(safetensors.safe_open(path, "pt").metadata()["rankedit"])
    for field in ("targets", "floor", "version"):
        document = json.loads(json.dumps(plain))
        (document if field == "version" else document["entries"][0])[field] = "N"
        assert_refused(path, json.dumps(document).replace('"N"', number), field)
    text = json.dumps(plain).replace('"a": 3', f'"a": {number}').replace('"b": 3', f'"b": {number}')
    assert_refused(path, text, "widths")


def assert_refused(path, text: str, field: str) -> None:
    tensors = safetensors.torch.load_file(path)
    safetensors.torch.save_file(tensors, path, {"rankedit": text})
    # Zero is a floor; the digest is another one.
    match = "damaged" if field == "floor" and "1e-999" in text else "load: "
    with pytest.raises(EditFileError, match=match):
        load(path)
