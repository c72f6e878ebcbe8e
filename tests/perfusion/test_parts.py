"""Words, positions, photos, statistics and the concept file."""

from __future__ import annotations

import contextlib
import dataclasses
import io

import numpy as np
import pytest
import torch
from PIL import Image
from rankedit_recipes.diffusion.statistics import read_captions, second_moment
from rankedit_recipes.diffusion.targets import find_targets, reads
from rankedit_recipes.diffusion.text import encode, positions, required_positions, token_mask
from rankedit_recipes.diffusion.words import NewWords, check_known, check_trigger, embedding_layers
from rankedit_recipes.perfusion.concept import Concept
from rankedit_recipes.perfusion.errors import PerfusionError
from rankedit_recipes.perfusion.learning.config import Config
from rankedit_recipes.perfusion.learning.data import Latents, cached_latents, draw
from rankedit_recipes.perfusion.learning.photos import Photo, load_photos
from rankedit_recipes.perfusion.prompts import filled

import rankedit as rk
from tests.perfusion import pipelines
from tests.perfusion.concepts import CAPTIONS, random_concept


@pytest.fixture(scope="module")
def pipe():
    return pipelines.stable_diffusion()


# ------------------------------------------------------------------------ targets and texts


@pytest.mark.parametrize(
    ("make", "count", "width", "direct"),
    [
        ("stable_diffusion", 4, 32, True),
        ("stable_diffusion_xl", 8, 96, True),
        ("pixart", 2, 24, False),
        ("sana", 2, 8, False),
    ],
)
def test_keys_and_values_are_found_by_running_the_model(make, count, width, direct):
    found = find_targets(getattr(pipelines, make)())
    assert len(found.keys) == len(found.values) == count
    assert all(name.endswith("attn2.to_k") for name in found.keys)
    assert all(name.endswith("attn2.to_v") for name in found.values)
    assert (found.width, found.direct) == (width, direct)


def test_names_do_not_matter(pipe):
    renamed = pipelines.stable_diffusion()
    attention = renamed.unet.mid_block.attentions[0].transformer_blocks[0].attn2

    class Swapped:
        """The attention's processor of diffusers, told that keys are values."""

        def __init__(self, own):
            self.own = own

        def __call__(self, attn, *args, **kwargs):
            attn.to_k, attn.to_v = attn.to_v, attn.to_k
            try:
                return self.own(attn, *args, **kwargs)
            finally:
                attn.to_k, attn.to_v = attn.to_v, attn.to_k

    attention.processor = Swapped(attention.processor)
    name = "mid_block.attentions.0.transformer_blocks.0.attn2"
    found = find_targets(renamed)
    assert found.keys[1] == f"{name}.to_v"
    assert found.values[1] == f"{name}.to_k"


def test_what_projections_read_is_what_the_model_gives_them():
    pipe = pipelines.pixart()
    encoded = encode(pipe, ["a photo of a cat", "a dog"])
    expected = pipe.transformer.caption_projection(encoded.embeds)
    torch.testing.assert_close(reads(pipe, encoded), expected)


def test_positions_of_phrases_and_of_every_occurrence(pipe):
    prompts = ["a teddy bear and a teddy bear", "a bear", "a cat"]
    assert positions(pipe, prompts, "teddy bear", 24) == [[3, 7], [], []]
    assert positions(pipe, prompts, "bear", 24) == [[3, 7], [2], []]
    with pytest.raises(PerfusionError, match=r"'cat' is not among the 24 tokens.*'a dog'"):
        required_positions(pipe, ["a cat", "a dog"], "cat", 24)
    cut = " ".join(["a"] * 30) + " cat"
    with pytest.raises(PerfusionError, match="nearer to the beginning"):
        required_positions(pipe, [cut], "cat", 24)
    with pytest.raises(PerfusionError, match="a list of at least one prompt"):
        encode(pipe, "a cat")


