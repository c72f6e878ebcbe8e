"""Files stay small, fit other readers, and go only to the model that they were made for."""

import json
from collections import OrderedDict
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from rankedit.edits import LowRank
from rankedit.errors import EditFileError, ProjectionError, ShapeError
from rankedit.files.container import DTYPES
from rankedit.files.format import METADATA_BYTES, NAMES
from rankedit.files.header import ITEM_BYTES, Limits
from rankedit.files.kinds import KEYS, PLANNERS
from rankedit.files.storage import check_base, load, save
from rankedit.gated import GatedEdit
from rankedit.gates import Sigmoid
from rankedit.metric import Metric
from rankedit.models.patching import attach
from tests.storage_cases import moment_of, normal

# Stable Diffusion 1.5: what reads the text in its 16 cross-attention layers.
SD15_VALUES = {
    f"{block}.attentions.{i}.transformer_blocks.0.attn2.to_v": width
    for block, count, width in (
        ("down_blocks.0", 2, 320),
        ("down_blocks.1", 2, 640),
        ("down_blocks.2", 2, 1280),
        ("mid_block", 1, 1280),
        ("up_blocks.1", 3, 1280),
        ("up_blocks.2", 3, 640),
        ("up_blocks.3", 3, 320),
    )
    for i in range(count)
}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "file.safetensors"


# -------------------------------------------------------------------- size


def test_a_concept_for_stable_diffusion_stays_below_32_kib(path):
    """V values only, the key and its metric image, and the embedding of the new word."""
    metric = Metric.from_moment(moment_of(768, rows=1000))
    key = normal(1, 768)
    first = GatedEdit(key, normal(1, 320), metric, Sigmoid())
    edits = {
        name: first.with_targets(normal(1, width, seed=i))
        for i, (name, width) in enumerate(SD15_VALUES.items())
    }
    assert sum(SD15_VALUES.values()) == 12_480
    save(edits, path, dtype=torch.float16)
    assert path.stat().st_size < 30_000
    model = nn.ModuleDict()
    for name, width in SD15_VALUES.items():
        parent = model
        *folders, leaf = name.split(".")
        for folder in folders:
            parent = _child(parent, folder)
        parent[leaf] = nn.Linear(768, width, bias=False)
    everything = edits | {"embedding": normal(1, 768, seed=5)}
    origin = {"recipe": "perfusion", "placeholder": "<bean>", "category": "cat"}
    save(everything, path, dtype=torch.float16, metadata=origin, model=model)
    assert path.stat().st_size < 32_000
    back = load(path)
    check_base(model, back)
    for name, edit in edits.items():
        assert torch.allclose(back[name].targets, edit.targets, atol=3e-3)


def _child(parent: nn.ModuleDict, name: str) -> nn.ModuleDict:
    if name not in parent:
        parent[name] = nn.ModuleDict()
    return parent[name]


def test_equal_tensors_are_stored_once(path):
    down = normal(1, 1000)
    edits = {f"layer.{i}": LowRank(normal(2, 1, seed=i), down.clone()) for i in range(50)}
    save(edits, path)
    assert path.stat().st_size < 4 * 1000 + 50 * 250
    assert all(torch.equal(edit.down, down) for edit in load(path).values())


def test_a_thousand_layers_fit_and_more_are_refused_in_words(path):
    edits = {
        f"model.layers.{i}.mlp.down_proj": LowRank(
            normal(2, 1, seed=i), normal(1, 2, seed=i + 5000)
        )
        for i in range(1_024)
    }
    save(edits, path)
    assert len(load(path)) == 1_024
    more = edits | {f"more.{name}": edit for name, edit in edits.items()}
    before = path.read_bytes()
    with pytest.raises(EditFileError, match=r"at most 1024 items, got 2048 .*; split"):
        save(more, path)
    assert path.read_bytes() == before


def test_a_header_that_is_too_long_is_refused_in_words(path):
    edits = {f"{i}." + "a" * 250: LowRank(normal(2, 1), normal(1, 2)) for i in range(1_024)}
    metadata = {"notes": "x" * 900_000}
    with pytest.raises(EditFileError, match=r"at most 1048576 are allowed; split the 1024 items"):
        save(edits, path, metadata=metadata)
    assert not path.exists()


# -------------------------------------------------------------------- other readers and writers


def test_the_safetensors_package_reads_the_file(path):
    edit = LowRank(normal(3, 1), normal(1, 2))
    save({"a": edit}, path)
    tensors = safetensors.torch.load_file(path)
    assert torch.equal(tensors["0"], edit.up)
    assert torch.equal(tensors["1"], edit.down)
    with safetensors.safe_open(path, "pt") as file:
        assert json.loads(file.metadata()["rankedit"])["version"] == 1


def test_a_file_that_another_tool_rewrote_is_refused(path, tmp_path):
    save({"a": LowRank(normal(3, 1), normal(1, 2))}, path)
    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = safetensors.torch.load_file(path)
    safetensors.torch.save_file({n: 2 * t for n, t in tensors.items()}, path, metadata)
    with pytest.raises(EditFileError, match="does not match its digest"):
        load(path)


def test_dtypes_of_header_and_tensors_agree():
    assert {name: dtype.itemsize for name, dtype in DTYPES.items()} == ITEM_BYTES


