"""One file serves the same weights in every precision, and no other ones."""

import copy
import warnings

import pytest
import torch
from rankedit_recipes import language
from rankedit_recipes.language.model.bases import base_marks

import rankedit as rk
from tests.language.models import LLAMA, TEXTS, build, family, quick, some_requests, tokenizer

pytestmark = pytest.mark.filterwarnings("ignore::rankedit.RankeditWarning")


def wide(name="llama"):
    """Wide enough for 8 bits, whose kernels want whole blocks."""
    kind = {"llama": ("Llama", {**LLAMA, "intermediate_size": 64})}
    return build(*kind[name]) if name in kind else family(name)[0]


def in_8_bits(model):
    bnb = pytest.importorskip("bitsandbytes")
    model = copy.deepcopy(model)
    for index in range(3):
        name = f"model.layers.{index}.mlp.down_proj"
        old = model.get_submodule(name)
        new = bnb.nn.Linear8bitLt(old.in_features, old.out_features, False, has_fp16_weights=False)
        new.load_state_dict(old.state_dict())
        model.set_submodule(name, new.to("cpu").eval().requires_grad_(False))
    return model


def in_4_bits(model):
    bnb = pytest.importorskip("bitsandbytes")
    model = copy.deepcopy(model)
    for index in range(3):
        name = f"model.layers.{index}.mlp.down_proj"
        old = model.get_submodule(name)
        new = bnb.nn.Linear4bit(old.in_features, old.out_features, False, quant_type="nf4")
        new.load_state_dict(old.state_dict())
        model.set_submodule(name, new.to("cpu").eval().requires_grad_(False))
    return model


FORMS = {
    "float32": copy.deepcopy,
    "bfloat16": lambda model: copy.deepcopy(model).bfloat16(),
    "float16": lambda model: copy.deepcopy(model).half(),
    "int8": in_8_bits,
}


def statistics_file(model, path):
    language.collect_statistics(model, tokenizer(), TEXTS[:4], progress=False).save(path, model)
    return path


@pytest.fixture(autouse=True)
def no_warnings_of_bitsandbytes():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "MatMul8bitLt|.*quantiz", UserWarning)
        yield


@pytest.mark.parametrize("made", ["float32", "bfloat16", "int8"])
def test_statistics_serve_every_precision_of_the_same_weights(tmp_path, made):
    model = wide()
    file = statistics_file(FORMS[made](model), tmp_path / "s.safetensors")
    for form in FORMS.values():
        found = language.load_statistics(file, form(model), tokenizer())
        assert list(found) == [f"model.layers.{i}.mlp.down_proj" for i in range(3)]


@pytest.mark.parametrize("name", ["gpt2", "opt"])
def test_other_layouts_serve_too(tmp_path, name):
    model = wide(name)
    file = statistics_file(model, tmp_path / "s.safetensors")
    found = language.load_statistics(file, FORMS["bfloat16"](model), tokenizer())
    assert len(found) == 3


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("change", ["seed", "tuned", "one layer", "scaled"])
def test_other_weights_are_refused_in_every_precision(tmp_path, form, change):
    model = wide()
    file = statistics_file(model, tmp_path / "s.safetensors")
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    downs = [other.get_submodule(f"model.layers.{i}.mlp.down_proj").weight for i in range(3)]
    for weight in downs[1:2] if change == "one layer" else downs:
        noise = torch.randn(weight.shape, generator=generator)
        if change == "seed":
            weight.data = noise * weight.std()
        elif change == "scaled":
            weight.data *= 1.05
        else:
            weight.data += 0.05 * noise * weight.std()
    with pytest.raises(
        rk.EditFileError, match=r"another base model: .* differ by .* of their size"
    ):
        language.load_statistics(file, FORMS[form](other), tokenizer())


def test_edits_are_checked_alike(tmp_path):
    model = wide()
    statistics = language.collect_statistics(model, tokenizer(), TEXTS[:4], progress=False)
    edited = language.edit(
        model, tokenizer(), some_requests(2), quick("memit"), statistics=statistics, progress=False
    )
    edited.save(tmp_path / "e.safetensors", model=model)
    loaded = rk.load(tmp_path / "e.safetensors")
    for form in FORMS.values():
        language.check_base(form(model), loaded)
    # What has edits in it is no base model.
    with edited.attach(model), pytest.raises(rk.EditFileError, match="another base model"):
        language.check_base(FORMS["bfloat16"](model), loaded)


def test_four_bits_go_by_fingerprints(tmp_path):
    model = wide()
    small = in_4_bits(model)
    assert base_marks(small, ["model.layers.0.mlp.down_proj"]) == {}
    file = statistics_file(model, tmp_path / "s.safetensors")
    with pytest.raises(rk.EditFileError, match="another base model"):
        language.load_statistics(file, small, tokenizer())
    language.load_statistics(statistics_file(small, tmp_path / "4"), small, tokenizer())


def test_files_without_sketches_or_with_strange_ones_go_by_fingerprints(tmp_path):
    model = wide()
    half = FORMS["bfloat16"](model)
    names = [f"model.layers.{i}.mlp.down_proj" for i in range(3)]
    moments = language.collect_statistics(model, tokenizer(), TEXTS[:4], progress=False)
    right = base_marks(model, names)
    for marks in (
        {},
        {**right, "sketches": "x,y,z"},
        {**right, "sketches": ",,"},
        {**right, "sketches": right["sketches"].split(",")[0]},
        {**base_marks(wide("gpt2"), [f"transformer.h.{i}.mlp.c_proj" for i in range(3)])},
        {"rounding": "9", "sketches": base_marks(build("Llama", LLAMA), names[:1])["sketches"]},
    ):
        file = tmp_path / "s.safetensors"
        rk.save(moments, file, metadata={"language": "statistics", **marks}, model=model)
        with pytest.raises(rk.EditFileError, match="check_base: "):
            language.load_statistics(file, half, tokenizer())
        language.load_statistics(file, model, tokenizer())
        file.unlink()


def test_weights_of_zero_are_the_same_in_every_precision(tmp_path):
    model = wide()
    model.get_submodule("model.layers.1.mlp.down_proj").weight.data.zero_()
    file = statistics_file(model, tmp_path / "s.safetensors")
    found = language.load_statistics(file, FORMS["bfloat16"](model), tokenizer())
    assert len(found) == 3
