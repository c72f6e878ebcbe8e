"""Models as people have them: folders, variants, single files, GGUF; and where they run."""

from __future__ import annotations

import sys

import pytest
import torch
from rankedit_recipes.command_line import devices
from rankedit_recipes.command_line.choices import ModelChoice
from rankedit_recipes.command_line.devices import (
    check_offload,
    chosen_device,
    chosen_dtype,
)
from rankedit_recipes.command_line.errors import CommandError
from rankedit_recipes.diffusion.opening import place
from rankedit_recipes.language.commands import loading
from rankedit_recipes.language.commands.opening import open_model
from rankedit_recipes.language.errors import LanguageError
from rankedit_recipes.perfusion.commands.opening import check_category, open_pipeline, open_scorer
from rankedit_recipes.perfusion.errors import PerfusionError

from tests.command_line.checkpoints import gguf_llama, single_file
from tests.diffusion import pipelines
from tests.language_evaluation.toys import tiny_gpt2, tokenizer

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A pipeline of diffusers in a folder, in two variants."""
    root = tmp_path_factory.mktemp("pipeline")
    pipe = pipelines.stable_diffusion()
    pipe.save_pretrained(root)
    pipelines.stable_diffusion(seed=1).save_pretrained(root, variant="fp16")
    return root


def picture(pipe):
    """Latents of a picture, which say whether all weights are where they belong."""
    pipe.set_progress_bar_config(disable=True)
    return pipe(
        "a photo of a cat", num_inference_steps=2, output_type="latent", height=16, width=16,
        generator=torch.Generator().manual_seed(0),
    ).images  # fmt: skip


# ------------------------------------------------------------------------------- where it runs


@pytest.mark.parametrize("name", ["banana", "cuda:99", "meta", "cpu:x", "xpu"])
def test_a_device_that_is_not_there_is_one_line(name):
    with pytest.raises(CommandError, match=f"--device {name} cannot be used here") as refused:
        chosen_device(name)
    assert "\n" not in str(refused.value)
    assert "this machine has cpu" in str(refused.value)
    assert len(str(refused.value)) < 300


@pytest.mark.skipif(torch.cuda.is_available(), reason="has cuda")
def test_cuda_without_a_card_is_one_line():
    with pytest.raises(
        CommandError, match=r"--device cuda cannot be used here .* give --device cpu"
    ):
        chosen_device("cuda")
    assert chosen_device("") == CPU


def test_dtypes(monkeypatch):
    assert chosen_dtype("", CPU) == torch.float32
    assert chosen_dtype("float16", CPU) == torch.float16
    with pytest.raises(CommandError, match="--dtype must be one of float32, bfloat16, float16"):
        chosen_dtype("float8", CPU)
    for able, chosen in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation, able=able: able
        )
        assert chosen_dtype("", torch.device("cuda")) == chosen


def test_offloading_needs_an_accelerator():
    for offload in ("model", "sequential"):
        with pytest.raises(CommandError, match=f"--offload {offload} is for an accelerator"):
            check_offload(offload, CPU)
    check_offload("none", CPU)
    check_offload("model", torch.device("cuda"))
    assert devices.DTYPES == ("float32", "bfloat16", "float16")


def test_an_offloaded_pipeline_makes_the_same_pictures(folder):
    choice = ModelChoice(str(folder))
    plain = picture(open_pipeline(choice))
    pipe = open_pipeline(choice)
    # The processor stands for the accelerator here: the hooks are the same.
    moved = place(pipe, CPU, "model")
    torch.testing.assert_close(picture(moved), plain)
    assert hasattr(moved.unet, "_hf_hook")


def test_sequential_offloading_is_that_of_diffusers():
    class Pipe:
        def enable_sequential_cpu_offload(self, *, device):
            self.device = device

    assert place(Pipe(), torch.device("cuda", 1), "sequential").device == torch.device("cuda", 1)


# -------------------------------------------------------------------------------- pipelines


def test_variants_of_a_folder(folder):
    usual = open_pipeline(ModelChoice(str(folder)))
    other = open_pipeline(ModelChoice(str(folder), variant="fp16"))
    assert not torch.equal(usual.unet.conv_in.weight, other.unet.conv_in.weight)
    with pytest.raises(CommandError, match="cannot be opened") as refused:
        open_pipeline(ModelChoice(str(folder), variant="fp99"))
    assert "\n" not in str(refused.value)


def test_a_single_file_is_the_pipeline_that_it_was_made_of(folder, tmp_path):
    pipe = pipelines.stable_diffusion()
    file = single_file(pipe, tmp_path / "people's own.safetensors")
    opened = open_pipeline(ModelChoice(str(file), base=str(folder)))
    assert type(opened) is type(pipe)
    torch.testing.assert_close(picture(opened), picture(pipe))
    half = open_pipeline(ModelChoice(str(file), base=str(folder), dtype="bfloat16"))
    assert half.unet.dtype == torch.bfloat16


def test_single_files_that_cannot_be_opened(folder, tmp_path):
    with pytest.raises(CommandError, match="there is no file"):
        open_pipeline(ModelChoice(str(tmp_path / "none.safetensors"), base=str(folder)))
    file = single_file(pipelines.stable_diffusion(), tmp_path / "a.safetensors")
    with pytest.raises(CommandError, match="Give --base a folder"):
        open_pipeline(ModelChoice(str(file), base=str(tmp_path / "nothing")))
    (tmp_path / "broken.safetensors").write_bytes(b"no weights")
    with pytest.raises(CommandError, match="cannot be opened") as refused:
        open_pipeline(ModelChoice(str(tmp_path / "broken.safetensors"), base=str(folder)))
    assert "\n" not in str(refused.value)
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(CommandError, match="no whole pipeline"):
        open_pipeline(ModelChoice(str(tmp_path / "m.gguf")))


def test_scorers_and_categories():
    with pytest.raises(PerfusionError, match=r"CLIP model 'nowhere/x' cannot be opened.*--clip"):
        open_scorer("nowhere/x")
    with pytest.raises(
        PerfusionError, match=r"no 'zeppelin'; give --category one of .*cat, .*tree"
    ):
        check_category("zeppelin", "sandbox")
    check_category("zeppelin", "some/model")
    check_category("cat", "sandbox")
    check_category("black cat", "sandbox")


# --------------------------------------------------------------------------- language models


def test_a_folder_of_another_kind_is_one_line(tmp_path):
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=50, d_model=16, d_ff=16, num_layers=1, num_heads=2, d_kv=8,
        decoder_start_token_id=0,
    )  # fmt: skip
    T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    with pytest.raises(LanguageError, match="is a T5ForConditionalGeneration, which is no") as said:
        open_model(ModelChoice(str(tmp_path)))
    assert "\n" not in str(said.value)
    assert len(str(said.value)) < 500


def test_a_folder_that_lacks_weights_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    tok = tokenizer()
    tiny_gpt2(tok, layers=2).save_pretrained(tmp_path)
    tok.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    kept = {n: t for n, t in load_file(file).items() if "h.1.mlp" not in n}
    save_file(kept, file, metadata={"format": "pt"})
    with pytest.raises(LanguageError, match=r"lacks 4 of the weights .* would be random numbers"):
        open_model(ModelChoice(str(tmp_path)))


def test_variants_of_a_language_model(tmp_path):
    tok = tokenizer()
    tiny_gpt2(tok, layers=2).save_pretrained(tmp_path, variant="fp16")
    tok.save_pretrained(tmp_path)
    assert open_model(ModelChoice(str(tmp_path), variant="fp16")).model.config.n_layer == 2
    with pytest.raises(LanguageError, match="cannot be opened"):
        open_model(ModelChoice(str(tmp_path)))


@pytest.mark.parametrize("offload", ["model", "sequential"])
def test_an_offloaded_language_model_gives_the_same(tmp_path, offload):
    model = tiny_gpt2(tokenizer(), layers=2)
    ids = torch.arange(6)[None]
    with torch.no_grad():
        plain = model(input_ids=ids).logits
        torch.testing.assert_close(loading.place(model, CPU, offload)(input_ids=ids).logits, plain)


def test_gguf_files(tmp_path):
    pytest.importorskip("gguf")
    file = gguf_llama(tmp_path / "tiny.gguf", ["anna", "plays", "the", "violin"])
    opened = open_model(ModelChoice(str(file), dtype="float32"))
    assert type(opened.model).__name__ == "LlamaForCausalLM"
    ids = opened.tokenizer("anna plays the")["input_ids"]
    assert opened.tokenizer.decode(ids) == "anna plays the"
    with torch.no_grad():
        before = opened.model(input_ids=torch.tensor([ids])).logits
    assert before.isfinite().all()
    # It can be saved whole, edits in it, which transformers refuses of what it read from GGUF.
    opened.model.save_pretrained(tmp_path / "whole")
    opened.tokenizer.save_pretrained(tmp_path / "whole")
    again = open_model(ModelChoice(str(tmp_path / "whole")))
    with torch.no_grad():
        torch.testing.assert_close(again.model(input_ids=torch.tensor([ids])).logits, before)


def test_gguf_without_the_package(tmp_path, monkeypatch):
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    monkeypatch.setitem(sys.modules, "gguf", None)
    monkeypatch.setattr(loading, "find_spec", lambda name: None)
    with pytest.raises(LanguageError, match="needs the package gguf: pip install gguf"):
        open_model(ModelChoice(str(tmp_path / "m.gguf")))
    with pytest.raises(LanguageError, match="there is no file"):
        open_model(ModelChoice(str(tmp_path / "none.gguf")))
    (tmp_path / "m.safetensors").write_bytes(b"")
    with pytest.raises(LanguageError, match="is a file of weights; give --model its folder"):
        open_model(ModelChoice(str(tmp_path / "m.safetensors")))