def test_token_policies(pipe):
    prompts = ["a cat", "a teddy bear"]
    encoded = encode(pipe, prompts)
    for tokens, counts in {"all": [24, 24], "eos": [4, 5], "content": [2, 3]}.items():
        assert token_mask(pipe, prompts, encoded, tokens).sum(1).tolist() == counts
    with pytest.raises(PerfusionError, match="tokens must be 'all', 'eos' or 'content'"):
        token_mask(pipe, prompts, encoded, "some")
    masked = pipelines.pixart()
    found = encode(masked, prompts)
    assert token_mask(masked, prompts, found, "all").sum(1).tolist() == [3, 4]


# ------------------------------------------------------------------------ new words


def test_new_words_stand_where_they_should_and_leave_no_trace(pipe):
    row = torch.randn(32, requires_grad=True)
    before = encode(pipe, ["a cat on grass"]).embeds
    tokenizer, layer = pipe.tokenizer, embedding_layers(pipe.text_encoder)[0]
    state = list(pipe.text_encoder.state_dict())
    words = NewWords(pipe, {"<bean>": [row]})
    assert positions(pipe, ["a <bean>, my <bean>"], "<bean>", 24)[0] == [2, 5]
    inside = encode(pipe, ["a <bean> on grass"]).embeds
    inside.square().sum().backward()
    assert float(row.grad.norm()) > 0
    assert torch.equal(encode(pipe, ["a cat on grass"]).embeds, before)
    assert list(pipe.text_encoder.state_dict()) == state
    words.remove()
    assert pipe.tokenizer is tokenizer
    assert type(layer) is torch.nn.Embedding
    assert torch.equal(encode(pipe, ["a cat on grass"]).embeds, before)


def test_new_words_under_offloading():
    accelerate = pytest.importorskip("accelerate")
    pipe = pipelines.stable_diffusion()
    row = torch.randn(32)
    words = NewWords(pipe, {"<bean>": [row]})
    expected = encode(pipe, ["a <bean>"]).embeds.detach()
    words.remove()
    for part in (pipe.text_encoder, pipe.vae, pipe.unet):
        accelerate.cpu_offload(part, execution_device="cpu")
    before = encode(pipe, ["a cat"]).embeds
    words = NewWords(pipe, {"<bean>": [row]})
    torch.testing.assert_close(encode(pipe, ["a <bean>"]).embeds, expected)
    words.remove()
    assert torch.equal(encode(pipe, ["a cat"]).embeds, before)


def test_a_new_word_does_not_become_the_end_of_the_text():
    # The pooled output of old configurations is taken at the highest token number.
    pipe = pipelines.stable_diffusion_xl()
    plain = encode(pipe, ["a cat on grass"]).pooled
    rows = [torch.zeros(32), torch.zeros(64)]
    words = NewWords(pipe, {"<bean>": rows})
    assert torch.equal(encode(pipe, ["a cat on grass"]).pooled, plain)
    ends = [encode(pipe, [f"a <bean> on {place}"]).pooled for place in ("grass", "beach")]
    words.remove()
    assert not torch.equal(*ends)  # a pooled word would not see what follows it
    assert pipe.text_encoder_2.config.eos_token_id == 2


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("", "one word without spaces"),
        ("my bean", "one word without spaces"),
        ("cat", "already a word"),
        ("a", "already a word"),
        ("<|endoftext|>", "already a word"),
    ],
)
def test_words_that_cannot_be_new_are_refused(pipe, word, message):
    with pytest.raises(PerfusionError, match=message):
        check_trigger(pipe, word)


def test_categories_that_a_model_has_no_words_for_are_refused(pipe):
    check_known(pipe, "teddy bear")
    with pytest.raises(PerfusionError, match=r"a word or two that the model knows.*got ' '"):
        check_known(pipe, " ")
    with pytest.raises(PerfusionError, match=r"got 'red hamster'.*does not know \['hamster'\]"):
        check_known(pipelines.pixart(), "red hamster")


