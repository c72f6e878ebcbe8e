"""LoRA files: what is refused, on the way out and on the way in."""

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from rankedit.edits import LowRank
from rankedit.errors import EditFileError, ProjectionError, ShapeError
from rankedit.files.lora import DIFFUSERS, KOHYA, PEFT, from_lora, to_lora
from rankedit.gated import GatedEdit
from rankedit.metric import Metric

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


# -------------------------------------------------------------------- refusals of to_lora


def test_a_gated_edit_is_refused_until_it_is_linearised(path):
    layer = nn.Linear(3, 4, bias=False)
    gated = GatedEdit(normal(1, 3), normal(1, 4), Metric.identity(3))
    with pytest.raises(
        EditFileError, match=r"'a' must be a LowRank edit, got GatedEdit.*linearised"
    ):
        to_lora({"a": gated}, path)
    assert not path.exists()
    linear = gated.linearised(lambda keys: layer(keys.float()).detach())
    to_lora({"a": linear}, path)
    torch.testing.assert_close(from_lora(path)["a"].delta(), linear.delta().float())


def test_to_lora_refuses_what_it_cannot_express(path):
    cases = [
        ({}, {}, "must be a mapping of names to edits"),
        (low_rank(), {}, "must be a mapping of names to edits"),
        ({"a": normal(2, 2)}, {}, "must be a LowRank edit, got Tensor"),
        ({"../a": low_rank()}, {}, "names consist of letters"),
        ({"a": low_rank()}, {"layout": KOHYA}, "begin with one of unet.*component='unet'"),
        (
            {"a.b": low_rank(), "a_b": low_rank()},
            {"layout": KOHYA, "component": "transformer"},
            "both",
        ),
        (
            {"unet.class_embedding.linear_1": low_rank()},
            {"layout": KOHYA},
            "diffusers cannot tell which layer.*layout 'diffusers'",
        ),
        ({"text_encoder.a.wi_0": low_rank()}, {"layout": KOHYA}, "diffusers cannot tell"),
        ({"a": low_rank()}, {"metadata": {1: "a"}}, "metadata: a key must be text"),
        ({"a": low_rank()}, {"metadata": {"a": 1}}, "metadata 'a' must be text"),
    ]
    for edits, options, message in cases:
        with pytest.raises(EditFileError, match=f"to_lora: .*{message}"):
            to_lora(edits, path, **options)
    with pytest.raises(ShapeError, match=r"down of 'a' must be finite.*pass a wider dtype"):
        to_lora(
            {"a": LowRank(normal(2, 1).double(), torch.full((1, 2), 1e99, dtype=torch.float64))},
            path,
        )
    with pytest.raises(ShapeError, match="dtype must be one of"):
        to_lora({"a": low_rank()}, path, dtype=torch.int8)
    with pytest.raises(ProjectionError, match="'a'"):
        to_lora({"a": low_rank()}, path, model=nn.Sequential(nn.Linear(3, 4)))
    assert not path.exists()


# -------------------------------------------------------------------- refusals of from_lora

