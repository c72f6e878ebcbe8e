"""LoRA files in PEFT and transformers: weights change by ΔW, and nothing else."""

import json
import warnings

import pytest
import torch
from torch import nn

from rankedit.files.lora import from_lora, to_lora
from rankedit.models.selecting import select
from tests.lora_cases import assert_changed_by, assert_same, edit_for, weights

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")


@pytest.fixture(autouse=True)
def quiet():
    """Other libraries' warnings are not ours to mend."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers.logging.set_verbosity_error()
        yield


def gpt2() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=64, n_positions=32)
    return transformers.GPT2LMHeadModel(config).eval()


def llama() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=64,
    )
    return transformers.LlamaForCausalLM(config).eval()


@pytest.mark.parametrize(
    ("make", "pattern", "transposed"),
    [(gpt2, "*.mlp.c_proj", True), (llama, "*.mlp.down_proj", False), (llama, "*proj", False)],
)
@pytest.mark.parametrize("mixed", [False, True])
def test_peft_adds_exactly_the_edit(tmp_path, make, pattern, transposed, mixed):
    model = make()
    edits = {
        name: edit_for(layer, 1 + i % 3 if mixed else 1, seed=i)
        for i, (name, layer) in enumerate(select(model, pattern).items())
    }
    to_lora(edits, tmp_path / "adapter", model=model)
    before = weights(model)
    with warnings.catch_warnings():
        # A missing key or a wrong fan_in_fan_out is only a warning.
        warnings.simplefilter("error", UserWarning)
        wrapped = peft.PeftModel.from_pretrained(model, str(tmp_path / "adapter"))
    with wrapped.disable_adapter():
        plain = wrapped(torch.arange(8)[None]).logits
    assert torch.equal(plain, make()(torch.arange(8)[None]).logits)
    merged = wrapped.merge_and_unload()
    # PEFT multiplies the factors itself: with more than one term the sum may round otherwise.
    tolerance = 0.0 if not mixed else 1e-5
    assert_changed_by(merged, before, edits, transposed=transposed, tolerance=tolerance)
    assert_same(from_lora(tmp_path / "adapter"), edits)


def test_transformers_loads_the_adapter_without_wrapping_the_model(tmp_path):
    model = llama()
    edits = {n: edit_for(layer, 1) for n, layer in select(model, "*.mlp.down_proj").items()}
    to_lora(edits, tmp_path, config={"task_type": "CAUSAL_LM", "base_model_name_or_path": "tiny"})
    tokens = torch.arange(8)[None]
    expected = llama()
    with torch.no_grad():
        for name, edit in edits.items():
            expected.get_submodule(name).weight += edit.delta()
        model.load_adapter(str(tmp_path))
        torch.testing.assert_close(model(tokens).logits, expected(tokens).logits)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["task_type"], config["r"], config["lora_alpha"]) == ("CAUSAL_LM", 1, 1)


def test_an_adapter_that_peft_saved_is_read_with_its_scale(tmp_path):
    model = llama()
    config = peft.LoraConfig(
        r=2,
        lora_alpha=6,
        target_modules=["q_proj", "down_proj"],
        rank_pattern={"down_proj": 3},
        alpha_pattern={"layers.0.mlp.down_proj": 12},
    )
    wrapped = peft.get_peft_model(model, config)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(generator=generator)
    wrapped.save_pretrained(str(tmp_path))
    edits = from_lora(tmp_path)
    before = weights(llama())
    assert len(edits) == 4
    assert edits["model.layers.0.mlp.down_proj"].rank == 3
    assert_changed_by(wrapped.merge_and_unload(), before, edits, tolerance=1e-5)