def test_words_are_not_found_inside_others(pipe):
    words = NewWords(pipe, {"zzcat1": [torch.zeros(32)]})
    try:
        assert positions(pipe, ["a zzcat1 zzcat10"], "zzcat1", 24)[0] == [2]
    finally:
        words.remove()
    with pytest.raises(PerfusionError, match=r"embeddings of widths \[5\].*have \[32\]"):
        NewWords(pipe, {"<bean>": [torch.zeros(5)]})


# ------------------------------------------------------------------------ photos


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
    data = cached_latents(pipe, [Photo("a", image, mask), Photo("b", image)], 16)
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


# ------------------------------------------------------------------------ statistics


def test_the_second_moment_is_that_of_what_is_read(pipe, tmp_path):
    moment = second_moment(pipe, CAPTIONS, cache=tmp_path, progress=False)
    read = encode(pipe, CAPTIONS).embeds.double().reshape(-1, 32)
    torch.testing.assert_close(moment.matrix, read.T @ read / len(read), rtol=1e-5, atol=1e-6)
    (file,) = tmp_path.iterdir()
    stamp = file.stat().st_mtime_ns
    again = second_moment(pipe, CAPTIONS, cache=tmp_path, progress=False)
    assert torch.equal(again.matrix, moment.matrix)
    assert file.stat().st_mtime_ns == stamp
    second_moment(pipe, CAPTIONS[:9], cache=tmp_path, progress=False)
    second_moment(pipe, CAPTIONS, tokens="content", cache=tmp_path, progress=False)
    second_moment(pipelines.stable_diffusion(seed=1), CAPTIONS, cache=tmp_path, progress=False)
    assert len(list(tmp_path.iterdir())) == 4  # other captions, tokens and weights: other files
    rk.save(rk.SecondMoment(32).update(torch.ones(1, 32)), file)
    with pytest.raises(PerfusionError, match="does not hold the statistics that its name says"):
        second_moment(pipe, CAPTIONS, cache=tmp_path, progress=False)


def test_captions_come_from_any_text_file(tmp_path):
    (tmp_path / "c.txt").write_text("a cat\n\n  a dog  \n")
    assert read_captions(tmp_path / "c.txt") == ["a cat", "a dog"]
    (tmp_path / "none.txt").write_text("\n")
    for name, message in {"none.txt": "is empty", "nowhere": "there is no file"}.items():
        with pytest.raises(PerfusionError, match=message):
            read_captions(tmp_path / name)
    with pytest.raises(PerfusionError, match="at least one text"):
        second_moment(pipelines.stable_diffusion(), [" "])


# ------------------------------------------------------------------------ the file


def test_a_concept_survives_its_file(pipe, tmp_path):
    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "PNG")
    concept = dataclasses.replace(
        random_concept(pipe), notes={"model": "tiny"}, preview=picture.getvalue()
    )
    concept.save(tmp_path / "c.safetensors")
    loaded = Concept.load(tmp_path / "c.safetensors")
    for name in ("trigger", "category", "lock", "bias", "temperature", "templates", "statistics",
                 "base", "sketch", "notes", "preview"):  # fmt: skip
        assert getattr(loaded, name) == getattr(concept, name), name
    for ours, theirs in [(loaded.key, concept.key), (loaded.image, concept.image)]:
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    loaded.save(tmp_path / "again.safetensors")
    files = [(tmp_path / f"{name}.safetensors").read_bytes() for name in ("c", "again")]
    assert files[0] == files[1]


def test_a_damaged_sketch_is_refused(pipe, tmp_path):
    dataclasses.replace(random_concept(pipe), sketch="x").save(tmp_path / "c.safetensors")
    with pytest.raises(PerfusionError, match=r"c\.safetensors' has a damaged sketch"):
        Concept.load(tmp_path / "c.safetensors")


