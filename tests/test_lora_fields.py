"""Every field of PEFT's configuration: what is read is what PEFT merges, or it is refused."""

import dataclasses
import json
import warnings

import pytest
import safetensors.torch
import torch
from torch import nn

from rankedit.errors import EditFileError
from rankedit.files.lora import from_lora
from rankedit.files.lora_config import CONFIG_NAME, WEIGHTS_NAME
from tests.lora_cases import normal

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

RANK = 2
LAYERS = {"layers.0.q": (6, 8), "layers.1.q": (6, 6), "layers.2.c": (5, 6)}  # [out, in]

# What each field is set to. PEFT must take it, and merge what is read.
READ = {
    "task_type": {"task_type": "FEATURE_EXTRACTION"},
    "peft_type": {"peft_type": "LORA"},
    "auto_mapping": {"auto_mapping": {"base_model_class": "Model", "parent_library": "here"}},
    "peft_version": {"peft_version": "0.21.2"},
    "base_model_name_or_path": {"base_model_name_or_path": "/somewhere"},
    "revision": {"revision": "main"},
    "inference_mode": {"inference_mode": True},
    "r": {"r": 3},
    "target_modules": {"target_modules": r".*\.(q|c)"},
    "exclude_modules": {"exclude_modules": ["head"]},
    "lora_alpha": {"lora_alpha": 5},
    "lora_dropout": {"lora_dropout": 0.5},
    "fan_in_fan_out": {"fan_in_fan_out": True},
    "use_rslora": {"use_rslora": True, "lora_alpha": 3},
    "layers_to_transform": {"layers_to_transform": [2, 1, 0], "layers_pattern": "layers"},
    "layers_pattern": {"layers_pattern": ["layers"], "layers_to_transform": [0, 1, 2]},
    "rank_pattern": {"rank_pattern": {r".*\.[01]\.q": 3, "c": 1, "layers.0.q": 5}},
    "alpha_pattern": {"alpha_pattern": {r"^layers\.(0|2)\.\w+": 7, "q": 1}},
    "megatron_core": {"megatron_core": "megatron.other"},
    "loftq_config": {"loftq_config": {"loftq_bits": 8}},
    "eva_config": {"eva_config": {"rho": 1.0}, "init_lora_weights": "eva"},
    "corda_config": {"corda_config": {"verbose": True}},
    "lora_ga_config": {"lora_ga_config": {"stable_gamma": 4}},
    "qalora_group_size": {"qalora_group_size": 8},
    "init_lora_weights": {"init_lora_weights": "gaussian"},
    "runtime_config": {"runtime_config": {"ephemeral_gpu_offload": False}},
}
REFUSED = {
    "bias": "all",
    "modules_to_save": ["head"],
    "megatron_config": {"tensor_model_parallel_size": 2},
    "trainable_token_indices": [1, 2],
    "use_dora": True,
    "velora_config": {"num_groups": 4},
    "alora_invocation_tokens": [1, 2],
    "use_qalora": True,
    "monteclora_config": {"num_samples": 2},
    "layer_replication": [[0, 2], [1, 3]],
    "lora_bias": True,
    "target_parameters": ["layers.0.q.weight"],
    "use_bdlora": {"nblocks": 2},
    "arrow_config": {"top_k": 2},
    "kasa_config": {},
    "ensure_weight_tying": True,
}


