"""Names in LoRA files: what wrappers put before them, other dialects, PEFT's patterns."""

import json
import re

import pytest
import safetensors.torch
import torch
from hypothesis import given, reject
from hypothesis import strategies as st

from rankedit.edits import LowRank
from rankedit.errors import EditFileError
from rankedit.files.lora import from_lora, to_lora
from rankedit.files.lora_patterns import NamePatterns
from tests.lora_cases import normal


@pytest.fixture
def path(tmp_path):
    return tmp_path / "lora.safetensors"


def edit_of(seed: int = 0) -> LowRank:
    return LowRank(normal(4, 2, seed=seed), normal(2, 3, seed=seed + 1))


def foreign(path, *stems: str, down=".lora_A.weight", up=".lora_B.weight") -> None:
    tensors = {}
    for i, stem in enumerate(stems):
        tensors |= {stem + down: edit_of(i).down, stem + up: edit_of(i).up}
    safetensors.torch.save_file(tensors, path)


# -------------------------------------------------------------------- wrappers and dialects


@pytest.mark.parametrize(
    "stem",
    [
        "layers.0.q",
        "module.layers.0.q",
        "module.module.layers.0.q",
        "_orig_mod.layers.0.q",
        "module._orig_mod.layers.0.q",
        "_orig_mod.module.layers.0.q",
        "layers.0._fsdp_wrapped_module.q",
        "layers.0._checkpoint_wrapped_module._orig_mod.q",
        "layers.0.base_layer.q",
    ],
)
@pytest.mark.parametrize(
    ("down", "up"),
    [
        (".lora_A.weight", ".lora_B.weight"),
        (".lora_A.default.weight", ".lora_B.default.weight"),
        (".lora_down.weight", ".lora_up.weight"),
    ],
)
def test_what_wrappers_add_to_names_is_taken_away(path, stem, down, up):
    foreign(path, stem, down=down, up=up)
    if ".default." in down:  # names that only PEFT gives, whose files do not say the strength
        with pytest.raises(EditFileError, match=r"LoRA's strength in adapter_config\.json"):
            from_lora(path)
        config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2}
        path.with_name("adapter_config.json").write_text(json.dumps(config))
    assert torch.equal(from_lora(path)["layers.0.q"].delta(), edit_of().delta())


@pytest.mark.parametrize(
    "prefix",
    [
        "base_model.model.",
        "base_model.model.base_model.model.",
        "module.base_model.model.",
        "base_model.model.module.",
        "_orig_mod.base_model.model.",
        "base_model.model._orig_mod.",
    ],
)
def test_nests_of_peft_models_are_taken_away(tmp_path, prefix):
    to_lora({"layers.0.q": edit_of()}, tmp_path)
    foreign(tmp_path / "adapter_model.safetensors", f"{prefix}layers.0.q")
    assert torch.equal(from_lora(tmp_path)["layers.0.q"].delta(), edit_of().delta())


def test_a_layer_that_is_really_called_module_keeps_its_name(path):
    foreign(path, "module.layers.0.q", "lora_x", "wrap.base_layer.q")
    names = ["module.layers.0.q", "lora_x", "wrap.base_layer.q"]
    assert from_lora(path, modules=names).keys() == set(names)


def test_two_adapters_for_one_layer_are_refused(path):
    foreign(path, "module.a", "_orig_mod.a")
    with pytest.raises(EditFileError, match="two groups of tensors belong to one layer"):
        from_lora(path)


@pytest.mark.parametrize("component", ["text_encoder", "text_encoder_2", "text_encoder_3"])
@pytest.mark.parametrize("old_names", [False, True])
def test_text_encoders_with_and_without_the_step_that_transformers_dropped(
    path, component, old_names
):
    name = "encoder.layers.0.mlp.fc1"
    flat = {"text_encoder": "te1", "text_encoder_2": "te2", "text_encoder_3": "te3"}[component]
    modules = [f"text_model.{name}" if old_names else name]
    for stem, options in (
        (f"{component}.text_model.{name}", {}),
        (f"{component}._orig_mod.text_model.{name}", {}),
        (
            f"lora_{flat}_text_model_{name.replace('.', '_')}",
            {"down": ".lora_down.weight", "up": ".lora_up.weight"},
        ),
    ):
        foreign(path, stem, **options)
        assert list(from_lora(path, component=component, modules=modules)) == modules


