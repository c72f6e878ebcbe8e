"""What ships: small enough, as its provenance says, and able to do what the card claims."""

import json

import pytest
import torch
from rankedit_recipes import sandbox
from rankedit_recipes.sandbox.checkpoint import sha256
from rankedit_recipes.sandbox.evaluate import table
from rankedit_recipes.sandbox.images.captions import caption
from rankedit_recipes.sandbox.images.checks import OF_DRAWN, category_likeliest, colours_right
from rankedit_recipes.sandbox.images.evaluation import Figure, identity_figures
from rankedit_recipes.sandbox.images.identity import embed
from rankedit_recipes.sandbox.images.judge import judge
from rankedit_recipes.sandbox.images.labels import largest_category_cosine
from rankedit_recipes.sandbox.images.loading import FILES, JUDGES, WEIGHTS
from rankedit_recipes.sandbox.images.samples import generate
from rankedit_recipes.sandbox.images.scenes import draw_scene, draw_single, rng_of
from rankedit_recipes.sandbox.images.views import pixels_of


@pytest.fixture(scope="module")
def pipe():
    return sandbox.pipeline()


@pytest.fixture(scope="module")
def judging():
    return sandbox.attribute_judge()


def size_of(folder):
    return sum(file.stat().st_size for file in folder.rglob("*.safetensors"))


def test_weights_are_small():
    assert size_of(WEIGHTS) <= 12_000_000
    assert size_of(JUDGES) <= 6_000_000


def test_weights_are_those_of_the_provenance():
    made = json.loads((WEIGHTS / "provenance.json").read_text())
    assert made["sha256"] == {name: sha256(WEIGHTS / file) for name, file in FILES.items()}
    lines = [json.loads(s) for s in (WEIGHTS / "training-log.jsonl").read_text().splitlines()]
    assert lines[0]["preset"]["size"] == made["preset"]["size"] == 48
    assert max(line.get("step", 0) for line in lines) <= made["step"]


def test_nouns_can_be_told_apart(pipe):
    assert largest_category_cosine(pipe.text_encoder, pipe.tokenizer) < 0.9


def test_the_judge_knows_the_world(judging):
    scenes = [draw_scene(rng_of("shipped", i)) for i in range(100)]
    says = judge(judging, pixels_of(scenes))
    for name, check in OF_DRAWN.items():
        assert sum(check(says, scenes)) >= 97, name


def test_identities_survive_the_autoencoder(pipe):
    area, signal, kept = identity_figures(sandbox.identity_embedding(), pipe.vae, 80, 48)
    assert area.value > 0.97
    assert signal.value > 30
    assert kept.value > 0.97


def test_identities_are_found_without_being_told_where(judging):
    model = sandbox.identity_embedding()
    bean, other = sandbox.concept("bean"), sandbox.concept("whiskers")
    vectors = []
    for concept in (bean, bean, other):
        photos = concept.photos(4, seed=len(vectors))
        pixels = pixels_of([photo.scene for photo in photos])
        vectors.append(embed(model, judging, pixels, "cat"))
    same, different = vectors[0] @ vectors[1].T, vectors[0] @ vectors[2].T
    assert same.min() > different.max()


def test_the_generator_draws_what_it_is_told(pipe, judging):
    scenes = [draw_single(rng_of("drawn", i), skinned=0.0) for i in range(16)]
    texts = [caption(scene, rng_of("told", i), full=True) for i, scene in enumerate(scenes)]
    says = judge(judging, torch.from_numpy(generate(pipe, texts, steps=12)))
    assert sum(category_likeliest(says, scenes)) >= 12
    assert sum(colours_right(says, scenes)) >= 12


def test_the_clip_prefers_true_captions():
    model, tokenizer = sandbox.world_clip()
    scenes = [draw_single(rng_of("clip", i), skinned=0.0) for i in range(12)]
    texts = [caption(scene, rng_of("clip", i), full=True) for i, scene in enumerate(scenes)]
    tokens = tokenizer(texts, padding="max_length", return_tensors="pt")["input_ids"]
    pictures = pixels_of(scenes).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        scores = model(input_ids=tokens, pixel_values=pictures).logits_per_image
    assert (scores.argmax(1) == torch.arange(12)).sum() >= 9


def test_the_table_names_what_was_missed():
    rows = table([Figure("a", 0.5, 0.9, 10), Figure("b", 0.5, 0.9, 10, below=True)])
    assert list(rows.columns[4].cells) == ["missed", "reached"]
    assert list(rows.columns[2].cells) == ["≥ 0.9", "< 0.9"]