# -------------------------------------------------------------------- refusals of save


def test_save_refuses_what_load_would_refuse(path):
    edit = LowRank(normal(3, 1), normal(1, 2))
    path.write_bytes(b"old")
    cases = [
        ({"../x": edit}, {}, "names consist of letters"),
        ({"a b": edit}, {}, "names consist of letters"),
        ({"a": edit}, {"k": "\x00"}, "control characters"),
        ({"a": edit}, {"k": "x" * 70_000}, "65536"),
        ({"a": edit}, {"k": 3}, "must be text"),
        ({}, {}, "must be a mapping of names to edits, or one edit"),
        ([edit], {}, "must be a mapping of names to edits, or one edit"),
        ({"a": [edit, edit]}, {}, "got list; several LowRank edits of a layer can be added"),
        ({"a": nn.Linear(2, 2)}, {}, "must be a LowRank, GatedEdit, SecondMoment or tensor"),
        ({1: edit}, {}, "names consist of letters"),
    ]
    for items, metadata, message in cases:
        with pytest.raises(EditFileError, match=message) as caught:
            save(items, path, metadata=metadata)
        assert "save: " in str(caught.value)
    assert path.read_bytes() == b"old"
    assert list(path.parent.iterdir()) == [path]


def test_save_refuses_tensors_that_it_could_not_give_back(path):
    with pytest.raises(ShapeError, match=r"tensor 't' must be finite.*look for NaN"):
        save({"t": torch.tensor([float("nan")])}, path)
    with pytest.raises(ShapeError, match=r"within the range of torch.float32"):
        save({"t": torch.tensor([1e300], dtype=torch.float64)}, path, dtype=torch.float32)
    with pytest.raises(ShapeError, match="non-empty tensor"):
        save({"t": torch.empty(0, 3)}, path)
    with pytest.raises(ShapeError, match="float64, float32, float16 or bfloat16"):
        save({"t": torch.arange(3)}, path)
    with pytest.raises(EditFileError, match="at most 2 axes"):
        save({"t": torch.ones(1, 2, 3)}, path)
    with pytest.raises(ShapeError, match=r"statistics can be stored as float64 or float32"):
        save({"m": moment_of(3)}, path, dtype=torch.float16)
    assert not path.exists()


def test_keys_that_rounding_makes_parallel_are_refused_when_saving(path):
    keys = torch.tensor([[1.0, 1.0], [1.0038, 1.0]])  # bfloat16 has no number between 1 and 1.0078
    edit = GatedEdit(keys, normal(2, 3), Metric.identity(2))
    save({"x": edit}, path)
    with pytest.raises(EditFileError, match=r"could not be loaded again.*linearly independent"):
        save({"x": edit}, path, dtype=torch.bfloat16)
    assert isinstance(load(path)["x"], GatedEdit)


# -------------------------------------------------------------------- the base model


def test_what_was_loaded_can_be_attached_as_it_is(path):
    model = layers(0)
    edit = LowRank(normal(3, 1), normal(1, 2))
    save({"a": edit}, path, dtype=torch.float64, model=model)
    x = normal(4, 2)
    with attach(model, {"a": edit}):
        expected = model(x)
    with attach(model, load(path)):
        assert torch.equal(model(x), expected)
    assert not torch.equal(model(x), expected)


def layers(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(OrderedDict(a=nn.Linear(2, 3), b=nn.Linear(3, 2)))


def test_check_base_accepts_the_model_and_refuses_another(path):
    model = layers(0)
    edits = {"b": LowRank(normal(2, 1), normal(1, 3)), "a": LowRank(normal(3, 1), normal(1, 2))}
    save(edits | {"word": normal(4)}, path, model=model)
    loaded = load(path)
    assert sorted(loaded.base) == ["a", "b"]
    check_base(model, loaded)
    with pytest.raises(EditFileError, match=r"another base model: 2 of 2 layers differ, first 'a'"):
        check_base(layers(1), loaded)
    with torch.no_grad():
        model.b.weight[0, 0] += 1e-6
    with pytest.raises(EditFileError, match=r"1 of 2 layers differ, first 'b' with fingerprint"):
        check_base(model, loaded)
    with pytest.raises(ProjectionError, match="'a'"):
        check_base(nn.Sequential(nn.Linear(2, 3)), loaded)


def test_check_base_needs_a_file_that_knows_its_model(path):
    save({"a": LowRank(normal(3, 1), normal(1, 2))}, path)
    with pytest.raises(EditFileError, match=r"names no base model.*model=model"):
        check_base(layers(0), load(path))


def test_saving_for_a_model_without_the_layer_writes_nothing(path):
    with pytest.raises(ProjectionError, match="'c'"):
        save({"c": LowRank(normal(3, 1), normal(1, 2))}, path, model=layers(0))
    assert not path.exists()


def test_limits_are_those_that_the_documentation_states():
    page = (Path(__file__).parent.parent / "docs" / "file-format.md").read_text()
    limits = Limits()
    for stated in (limits.header, limits.separators, limits.tensors, METADATA_BYTES, NAMES, KEYS):
        assert f"{stated:,}" in page
    assert f"at most {limits.dimensions} axes" in page
    assert all(f"`{dtype}`" in page for dtype in ITEM_BYTES)
    assert all(f"`{kind}`\n: " in page for kind in PLANNERS)