GOOD = {"a.lora_A.weight": normal(2, 3), "a.lora_B.weight": normal(4, 2)}
BROKEN = {
    "no_up": ({"a.lora_A.weight": normal(2, 3)}, "lacks up"),
    "no_down": ({"a.lora_B.weight": normal(2, 3)}, "lacks down"),
    "only_alpha": ({"a.alpha": torch.tensor(1.0)}, "lacks down and up"),
    "ranks_differ": (GOOD | {"a.lora_B.weight": normal(4, 3)}, "parts that do not fit"),
    "vector": (GOOD | {"a.lora_B.weight": normal(4)}, "matrices or 1x1 convolutions"),
    "large_kernel": (GOOD | {"a.lora_A.weight": normal(2, 3, 3, 3)}, "matrices or 1x1"),
    "five_axes": (GOOD | {"a.lora_A.weight": normal(2, 3, 1, 1, 1)}, "at most 4 axes"),
    "integers": (GOOD | {"a.lora_A.weight": torch.ones(2, 3, dtype=torch.int8)}, "dtype"),
    "nan": (GOOD | {"a.lora_A.weight": torch.full((2, 3), float("nan"))}, "NaN or infinity"),
    "infinity": (GOOD | {"a.lora_A.weight": torch.full((2, 3), float("inf"))}, "NaN or infinity"),
    "alpha_of_1e9": (GOOD | {"a.alpha": torch.tensor(1e9)}, "alpha of 'a' must give a scale"),
    "alpha_negative": (GOOD | {"a.alpha": torch.tensor(-1.0)}, "alpha of 'a' must give a scale"),
    "alpha_vector": (GOOD | {"a.alpha": torch.ones(2)}, "must be one number"),
    "dora": (GOOD | {"a.lora_magnitude_vector": normal(4)}, "not a part of a plain LoRA"),
    "bias": (GOOD | {"a.lora_B.bias": normal(4)}, "not a part of a plain LoRA"),
    "loha": ({"a.hada_w1_a": normal(4, 2)}, "not a part of a plain LoRA"),
    "goes_up": ({f"../{name}": t for name, t in GOOD.items()}, "names consist"),
    "two_conventions": (
        GOOD | {"a.lora_down.weight": normal(2, 3), "a.lora_up.weight": normal(4, 2)},
        "two tensors for",
    ),
    "two_groups": (
        GOOD | {f"module.{name}": t for name, t in GOOD.items()},
        "two groups of tensors belong to one layer",
    ),
    "flat_name": ({f"lora_unet_{n}": t.clone() for n, t in GOOD.items()}, "cannot be told"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_loras_are_refused(path, name):
    tensors, message = BROKEN[name]
    foreign(path, **{key: tensor.clone() for key, tensor in tensors.items()})
    with pytest.raises(EditFileError, match=f"from_lora: .*{message}.*Nothing was loaded"):
        from_lora(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not valid JSON"),
        ("[]", "must be a JSON object"),
        ('{"peft_type":"LOHA"}', "only plain LoRA"),
        ('{"use_dora":true}', "only plain LoRA"),
        ('{"lora_alpha":NaN}', "holds NaN"),
        ('{"lora_alpha":"8"}', "finite number"),
        ('{"lora_alpha":1e9}', "must give a scale"),
        ('{"lora_alpha":0}', "must give a scale"),
        ('{"lora_alpha":1,"lora_alpha":2}', "twice"),
        ('{"alpha_pattern":{"(a+)+$":2}}', r"the key '\(a\+\)\+\$', a regular expression beyond"),
        ('{"alpha_pattern":[]}', ""),
        ('{"alpha_pattern":[1]}', "must be a JSON object"),
        ('{"a":' + "[" * 100_000, "nested too deeply"),
        (" " * (1 << 20) + "{}", "may have 1048576 bytes"),
    ],
)
def test_broken_configurations_are_refused(tmp_path, text, message):
    foreign(tmp_path / "adapter_model.safetensors", **GOOD)
    (tmp_path / "adapter_config.json").write_text(text)
    if not message:
        assert list(from_lora(tmp_path)) == ["a"]
        return
    with pytest.raises(EditFileError, match=message):
        from_lora(tmp_path)


def test_every_truncation_of_a_lora_is_refused(path):
    to_lora({"a": low_rank()}, path, layout=DIFFUSERS)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(EditFileError):
            from_lora(path)


def test_a_component_that_is_not_there_is_named(path):
    to_lora({"a": low_rank()}, path, layout=DIFFUSERS, component="unet")
    with pytest.raises(EditFileError, match=r"no layer in component 'transformer'.*unet\.a"):
        from_lora(path, component="transformer")


def test_flat_names_that_two_layers_share_are_not_guessed(path):
    to_lora({"a.b": low_rank()}, path, layout=KOHYA, component="unet")
    with pytest.raises(EditFileError, match=r"cannot be told from its name \(2 candidates\)"):
        from_lora(path, component="unet", modules=["a.b", "a_b"])
    assert list(from_lora(path, modules=["unet.a.b", "text_encoder.x", "other"])) == ["unet.a.b"]


def test_metadata_of_another_shape_is_refused(path):
    for text, message in (("[]", "must be a JSON object"), ('{"unet.lora_alpha":[]}', "finite")):
        foreign(path, {"lora_adapter_metadata": text}, **GOOD)
        with pytest.raises(EditFileError, match=message):
            from_lora(path)
