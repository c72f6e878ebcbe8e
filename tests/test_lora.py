"""LoRA files: names and scales. test_lora_peft and test_lora_diffusers show who can read them."""

import itertools
import json
import os
from collections import OrderedDict
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from rankedit.edits import LowRank
from rankedit.errors import EditFileError, ShapeError
from rankedit.files.lora import DIFFUSERS, KOHYA, PEFT, from_lora, to_lora

LAYOUTS = (PEFT, DIFFUSERS, KOHYA)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def low_rank(rank: int = 1, out: int = 4, width: int = 3, seed: int = 0) -> LowRank:
    return LowRank(normal(out, rank, seed=seed), normal(rank, width, seed=seed + 1))


def foreign(path, metadata=None, **tensors: Tensor) -> None:
    """A file as another program writes it; double underscores stand for dots."""
    named = {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    safetensors.torch.save_file(named, path, metadata)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "lora.safetensors"


# -------------------------------------------------------------------- round trips


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.title)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_edits_come_back_exactly(path, layout, dtype):
    edits = {"down_blocks.0.attn2.to_k": low_rank(1), "mid_block.to_v": low_rank(3, seed=5)}
    edits = {name: edit.to(dtype) for name, edit in edits.items()}
    to_lora(edits, path, layout=layout, component="unet", dtype=dtype)
    back = from_lora(path, component="unet", modules=edits)
    assert back.keys() == edits.keys()
    for name, edit in edits.items():
        assert torch.equal(back[name].delta(), edit.delta())


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.title)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float16, 1e-3), (torch.bfloat16, 8e-3)])
def test_sixteen_bits_lose_digits_only(path, layout, dtype, bound):
    edit = LowRank(1e-7 * normal(4, 2), 1e6 * normal(2, 3))
    to_lora({"unet.a": edit}, path, layout=layout, dtype=dtype)
    back = from_lora(path, modules=["unet.a"])["unet.a"]
    assert float((back.delta() - edit.delta()).norm() / edit.norm()) < bound


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.title)
@pytest.mark.parametrize(
    ("dtype", "power", "other"),
    [(torch.float16, -12, 0), (torch.float16, -20, 0), (torch.float32, -46, -40)],
)
def test_numbers_too_small_for_the_dtype_are_refused(path, layout, dtype, power, other):
    up, down = 10.0**power * normal(4, 2).double(), 10.0**other * normal(2, 3).double()
    edit = LowRank(up, down)
    with pytest.raises(ShapeError, match=r"of 'unet.a' must be .* range of .*pass a wider dtype="):
        to_lora({"unet.a": edit}, path, layout=layout, dtype=dtype)
    # One whose product is in range is balanced.
    edit, dtype = (LowRank(up, down * 1e77), dtype) if other else (edit, torch.bfloat16)
    to_lora({"unet.a": edit}, path, layout=layout, dtype=dtype)
    back = from_lora(path, modules=["unet.a"])["unet.a"]
    assert float((back.to(torch.float64).delta() - edit.delta()).norm() / edit.norm()) < 8e-3


@pytest.mark.parametrize(
    ("layout", "key"),
    [
        (DIFFUSERS, "unet.mid_block.to_v.lora_A.weight"),
        (KOHYA, "lora_unet_mid_block_to_v.lora_down.weight"),
        (PEFT, "base_model.model.unet.mid_block.to_v.lora_A.weight"),
    ],
)
def test_names_are_those_of_the_convention(path, layout, key):
    edit = low_rank(2)
    metadata = {"modelspec.trigger_phrase": "<bean>"}
    to_lora({"mid_block.to_v": edit}, path, layout=layout, component="unet", metadata=metadata)
    file = path / "adapter_model.safetensors" if layout is PEFT else path
    assert torch.equal(safetensors.torch.load_file(file)[key], edit.down)
    with safetensors.safe_open(file, "pt") as opened:
        assert opened.metadata() == {"format": "pt", **metadata}


def test_text_encoders_have_conventions_of_their_own(tmp_path):
    edits = {"encoder.layers.0.mlp.fc2": low_rank()}
    component = "text_encoder.text_model"
    expected = {
        DIFFUSERS: f"{component}.encoder.layers.0.mlp.fc2.lora_linear_layer.down.weight",
        KOHYA: "lora_te_text_model_encoder_layers_0_mlp_fc2.lora_down.weight",
    }
    for layout, key in expected.items():
        path = tmp_path / layout.title
        to_lora(edits, path, layout=layout, component=component)
        assert key in safetensors.torch.load_file(path)
        assert list(from_lora(path, component=component, modules=edits)) == list(edits)


