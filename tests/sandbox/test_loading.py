"""Loading: offline, the same picture for the same seed, and clear words for broken files."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from rankedit_recipes import sandbox
from rankedit_recipes.sandbox.images.autoencoder import fit_autoencoder
from rankedit_recipes.sandbox.images.exporting import revision, write_pipeline
from rankedit_recipes.sandbox.images.loading import FILES, REBUILD, load_weights_into
from rankedit_recipes.sandbox.images.models import assemble, build_text_encoder, build_unet
from rankedit_recipes.sandbox.images.samples import generate, tile
from rankedit_recipes.sandbox.images.scenes import draw_scene, rng_of
from rankedit_recipes.sandbox.images.tokenizer import build_tokenizer
from rankedit_recipes.sandbox.images.views import pixels_of
from rankedit_recipes.sandbox.shipped import read_weights


@pytest.fixture
def folder(tmp_path):
    """A tiny pipeline on disk, as the exporter writes it."""
    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    parts = (
        build_text_encoder(len(tokenizer), width=32, layers=1),
        build_unet(4, 8, (32, 32), text_width=32),
    )
    pixels = pixels_of([draw_scene(rng_of(i)) for i in range(20)], 16)
    autoencoder = fit_autoencoder(pixels, patch=4, channels=8)
    write_pipeline(assemble(autoencoder, parts[0], tokenizer, parts[1]), tmp_path)
    return tmp_path


def test_same_seed_same_picture(folder):
    pipe = sandbox.pipeline(folder)
    first, again = (generate(pipe, ["a red cup", "a cat"], steps=2) for _ in range(2))
    assert first.shape == (2, 16, 16, 3)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, generate(pipe, ["a red cup", "a cat"], seed=1, steps=2))


def test_loading_draws_nothing_from_the_global_generator(folder):
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    sandbox.pipeline(folder)
    assert torch.equal(torch.rand(3), wanted)


def test_the_layout_is_the_one_of_diffusers(folder):
    mine = sandbox.pipeline(folder)
    theirs = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    theirs.set_progress_bar_config(disable=True)
    pictures = [generate(pipe.to(torch.float32), ["a cat"], steps=2) for pipe in (mine, theirs)]
    np.testing.assert_array_equal(*pictures)


@pytest.mark.parametrize("name", sorted(FILES))
def test_broken_weights_are_named_with_the_command(folder, name):
    file = folder / FILES[name]
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(sandbox.WeightsError, match=rf"{file.name} is corrupt.*sandbox\.train"):
        sandbox.pipeline(folder)
    file.unlink()
    with pytest.raises(sandbox.WeightsError, match=rf"{file.name} is missing.*sandbox\.train"):
        sandbox.pipeline(folder)


def test_weights_of_another_shape_are_corrupt(folder):
    (folder / FILES["unet"]).write_bytes((folder / FILES["vae"]).read_bytes())
    with pytest.raises(sandbox.WeightsError, match=r"corrupt.*sandbox\.train"):
        sandbox.pipeline(folder)


def test_broken_settings_are_named(folder):
    (folder / "unet" / "config.json").write_text("{")
    with pytest.raises(sandbox.WeightsError, match=r"config\.json is corrupt"):
        sandbox.pipeline(folder)
    (folder / "tokenizer" / "tokenizer.json").unlink()
    (folder / "unet" / "config.json").unlink()
    with pytest.raises(sandbox.WeightsError, match=r"config\.json is missing"):
        sandbox.pipeline(folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_half_a_tokenizer_is_refused_with_the_command_that_makes_it(folder, name):
    (folder / "tokenizer" / name).unlink()
    with pytest.raises(sandbox.WeightsError, match=rf"{name} is missing.*--preset cpu --export"):
        sandbox.pipeline(folder)


def test_training_goes_on_from_16_bit_weights(folder):
    tokenizer = build_tokenizer()
    modules = torch.nn.ModuleDict(
        {
            "text_encoder": build_text_encoder(len(tokenizer), width=32, layers=1),
            "unet": build_unet(4, 8, (32, 32), text_width=32),
        }
    )
    load_weights_into(modules, folder)
    stored = read_weights(folder / FILES["unet"], REBUILD)
    weight = modules["unet"].conv_in.weight
    assert weight.dtype == torch.float32
    assert torch.equal(weight, stored["conv_in.weight"])


def test_judges_that_do_not_ship_are_named(monkeypatch, tmp_path):
    monkeypatch.setattr("rankedit_recipes.sandbox.images.loading.JUDGES", tmp_path)
    for load in (sandbox.attribute_judge, sandbox.identity_embedding, sandbox.world_clip):
        with pytest.raises(sandbox.WeightsError, match=r"safetensors is missing.*--judges"):
            load()


def test_concepts_need_no_torch():
    code = (
        "import sys; from rankedit_recipes import sandbox; sandbox.concept('bean').photos(1);"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_unknown_names():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = sandbox.nothing
    assert set(sandbox.__all__) >= {"pipeline", "concept", "evaluate", "train"}


def test_grids():
    pictures = np.arange(4 * 2 * 2 * 3, dtype=np.uint8).reshape(4, 2, 2, 3)
    grid = np.asarray(tile(pictures, 2, zoom=1))
    np.testing.assert_array_equal(grid[:2, 2:], pictures[1])
    np.testing.assert_array_equal(grid[2:, :2], pictures[2])


def test_the_revision_is_a_hash_or_unknown():
    assert revision() == "unknown" or len(revision()) == 40
