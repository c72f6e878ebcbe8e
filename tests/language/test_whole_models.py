"""Models from GGUF files are edited and written whole; what cannot be is told before the work."""

import json

import pytest
import torch
from rankedit_recipes.command_line.choices import ModelChoice
from rankedit_recipes.language import LanguageError
from rankedit_recipes.language.commands import cli, opening, tasks
from rankedit_recipes.language.commands.opening import Opened, open_model
from rankedit_recipes.language.commands.saving import check_fusable
from typer.testing import CliRunner

import rankedit as rk
from tests.command_line.checkpoints import gguf_llama
from tests.language.models import build, family, tokenizer
from tests.language.test_bases import LLAMA, in_8_bits

WORDS = ["anna", "plays", "the", "violin", "piano"]
FACT = {"prompt": "{} plays the", "subject": "anna", "target": "violin"}
FEW = ["--set", "steps=2", "--set", "contexts=[]", "--set", 'cost="identity"']


def edit(*arguments):
    found = CliRunner().invoke(cli.app, ["edit", *map(str, arguments), *FEW])
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    assert found.exit_code == 0, found.output
    return found.output


@pytest.fixture
def facts(tmp_path):
    file = tmp_path / "facts.jsonl"
    file.write_text(json.dumps(FACT))
    return file


def test_a_gguf_file_is_edited_and_written_whole(tmp_path, facts):
    pytest.importorskip("gguf")
    file = gguf_llama(tmp_path / "tiny.gguf", WORDS)
    edit(
        facts, "--model", file, "--dtype", "float32", "--out", tmp_path / "e.safetensors",
        "--fuse", tmp_path / "whole",
    )  # fmt: skip
    opened = open_model(ModelChoice(str(file), "cpu", "float32"))
    whole = open_model(ModelChoice(str(tmp_path / "whole"), "cpu", "float32"))
    ids = torch.tensor([opened.tokenizer("anna plays the")["input_ids"]])
    assert whole.tokenizer("anna plays the")["input_ids"] == ids[0].tolist()
    with torch.no_grad():
        before = opened.model(input_ids=ids).logits.float()
        with rk.attach(opened.model, dict(rk.load(tmp_path / "e.safetensors"))):
            expected = opened.model(input_ids=ids).logits.float()
        found = whole.model(input_ids=ids).logits.float()
    moved = float((expected - before).norm())
    assert moved > 0
    assert float((found - expected).norm()) < 1e-2 * moved


def test_what_cannot_be_written_whole_is_told_before_the_work(tmp_path, facts, monkeypatch):
    model = in_8_bits(build("Llama", {**LLAMA, "intermediate_size": 64}))
    monkeypatch.setattr(opening, "open_model", lambda _choice: Opened("m", model, tokenizer()))
    monkeypatch.setattr(tasks.Engine, "build", lambda *_a, **_k: pytest.fail("worked first"))
    with pytest.raises(LanguageError, match=r"cannot be written with edits .* leave --fuse out"):
        edit(facts, "--model", "m", "--fuse", tmp_path / "whole")
    assert not (tmp_path / "whole").exists()


def test_only_models_that_transformers_saves_are_written():
    model, names = family("gpt2")
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    check_fusable(model, names)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    rk.unfuse_(model)  # nothing is left to take out
    with pytest.raises(LanguageError, match="has no save_pretrained"):
        check_fusable(torch.nn.Linear(2, 2), [])

    class Reader:
        def is_serializable(self):
            return False

    # As a model that was read from GGUF by other means.
    model.hf_quantizer = Reader()
    with pytest.raises(LanguageError, match="does not save models quantised by"):
        check_fusable(model, names)
