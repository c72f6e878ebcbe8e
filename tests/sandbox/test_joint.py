"""The joint-attention model: trained, killed, resumed, exported, loaded and drawn from."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from rankedit_recipes import sandbox
from rankedit_recipes.sandbox.checkpoint import latest_checkpoint, save_checkpoint
from rankedit_recipes.sandbox.images import loading
from rankedit_recipes.sandbox.images.batches import make_batch
from rankedit_recipes.sandbox.images.exporting import export, write_pipeline
from rankedit_recipes.sandbox.images.joint_models import JointPipeline, build_transformer
from rankedit_recipes.sandbox.images.joint_trainer import JointTrainer
from rankedit_recipes.sandbox.images.loading import files_of, joint_pipeline
from rankedit_recipes.sandbox.images.presets import PRESETS
from rankedit_recipes.sandbox.images.probe import Probe
from rankedit_recipes.sandbox.images.run import Run, pictures_of, run, training_of
from rankedit_recipes.sandbox.images.samples import generate
from rankedit_recipes.sandbox.images.trainer import Trainer

TINY = PRESETS["tiny-joint"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("joint")
    pictures_of(TINY, folder)
    return folder


@pytest.fixture(scope="module")
def drawn(folder):
    return pictures_of(TINY, folder)


@pytest.fixture(scope="module")
def base(drawn, tmp_path_factory):
    """A pipeline with a UNet, whose text encoder and autoencoder are used."""
    target = tmp_path_factory.mktemp("base")
    write_pipeline(Trainer(PRESETS["tiny"], drawn).pipeline(), target)
    return target


def train(drawn, base, steps, state=None, preset=TINY):
    trainer = JointTrainer(preset, drawn)
    if state is None:
        trainer.begin(base)
    else:
        trainer.restore(state)
    while trainer.step < steps:
        trainer.advance(make_batch(preset, drawn, trainer.tokenizer, trainer.step))
    return trainer


def test_blocks_begin_as_nothing():
    model = build_transformer(4, 8, width=32, blocks=2, text_width=16)
    text, whole = torch.randn(2, 5, 16), torch.randn(2, 16)
    found = model(torch.randn(2, 8, 4, 4), text, whole, torch.tensor([3.0, 700.0])).sample
    assert found.shape == (2, 8, 4, 4)
    assert not found.any()
    with pytest.raises(ValueError, match="build_transformer: expected a width in multiples of 32"):
        build_transformer(4, 8, width=40, blocks=1, text_width=16)


def test_the_preset_is_small_enough_to_ship():
    width, blocks = PRESETS["joint"].joint
    with torch.device("meta"):
        model = build_transformer(12, 24, width=width, blocks=blocks, text_width=128)
    assert 2 * sum(p.numel() for p in model.parameters()) <= 12_000_000


def test_going_on_from_a_checkpoint_changes_nothing(drawn, base, tmp_path):
    whole = train(drawn, base, 6).state().tensors
    save_checkpoint(tmp_path, train(drawn, base, 3).state())
    resumed = train(drawn, base, 6, latest_checkpoint(tmp_path)).state().tensors
    assert set(whole) == set(resumed)
    assert any(name.startswith("text_encoder.") for name in whole)
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name


def test_training_lowers_the_loss_and_leaves_the_text_encoder(drawn, base):
    preset = replace(TINY, steps=80, rate=3e-3)
    trainer = train(drawn, base, 0, preset=preset)
    before = {name: value.clone() for name, value in trainer.frozen.state_dict().items()}
    batch = make_batch(preset, drawn, trainer.tokenizer, 0)
    losses = [trainer.advance(batch).loss for _ in range(60)]
    assert losses[-1] < 0.8 * losses[0]
    for name, value in trainer.frozen.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_perfect_denoiser_has_no_error(drawn, base):
    trainer = train(drawn, base, 0)
    batch = make_batch(TINY, drawn, trainer.tokenizer, 0)
    latents = trainer.autoencoder.latents(batch.pixels)

    class Perfect(torch.nn.Module):
        def forward(self, noisy, features, whole, times):
            # noisy = (1 - s) x + s e, so (noisy - x) / s = e - x.
            sigma = (times / 1000).view(-1, 1, 1, 1)
            return type("Answer", (), {"sample": (noisy - latents) / sigma})

    trainer.modules["transformer"] = Perfect()
    assert float(trainer.errors(batch)[0].max()) < 1e-6


def test_times_are_logit_normal(drawn):
    preset = replace(TINY, batch=2000)
    times = make_batch(preset, drawn, JointTrainer(TINY, drawn).tokenizer, 0).times / 1000
    logits = (times / (1 - times)).log()
    assert abs(float(logits.mean())) < 0.1
    assert abs(float(logits.std()) - 1) < 0.1


def test_texts_of_another_length_are_refused(drawn, base):
    trainer = JointTrainer(replace(TINY, length=40), drawn)
    with pytest.raises(sandbox.WeightsError, match=r"reads 32 tokens .* 40; give --length 32"):
        trainer.begin(base)
    with pytest.raises(ValueError, match="expected a base of 'unet' or 'joint', got 'dit'"):
        training_of(replace(TINY, base="dit"), drawn)


def test_a_run_is_exported_loaded_and_drawn_from(folder, base, tmp_path):
    run(TINY, Run(folder, init_from=base, log_every=6, sample_every=1, probe_every=6))
    assert (folder / "log.jsonl").read_text().count('"probe"') == 3
    export(TINY, folder, tmp_path)
    assert set(files_of(tmp_path)) == {"transformer", "text_encoder", "vae"}
    pipe, theirs = joint_pipeline(tmp_path), JointPipeline.from_pretrained(tmp_path)
    theirs.set_progress_bar_config(disable=True)
    pictures = [
        generate(one.to(torch.float32), ["a red cup", "a cat"], steps=2) for one in (pipe, theirs)
    ]
    assert pictures[0].shape == (2, 16, 16, 3)
    np.testing.assert_array_equal(*pictures)
    (tmp_path / files_of(tmp_path)["transformer"]).write_bytes(b"x")
    with pytest.raises(sandbox.WeightsError, match=r"corrupt.*--preset joint --export"):
        joint_pipeline(tmp_path)


def test_prompts_are_encoded_once_for_each_picture(drawn, base):
    pipe = train(drawn, base, 0).pipeline()
    texts, negative = ["a red cup", "a cat"], "a boat"
    tokens, none, whole, none_whole = pipe.encode_prompt(
        texts, num_images_per_prompt=2, negative_prompt=negative
    )
    assert tokens.shape == none.shape == (4, 32, 128)
    assert torch.equal(tokens[0], tokens[1])
    assert not torch.equal(tokens[1], tokens[2])
    assert torch.equal(none[0], none[3])
    assert whole.shape == none_whole.shape == (4, 128)
    ids = pipe.tokenizer(["a cat"], padding="max_length", return_tensors="pt")["input_ids"]
    end = int((ids[0] == pipe.tokenizer.eos_token_id).int().argmax())
    torch.testing.assert_close(whole[2], tokens[2, end])
    with pytest.raises(ValueError, match="prompt_2 and prompt_3 to be None"):
        pipe.encode_prompt("a cat", "a dog")


def test_the_probe_asks_either_kind(drawn, base):
    trainer = train(drawn, base, 0)
    with trainer.averaged():
        found = Probe(16, 4, 4).growth(trainer)
    # Untrained, it predicts nothing, whatever it is told.
    assert all(value == 0 for name, value in found.items() if name != "right")
    assert found["right"] > 0


def test_by_its_name_without_its_weights_it_says_how_they_are_made(tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "JOINT_WEIGHTS", tmp_path / "nothing")
    with pytest.raises(sandbox.WeightsError, match=r"sandbox\.train --preset joint --export"):
        sandbox.pipeline("joint")


def test_by_its_name_with_its_weights(drawn, tmp_path, monkeypatch):
    trainer = JointTrainer(TINY, drawn)
    write_pipeline(trainer.pipeline(), tmp_path)
    monkeypatch.setattr(loading, "JOINT_WEIGHTS", tmp_path)
    assert isinstance(sandbox.pipeline("joint"), JointPipeline)
