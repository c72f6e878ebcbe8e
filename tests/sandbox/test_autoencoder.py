"""The patch autoencoder: principal components, in the shape that diffusers expects."""

import numpy as np
import pytest
import torch
from rankedit_recipes.sandbox.images.autoencoder import PatchAutoencoder, fit_autoencoder
from rankedit_recipes.sandbox.images.judge import as_input
from rankedit_recipes.sandbox.images.renderer import render
from rankedit_recipes.sandbox.images.scenes import draw_scene, rng_of


@pytest.fixture(scope="module")
def pixels():
    pictures = [render(draw_scene(rng_of("ae", i))).pixels for i in range(240)]
    return torch.from_numpy(np.stack(pictures))


@pytest.fixture(scope="module")
def autoencoder(pixels):
    return fit_autoencoder(pixels[:200], patch=4, channels=24)


def test_held_out_pictures_survive(autoencoder, pixels):
    pictures = as_input(pixels[200:])
    latents = autoencoder.encode(pictures).latent_dist.sample()
    assert latents.shape == (40, 24, 12, 12)
    error = (autoencoder.decode(latents).sample - pictures).square().mean()
    assert 10 * torch.log10(4 / error) > 30


def test_all_components_rebuild_exactly(pixels):
    everything = fit_autoencoder(pixels[:200], patch=4, channels=48)
    pictures = as_input(pixels[200:])
    rebuilt = everything.pictures(everything.latents(pictures))
    # Not quite exact: the mean patch is one colour in the decoder.
    assert (rebuilt - pictures).abs().max() < 0.05


def test_latents_are_centred_with_unit_mean_square(autoencoder, pixels):
    latents = autoencoder.latents(as_input(pixels[:200]))
    assert latents.mean((0, 2, 3)).abs().max() < 1e-3
    assert latents.square().mean() == pytest.approx(1.0, abs=0.02)
    spread = latents.std((0, 2, 3))
    assert (spread[:-1] >= spread[1:] - 1e-3).all()


def test_components_are_uncorrelated(autoencoder, pixels):
    latents = autoencoder.latents(as_input(pixels[:200]))
    rows = latents.permute(1, 0, 2, 3).flatten(1)
    correlation = torch.corrcoef(rows) - torch.eye(24)
    assert correlation.abs().max() < 1e-2


def test_the_same_pictures_give_the_same_autoencoder(autoencoder, pixels):
    again = fit_autoencoder(pixels[:200], patch=4, channels=24)
    torch.testing.assert_close(again.encoder.weight, autoencoder.encoder.weight)


def test_diffusers_conventions(autoencoder, pixels, tmp_path):
    pictures = as_input(pixels[:2])
    wrapped = autoencoder.encode(pictures).latent_dist
    (bare,) = autoencoder.encode(pictures, return_dict=False)
    assert torch.equal(wrapped.mode(), bare.sample(torch.Generator()))
    (decoded,) = autoencoder.decode(bare.mean, return_dict=False)
    assert torch.equal(decoded, autoencoder.decode(bare.mean).sample)
    assert 2 ** (len(autoencoder.config.block_out_channels) - 1) == 4
    autoencoder.save_pretrained(tmp_path)
    loaded = PatchAutoencoder.from_pretrained(tmp_path)
    assert torch.equal(loaded.encoder.weight, autoencoder.encoder.weight)