def test_layouts_may_be_given_by_name(path):
    to_lora({"unet.a": low_rank()}, path, layout="kohya")
    assert "lora_unet_a.alpha" in safetensors.torch.load_file(path)
    with pytest.raises(EditFileError, match="layout must be one of peft, diffusers, kohya"):
        to_lora({"unet.a": low_rank()}, path, layout="a1111")


def test_the_adapter_configuration_says_what_a_reader_needs(path):
    edits = {"h.1.attn.c_proj": low_rank(2), "c_proj": low_rank(1), "h.10.attn.c_proj": low_rank(3)}
    to_lora(edits, path, config={"base_model_name_or_path": "gpt2", "task_type": "CAUSAL_LM"})
    config = json.loads((path / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    assert config["r"] == config["lora_alpha"] == 3
    assert config["base_model_name_or_path"] == "gpt2"
    assert config["fan_in_fan_out"] is False
    assert config["rank_pattern"] == config["alpha_pattern"]
    assert config["rank_pattern"] == {name: edit.rank for name, edit in edits.items()}
    # The reader takes the first entry that the end of a name matches: longest first.
    text = (path / "adapter_config.json").read_text().partition("rank_pattern")[2]
    assert text.index("h.10.attn") < text.index("h.1.attn") < text.index('"c_proj"')


def test_one_by_one_convolutions_have_four_axes(path):
    model = nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 4, 1), line=nn.Conv1d(3, 4, 1)))
    edits = {"conv": low_rank(2), "line": low_rank(2)}
    to_lora(edits, path, layout=DIFFUSERS, model=model)
    shapes = {name: list(t.shape) for name, t in safetensors.torch.load_file(path).items()}
    assert shapes["conv.lora_A.weight"] == [2, 3, 1, 1]
    assert shapes["line.lora_B.weight"] == [4, 2, 1]
    assert torch.equal(from_lora(path)["conv"].delta(), edits["conv"].delta())


# -------------------------------------------------------------------- files of other programs


def test_alpha_scales(path):
    edit = low_rank(2)
    tensors = {"lora_unet_a.lora_down.weight": edit.down, "lora_unet_a.lora_up.weight": edit.up}
    foreign(path, **tensors, **{"lora_unet_a.alpha": torch.tensor(1.0)})
    back = from_lora(path, component="unet", modules=["a", "b", "c.d"])["a"]
    assert torch.equal(back.delta(), 0.5 * edit.delta())


@pytest.mark.parametrize(
    ("fields", "scale"),
    [
        ({"lora_alpha": 6}, 3.0),
        ({}, 4.0),  # PEFT's default of 8
        ({"lora_alpha": 6, "alpha_pattern": {"b": 1}}, 0.5),
        ({"lora_alpha": 6, "alpha_pattern": {"^a.b": 1}}, 0.5),
        ({"lora_alpha": 6, "alpha_pattern": {"^b": 1, "c.b": 1}}, 3.0),
        ({"lora_alpha": 4, "use_rslora": True}, 4 / 2**0.5),
    ],
)
def test_configurations_scale(tmp_path, fields, scale):
    edit = low_rank(2)
    foreign(
        tmp_path / "adapter_model.safetensors",
        base_model__model__a__b__lora_A__weight=edit.down,
        base_model__model__a__b__lora_B__weight=edit.up,
    )
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", **fields}))
    torch.testing.assert_close(from_lora(tmp_path)["a.b"].delta(), scale * edit.delta())


def test_the_configuration_inside_a_diffusers_file_scales_its_component(path):
    edit = low_rank(2)
    metadata = {"lora_adapter_metadata": json.dumps({"unet.r": 2, "unet.lora_alpha": 1})}
    tensors = {
        f"{component}.a.lora_{part}.weight": tensor
        for component in ("unet", "text_encoder")
        for part, tensor in (("A", edit.down.clone()), ("B", edit.up.clone()))
    }
    foreign(path, metadata, **tensors)
    back = from_lora(path, component="unet")
    assert torch.equal(back["a"].delta(), 0.5 * edit.delta())
    with pytest.raises(EditFileError, match=r"nothing of 'text_encoder\.a': pass component="):
        from_lora(path)


