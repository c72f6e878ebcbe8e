"""Loading: offline, as transformers does, nothing drawn, and clear words for broken files."""

import subprocess
import sys

import pytest
import torch
from rankedit_recipes.sandbox import WeightsError, facts
from rankedit_recipes.sandbox.facts.exporting import export, write_model
from rankedit_recipes.sandbox.facts.model import build_model
from rankedit_recipes.sandbox.facts.presets import PRESETS
from rankedit_recipes.sandbox.facts.tokenizer import build_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

TINY = PRESETS["tiny"]


@pytest.fixture
def folder(tmp_path):
    """A tiny model on disk, as the exporter writes it."""
    tokenizer = build_tokenizer(TINY.pieces)
    write_model(build_model(TINY, len(tokenizer)), tokenizer, tmp_path)
    return tmp_path


def test_the_layout_is_the_one_of_transformers(folder):
    mine, theirs = facts.load_model(folder), AutoModelForCausalLM.from_pretrained(folder)
    tokens = facts.load_tokenizer(folder)("Maria Keller lives in", return_tensors="pt")
    same = AutoTokenizer.from_pretrained(folder)("Maria Keller lives in", return_tensors="pt")
    assert torch.equal(tokens["input_ids"], same["input_ids"])
    logits = mine(**tokens).logits
    assert logits.dtype == torch.float32
    assert torch.equal(logits, theirs.float()(**tokens).logits)


def test_a_model_is_ready_for_use(folder):
    model = facts.load_model(folder)
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    assert model.lm_head.weight is model.transformer.wte.weight
    assert facts.load_model(folder, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_loading_draws_nothing_from_the_global_generator(folder):
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    facts.load_model(folder)
    assert torch.equal(torch.rand(3), wanted)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_broken_files_of_the_model_are_named_with_the_command(folder, name):
    file = folder / name
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(WeightsError, match=rf"{name} is corrupt.*sandbox\.facts\.train --export"):
        facts.load_model(folder)
    file.unlink()
    with pytest.raises(WeightsError, match=rf"{name} is missing.*sandbox\.facts\.train --export"):
        facts.load_model(folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_broken_files_of_the_tokenizer_are_named(folder, name):
    (folder / name).write_text("{")
    with pytest.raises(WeightsError, match=rf"{name} is corrupt"):
        facts.load_tokenizer(folder)
    (folder / name).unlink()
    with pytest.raises(WeightsError, match=rf"{name} is missing"):
        facts.load_tokenizer(folder)


def test_weights_of_another_model_are_corrupt(folder, tmp_path):
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"n_layer": 2', '"n_layer": 3'))
    with pytest.raises(WeightsError, match="tensors that are not the"):
        facts.load_model(folder)


def test_nothing_to_export(tmp_path):
    with pytest.raises(WeightsError, match=r"no intact checkpoint in .*train first"):
        export(TINY, tmp_path, tmp_path)


def test_worlds_and_cases_need_no_torch():
    code = (
        "import sys; from rankedit_recipes.sandbox import facts; facts.cases(3);"
        "list(facts.corpus(count=2)); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_names_stay_what_they_are():
    # A module of the same name would shadow the function after the first import.
    for name in facts.__all__:
        assert callable(getattr(facts, name)), name
        assert callable(getattr(facts, name)), name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = facts.nothing