def test_files_of_other_kinds_are_refused(tmp_path):
    rk.save(rk.LowRank(torch.ones(2, 1), torch.ones(1, 2)), tmp_path / "edit.safetensors")
    with pytest.raises(PerfusionError, match=r"no concept file; `rankedit info .* says what it"):
        Concept.load(tmp_path / "edit.safetensors")
    texts = {"perfusion": "9", "trigger": "<bean>", "category": "cat"}
    rk.save({"embedding.0": torch.ones(2)}, tmp_path / "new.safetensors", metadata=texts)
    with pytest.raises(PerfusionError, match=r"version 1: its version is '9', it lacks \['lock'\]"):
        Concept.load(tmp_path / "new.safetensors")
    with pytest.raises(PerfusionError, match="templates must be prompts"):
        filled(["a photo"], "cat")


def _sized(tmp_path, blocks, width, embeddings):
    """Size of the file of a model with cross-attention at these names and widths."""
    generator = torch.Generator().manual_seed(0)

    def normal(size):
        return torch.randn(size, generator=generator)

    values = {f"{name}.transformer_blocks.{i}.attn2.to_v": normal(size)
              for name, depth, size in blocks for i in range(depth)}  # fmt: skip
    key = normal(width)
    concept = Concept("<bean>", "cat", key, 2 * key + 0.1 * normal(width), values,
                      [normal(size) for size in embeddings], statistics="0" * 16, base="0" * 16,
                      notes={"model": "UNet2DConditionModel", "photos": "5, 0123456789abcdef",
                             "step": "400", "config": "0123456789abcdef"})  # fmt: skip
    concept.save(tmp_path / "c.safetensors")
    return (tmp_path / "c.safetensors").stat().st_size


def test_sizes_of_concept_files(tmp_path):
    sizes = (320, 640, 1280)
    down = [(f"down_blocks.{b}.attentions.{a}", 1, sizes[b]) for b in range(3) for a in range(2)]
    up = [(f"up_blocks.{b}.attentions.{a}", 1, sizes[3 - b]) for b in (1, 2, 3) for a in range(3)]
    middle = [("mid_block.attentions.0", 1, 1280)]
    assert _sized(tmp_path, [*down, *up, *middle], 768, [768]) <= 32_768
    down = [(f"down_blocks.{b}.attentions.{a}", d, s) for b, d, s in ((1, 2, 640), (2, 10, 1280))
            for a in range(2)]  # fmt: skip
    up = [(f"up_blocks.{b}.attentions.{a}", d, s) for b, d, s in ((0, 10, 1280), (1, 2, 640))
          for a in range(3)]  # fmt: skip
    middle = [("mid_block.attentions.0", 10, 1280)]
    assert _sized(tmp_path, [*down, *up, *middle], 2048, [768, 1280]) <= 200_000


def test_times_are_stratified_over_the_batch():
    latents = Latents(torch.zeros(4, 1, 2, 2), torch.ones(4, 1, 2, 2), 16, "")
    for step in range(20):
        times = draw(latents, 3, 1000, 8, flip=True, seed=0, step=step).times
        assert (times // 125).sort().values.tolist() == list(range(8))
    every = [draw(latents, 3, 1000, 8, flip=True, seed=0, step=s).times for s in range(400)]
    # Each position of the batch still sees all times: mean 499.5, standard error 14.4.
    assert all(abs(float(times.float().mean()) - 499.5) < 72 for times in torch.stack(every).T)


def test_rates_fall_to_zero_at_the_end():
    config = Config(steps=10, decay=0.5)
    assert [config.rate_at(step) for step in (0, 5, 6, 9)] == [1.0, 1.0, 0.8, 0.2]
    assert Config(steps=10, decay=0.0).rate_at(9) == 1.0
    with pytest.raises(PerfusionError, match=r"decay must be in \[0, 1\], got 2"):
        Config(decay=2.0)