@pytest.fixture(autouse=True)
def quiet():
    """PEFT tells that a field is ignored, or corrected: that is what is tested here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([nn.Module(), nn.Module(), nn.Module()])
        self.layers[0].q, self.layers[1].q = nn.Linear(8, 6), nn.Linear(6, 6)
        self.layers[2].c = transformers.pytorch_utils.Conv1D(5, 6)
        self.head = nn.Linear(5, 2)

    def forward(self, x):
        return self.head(self.layers[2].c(self.layers[1].q(self.layers[0].q(x))))


def write(folder, fields, ranks=None) -> None:
    """An adapter folder as PEFT writes it, with these fields."""
    document = {"peft_type": "LORA", "r": RANK, "lora_alpha": 4, "target_modules": ["q", "c"]}
    (folder / CONFIG_NAME).write_text(json.dumps(document | fields))
    tensors = {}
    for i, (name, (out, width)) in enumerate(LAYERS.items()):
        rank = (ranks or {}).get(name, fields.get("r", RANK))
        stem = f"base_model.model.{name}"
        tensors[f"{stem}.lora_A.weight"] = normal(rank, width, seed=i)
        tensors[f"{stem}.lora_B.weight"] = normal(out, rank, seed=i + 9)
    safetensors.torch.save_file(tensors, folder / WEIGHTS_NAME)


def merged_changes(folder) -> dict:
    model = Model()
    before = {name: model.get_submodule(name).weight.detach().clone() for name in LAYERS}
    merged = peft.PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
    changes = {n: (merged.get_submodule(n).weight - old).detach() for n, old in before.items()}
    return changes | {"layers.2.c": changes["layers.2.c"].T}


def assert_read_as_merged(folder, path=None) -> None:
    edits, changes = from_lora(path or folder), merged_changes(folder)
    assert edits.keys() == changes.keys()
    for name, change in changes.items():
        torch.testing.assert_close(edits[name].delta(), change, rtol=1e-6, atol=3e-6)
        assert float(change.norm()) > 0.1


def test_every_field_of_peft_is_decided_about():
    """A field that a new version of PEFT brings fails here until it is read or refused."""
    fields = {field.name for field in dataclasses.fields(peft.LoraConfig)}
    assert fields == READ.keys() | REFUSED.keys()
    assert not READ.keys() & REFUSED.keys()


RANKS = {"rank_pattern": {"layers.0.q": 3, "layers.1.q": 3, "layers.2.c": 1}}


@pytest.mark.parametrize("field", READ)
def test_what_is_read_is_what_peft_merges(tmp_path, field):
    write(tmp_path, READ[field], RANKS.get(field))
    assert_read_as_merged(tmp_path)
    # Somebody passes the file instead of the folder: its configuration lies beside it.
    assert_read_as_merged(tmp_path, tmp_path / WEIGHTS_NAME)


@pytest.mark.parametrize("field", REFUSED)
def test_a_field_that_may_change_what_a_and_b_mean_is_refused_by_name(tmp_path, field):
    value = REFUSED[field]
    write(tmp_path, {field: value or {"beta": 1.0}})
    for path in (tmp_path, tmp_path / WEIGHTS_NAME):
        with pytest.raises(EditFileError, match=f"only plain LoRA.*'{field}' is .*PEFT"):
            from_lora(path)
    for unset in (None, False, [], {}, ""):
        write(tmp_path, {field: unset})
        assert len(from_lora(tmp_path)) == len(LAYERS)


def test_a_field_that_nobody_knows_is_refused_where_it_is_set(tmp_path):
    write(tmp_path, {"use_something_new": False, "its_config": None})
    assert len(from_lora(tmp_path)) == len(LAYERS)
    for value in (True, 3, "x", [1], {"a": 1}):
        write(tmp_path, {"use_something_new": value})
        with pytest.raises(EditFileError, match=r"'use_something_new' is .*merge_and_unload"):
            from_lora(tmp_path)


@pytest.mark.parametrize("init", [True, False, "gaussian", "eva", "orthogonal", "mica"])
def test_beginnings_that_leave_the_base_alone_are_read(tmp_path, init):
    write(tmp_path, {"init_lora_weights": init})
    assert_read_as_merged(tmp_path)


@pytest.mark.parametrize(
    "init", ["pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga", "new", 1, 0]
)
def test_adapters_relative_to_a_changed_base_are_refused(tmp_path, init):
    write(tmp_path, {"init_lora_weights": init})
    with pytest.raises(EditFileError, match="path_initial_model_for_weight_conversion"):
        from_lora(tmp_path)


@pytest.mark.parametrize("init", ["pissa", "olora"])
@pytest.mark.parametrize("rslora", [False, True])
def test_what_peft_converted_to_the_true_base_is_read(tmp_path, init, rslora):
    """The remedy that the refusal names."""
    config = peft.LoraConfig(
        r=RANK, lora_alpha=3, target_modules=["0.q", "1.q"], use_rslora=rslora,
        init_lora_weights=init,
    )  # fmt: skip
    model = peft.get_peft_model(Model(), config)
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(str(tmp_path / "initial"))
    model.peft_config["default"].init_lora_weights = init
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data += 0.1 * normal(*parameter.shape)
    model.save_pretrained(str(tmp_path / "relative"))
    with pytest.raises(EditFileError, match=f"'init_lora_weights' is '{init}'"):
        from_lora(tmp_path / "relative")
    model.save_pretrained(
        str(tmp_path / "true"), path_initial_model_for_weight_conversion=str(tmp_path / "initial")
    )
    edits = from_lora(tmp_path / "true")
    trained = model.merge_and_unload()
    for name in ("layers.0.q", "layers.1.q"):
        change = (trained.get_submodule(name).weight - Model().get_submodule(name).weight).detach()
        torch.testing.assert_close(edits[name].delta(), change, rtol=1e-4, atol=1e-5)


def test_a_weights_file_without_its_configuration_is_refused(tmp_path):
    write(tmp_path, {})
    (tmp_path / CONFIG_NAME).unlink()
    renamed = tmp_path / "mine.safetensors"
    renamed.write_bytes((tmp_path / WEIGHTS_NAME).read_bytes())
    for path in (tmp_path, tmp_path / WEIGHTS_NAME, renamed):
        with pytest.raises(EditFileError, match=r"strength in adapter_config\.json.*put it there"):
            from_lora(path)


def test_tensors_of_another_rank_than_the_configuration_says_are_refused(tmp_path):
    for fields in ({"r": 4}, {"rank_pattern": {"q": 4}}, {"rank_pattern": {"c": 1}}):
        write(tmp_path, fields, dict.fromkeys(LAYERS, RANK))
        with pytest.raises(EditFileError, match=r"has rank 2, its configuration says [14].*again"):
            from_lora(tmp_path)


def test_two_alphas_that_differ_are_refused(tmp_path):
    write(tmp_path, {})
    tensors = safetensors.torch.load_file(tmp_path / WEIGHTS_NAME)
    for alpha in (4.0, 1.0):
        tensors |= {f"base_model.model.{name}.alpha": torch.tensor(alpha) for name in LAYERS}
        safetensors.torch.save_file(tensors, tmp_path / WEIGHTS_NAME)
        if alpha == 4:
            assert_read_as_merged(tmp_path)
    with pytest.raises(EditFileError, match=r"alpha 1 beside its tensors and 4 in the config"):
        from_lora(tmp_path)


def _written(folder, name, suffixes=(".lora_A.weight", ".lora_B.weight"), **more):
    """A PEFT adapter of scale 4 whose weights file was renamed, and what it adds."""
    down, up = torch.randn(2, 4), torch.randn(3, 2)
    tensors = {f"a{suffixes[0]}": down, f"a{suffixes[1]}": up}
    safetensors.torch.save_file(tensors, folder / name, more.pop("metadata", None))
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 8, "target_modules": ["a"], **more}
    (folder / CONFIG_NAME).write_text(json.dumps(config))
    return 4 * up @ down


@pytest.mark.parametrize("name", ["lora.safetensors", "pytorch_lora_weights.safetensors"])
@pytest.mark.parametrize("kind", ["lora_{}", "lora_{}.default", "lora.{}", "lora_linear_layer.{}"])
def test_the_configuration_beside_a_renamed_file_says_its_strength(tmp_path, name, kind):
    letters = ("A", "B") if kind.startswith("lora_{}") else ("down", "up")
    delta = _written(tmp_path, name, [f".{kind.format(n)}.weight" for n in letters])
    torch.testing.assert_close(from_lora(tmp_path / name)["a"].delta(), delta)


def test_a_configuration_that_may_be_of_another_file(tmp_path):
    _written(tmp_path, "lora.safetensors", r=4)
    with pytest.raises(EditFileError, match="has rank 2, its configuration says 4"):
        from_lora(tmp_path / "lora.safetensors")
    delta = _written(tmp_path, "adapter_model.safetensors")
    with pytest.raises(EditFileError, match=r"nothing tells whether .*another folder"):
        from_lora(tmp_path / "lora.safetensors")
    torch.testing.assert_close(from_lora(tmp_path)["a"].delta(), delta)


@pytest.mark.parametrize("key", ["ss_network_alpha", "lora_alpha", "adapter_config"])
def test_a_strength_in_foreign_metadata_is_refused(tmp_path, key):
    _written(tmp_path, "lora.safetensors", metadata={key: "8"})
    (tmp_path / CONFIG_NAME).unlink()
    with pytest.raises(EditFileError, match=f"its metadata has '{key}', .* alpha as a tensor"):
        from_lora(tmp_path / "lora.safetensors")


def test_the_state_dict_of_peft_alone_tells_no_strength(tmp_path):
    _written(tmp_path, "lora.safetensors", (".lora_A.default.weight", ".lora_B.default.weight"))
    (tmp_path / CONFIG_NAME).unlink()
    with pytest.raises(EditFileError, match=r"strength in adapter_config\.json"):
        from_lora(tmp_path / "lora.safetensors")