@pytest.mark.parametrize(
    ("fields", "scale"),
    [
        ({"r": 2, "lora_alpha": 1}, 0.5),
        ({"r": 9, "lora_alpha": 2, "rank_pattern": {"^a": 2}, "alpha_pattern": {"^a": 6}}, 3.0),
        ({"r": 2, "lora_alpha": 4, "use_rslora": True}, 4 / 2**0.5),
    ],
)
@pytest.mark.parametrize("prefix", ["", "unet.", "text_encoder."])
def test_fields_stand_bare_or_after_their_component(path, prefix, fields, scale):
    """A model that saves itself writes the first, a pipeline the second."""
    edit = low_rank(2)
    metadata = {"lora_adapter_metadata": json.dumps({prefix + k: v for k, v in fields.items()})}
    foreign(path, metadata, **{f"{prefix}a.lora_A.weight": edit.down,
                               f"{prefix}a.lora_B.weight": edit.up})  # fmt: skip
    torch.testing.assert_close(from_lora(path)[f"{prefix}a"].delta(), scale * edit.delta())


def test_a_pattern_of_zero_is_no_missing_pattern(tmp_path):
    edit = low_rank(2)
    to_lora({"a": edit}, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"alpha_pattern": {"a": 0}}))
    with pytest.raises(EditFileError, match="must give a scale"):
        from_lora(tmp_path)


# -------------------------------------------------------------------- numbers and two files


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.title)
@pytest.mark.parametrize(
    ("dtype", "rank"), [(torch.bfloat16, 257), (torch.float16, 2049), (torch.bfloat16, 1001)]
)
def test_ranks_that_half_precision_cannot_hold_keep_the_strength(path, layout, dtype, rank):
    """Whole numbers end at 256 in bfloat16 and at 2048 in float16."""
    edit = LowRank(torch.ones(4, rank), torch.ones(rank, 4))  # balanced, and exact in any dtype
    to_lora({"unet.a": edit}, path, layout=layout, dtype=dtype)
    back = from_lora(path, modules=["unet.a"])["unet.a"]
    assert torch.equal(back.delta(), torch.full((4, 4), float(rank)))


def test_a_configuration_of_the_callers_cannot_change_the_strength(path):
    for config, message in (
        ({"lora_alpha": 7}, "would have 'a' read at 3.5 times"),
        ({"use_rslora": True}, "at 1.41421 times"),
        ({"alpha_pattern": {"a": 1}}, "at 0.5 times"),
        ({"r": 4}, "has rank 2"),
        ({"use_dora": True}, "'use_dora' is True"),
        ({"init_lora_weights": "pissa"}, "relative to a base"),
        ({"task_type": float("nan")}, "holds NaN"),
        ({"task_type": {1, 2}}, "not JSON serializable"),
    ):
        with pytest.raises(EditFileError, match=f"to_lora: config.*{message}"):
            to_lora({"a": low_rank(2)}, path, config=config)
        assert not path.exists()


def test_a_folder_stopped_between_its_two_files_is_refused_not_misread(tmp_path, monkeypatch):
    """At every step of writing, what lies there is the old pair, the new one, or refused."""
    old, new = {"a": low_rank(1)}, {"a": low_rank(2, seed=5), "b": low_rank(2, seed=7)}
    seen = []

    def look(*arguments) -> None:
        if not (tmp_path / "adapter_config.json").exists():
            with pytest.raises(EditFileError, match="put it there, or write the LoRA again"):
                from_lora(tmp_path)
            seen.append("refused")
            return
        edits = from_lora(tmp_path)
        seen.append("old" if len(edits) == 1 else "new")
        for name, edit in (old if len(edits) == 1 else new).items():
            assert torch.equal(edits[name].delta(), edit.delta())

    to_lora(old, tmp_path)
    for owner, step in ((os, "fsync"), (Path, "replace"), (Path, "unlink"), (Path, "chmod")):
        actual = getattr(owner, step)

        def stepwise(*arguments, actual=actual, **options):
            look()
            result = actual(*arguments, **options)
            look()
            return result

        monkeypatch.setattr(owner, step, stepwise)
    to_lora(new, tmp_path)
    assert [what for what, _ in itertools.groupby(seen)] == ["old", "refused", "new"]
    seen.clear()
    to_lora(new, tmp_path)
    assert set(seen) == {"new"}  # equal layers and ranks: one rename
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
