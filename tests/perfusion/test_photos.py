"""Photos, and what is drawn of them."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest
import torch
from PIL import Image
from rankedit_recipes.diffusion.parts import Parts
from rankedit_recipes.perfusion.errors import PerfusionError
from rankedit_recipes.perfusion.learning.data import Latents, cached_latents, draw
from rankedit_recipes.perfusion.learning.photos import Photo, load_photos

import rankedit as rk
from tests.diffusion import pipelines


@pytest.fixture(scope="module")
def pipe():
    return pipelines.stable_diffusion()


def test_photos_as_people_have_them(tmp_path):
    left = np.zeros((4, 6, 3), np.uint8)
    left[:, :3] = 255
    turned = Image.fromarray(np.rot90(left).copy())
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to see it upright
    turned.save(tmp_path / "a-turned.png", exif=exif)
    alpha = np.zeros((4, 4, 4), np.uint8)
    alpha[..., 0], alpha[:2, :, 3] = 255, 255
    Image.fromarray(alpha).save(tmp_path / "b-alpha.png")
    Image.fromarray(np.full((4, 4), 1000, np.uint16)).save(tmp_path / "c-deep.png")
    Image.new("CMYK", (4, 4), (0, 255, 255, 0)).save(tmp_path / "d-cmyk.jpg", quality=95)
    Image.new("P", (4, 4)).save(tmp_path / "e-palette.gif")
    Image.new("RGB", (4, 4)).save(tmp_path / "photo-1.png")
    Image.new("L", (4, 4), 9).save(tmp_path / "mask-1.png")
    photos = {photo.name: photo for photo in load_photos(tmp_path)}
    assert list(photos) == sorted(photos)
    assert len(photos) == 6
    upright = np.asarray(photos["a-turned.png"].image)
    assert upright.shape == (4, 6, 3)
    assert np.array_equal(upright, left)
    shown = np.asarray(photos["b-alpha.png"].image)[:, 0].tolist()
    assert shown == [[255, 0, 0]] * 2 + [[255] * 3] * 2
    assert np.asarray(photos["b-alpha.png"].mask)[:, 0].tolist() == [255, 255, 0, 0]
    assert np.asarray(photos["c-deep.png"].image).max() == 4  # 1000 of 65535, not white
    red = np.asarray(photos["d-cmyk.jpg"].image)[0, 0]
    assert red[0] > 200 > 60 > red[1]
    assert photos["photo-1.png"].mask.getpixel((0, 0)) == 9


def test_photos_that_cannot_be_used_are_named_and_the_rest_is_used(tmp_path, monkeypatch):
    whole = io.BytesIO()
    Image.effect_noise((40, 40), 50).save(whole, "PNG")
    (tmp_path / "broken.png").write_bytes(whole.getvalue()[:300])
    (tmp_path / "text.jpg").write_text("not a picture")
    with pytest.raises(PerfusionError, match=r"no photo that can be used.*broken\.png.*text\.jpg"):
        load_photos(tmp_path)
    (tmp_path / "good.png").write_bytes(whole.getvalue())
    with pytest.warns(rk.RankeditWarning) as warned:
        photos = load_photos(tmp_path)
    assert [photo.name for photo in photos] == ["good.png"]
    assert {str(w.message).split("'")[1] for w in warned} == {"broken.png", "text.jpg"}
    monkeypatch.setattr("rankedit_recipes.perfusion.learning.photos.MOST_PIXELS", 100)
    with pytest.raises(PerfusionError, match="40 x 40 pixels, at most 100"):
        load_photos(tmp_path / "good.png")


def test_other_things_about_photos(tmp_path):
    with pytest.raises(PerfusionError, match="no file or folder"):
        load_photos(tmp_path / "nowhere")
    with pytest.raises(PerfusionError, match="it is empty"):
        load_photos(tmp_path)
    with pytest.raises(PerfusionError, match="at least one photo"):
        load_photos([])
    Image.new("RGB", (4, 4)).save(tmp_path / "x.png")
    Image.new("L", (5, 4)).save(tmp_path / "x.mask.png")
    with pytest.raises(PerfusionError, match=r"its mask 'x\.mask\.png' must have the photo's size"):
        load_photos(tmp_path)


def test_mutated_pictures_never_crash(tmp_path):
    stream = io.BytesIO()
    Image.effect_noise((16, 16), 60).convert("RGB").save(stream, "PNG")
    data, rng = bytearray(stream.getvalue()), np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        mutated = bytearray(data)
        for index in rng.integers(0, len(data), 4):
            mutated[index] = rng.integers(256)
        (tmp_path / "m.png").write_bytes(mutated)
        with contextlib.suppress(PerfusionError):
            assert len(load_photos(tmp_path / "m.png")) == 1
            continue
        refused += 1
    assert refused > 0


def test_latents_are_cached_with_their_mirror_images_and_masks(pipe):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (24, 16, 3), dtype=np.uint8))
    mask = Image.new("L", (16, 24), 0)
    mask.paste(128, (0, 0, 8, 24))
    data = cached_latents(Parts(pipe), [Photo("a", image, mask), Photo("b", image)], 16)
    assert data.latents.shape == (4, 4, 8, 8)
    assert data.masks.shape == (4, 1, 8, 8)
    assert data.masks[0, 0, 0].tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
    assert data.masks[2, 0, 0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert bool((data.masks[1] == 1).all())
    straight = draw(data, 3, 1000, 64, flip=False, seed=1, step=5)
    assert int(straight.photos.max()) == 1
    assert int(draw(data, 3, 1000, 64, flip=True, seed=1, step=5).photos.max()) == 3
    again = draw(data, 3, 1000, 64, flip=False, seed=1, step=5)
    assert torch.equal(straight.noise, again.noise)
    next_step = draw(data, 3, 1000, 64, flip=False, seed=1, step=6)
    assert not torch.equal(straight.noise, next_step.noise)


def test_times_are_stratified_over_the_batch():
    latents = Latents(torch.zeros(4, 1, 2, 2), torch.ones(4, 1, 2, 2), 16, "")
    for step in range(20):
        times = draw(latents, 3, 1000, 8, flip=True, seed=0, step=step).times
        assert (times // 125).sort().values.tolist() == list(range(8))
    every = [draw(latents, 3, 1000, 8, flip=True, seed=0, step=s).times for s in range(400)]
    # Each position of the batch still sees all times: mean 499.5, standard error 14.4.
    assert all(abs(float(times.float().mean()) - 499.5) < 72 for times in torch.stack(every).T)