def test_flat_names_that_cannot_be_told_say_what_is_missing(path):
    for stem in ("lora_unet_double_blocks_0_img_attn_proj", "lora_unet_input_blocks_4_1_proj_in",
                 "lora_prior_x", "lycoris_blocks_0_q"):  # fmt: skip
        foreign(path, stem, down=".lora_down.weight", up=".lora_up.weight")
        with pytest.raises(EditFileError, match=r"cannot be told.*pass modules= with the names"):
            from_lora(path)
        with pytest.raises(EditFileError, match=r"another family of models.*named_modules"):
            from_lora(path, component="unet", modules=["down_blocks.1.attentions.0.proj_in"])


# -------------------------------------------------------------------- patterns

PIECES = ["a", "b", ".", r"\.", "(a|b)", "a*", "b+", ".*", "(ab)?", "[ab]", "[^a]", "^", "$", "|",
          r"\d+", r"\w", "1", "(a.|b|)", "(q|k)_proj", "layers", "*",
          "+", "?", "(", ")"]  # fmt: skip


@given(
    st.lists(st.sampled_from(PIECES), min_size=1, max_size=7).map("".join),
    st.lists(st.sampled_from(["a", "b", ".", "1", "q_proj", "layers"]), min_size=1).map("".join),
)
def test_patterns_match_as_peft_matches_them(pattern, name):
    try:
        expected = bool(re.match(rf"(.*\.)?({pattern})$", name))
        read = NamePatterns({pattern: 1.0}, "x")
    except (EditFileError, re.error):
        reject()  # what is refused is tested below
    assert (read.first(name) is not None) == expected


def test_the_first_pattern_that_matches_wins():
    patterns = NamePatterns({r"layers\.[01]\.q": 1.0, "q": 2.0, r".*": 3.0}, "alpha_pattern")
    names = ["a.layers.0.q", "layers.2.q", "head", "iq"]
    assert [patterns.first(name) for name in names] == [1.0, 2.0, 3.0, 3.0]


@pytest.mark.parametrize(
    "pattern",
    ["(a+)+$", "a{2}", "(?=a)", "a**", "a+?", "(", ")", "(a", "a)", "a|*", r"\1", r"(a)\1",
     "((a))", "(a)b|c", "(a|b)" * 9, "(ab)*", "(a|b)+c", "(a)??",
     "[z-a]", "[]", r"\s", "a b", "(" * 250, "a" * 300 + "*", "(?i)a"],
)  # fmt: skip
def test_patterns_beyond_those_are_refused_with_a_remedy(pattern):
    with pytest.raises(EditFileError, match=r"regular expression beyond.*write out the names"):
        NamePatterns({pattern: 1.0}, "alpha_pattern")


def test_no_pattern_takes_long(tmp_path):
    """Backtracking engines need 2**100 steps for some of these: they would never end."""
    name = "a" * 256
    for pattern in (".*a?" * 50 + "b", "(a|a)" * 8 + "b", "a?" * 100 + "a" * 50 + "b"):
        assert NamePatterns({pattern: 1.0}, "x").first(name) is None
    to_lora({f"a{i}": edit_of() for i in range(100)}, tmp_path)
    config = (tmp_path / "adapter_config.json").read_text()
    many = ", ".join(f'".*{i}": 2' for i in range(500))
    changed = config.replace('"alpha_pattern": {}', f'"alpha_pattern": {{{many}}}')
    (tmp_path / "adapter_config.json").write_text(changed)
    with pytest.raises(EditFileError, match="would need 5000000 comparisons for 100 layers"):
        from_lora(tmp_path)
