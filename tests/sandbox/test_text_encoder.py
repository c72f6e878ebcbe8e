"""The text encoder's warm-up: right labels, falling loss, nouns that can be told apart."""

import torch
from rankedit_recipes.sandbox.images.labels import (
    LAYOUTS,
    largest_category_cosine,
    scene_labels,
    slots,
    warm_up,
    word_labels,
)
from rankedit_recipes.sandbox.images.models import build_text_encoder
from rankedit_recipes.sandbox.images.scenes import draw_pair, draw_single, rng_of
from rankedit_recipes.sandbox.images.tokenizer import build_tokenizer
from rankedit_recipes.sandbox.images.vocabulary import CATEGORIES, COLOURS


def test_labels_of_words():
    tokenizer = build_tokenizer()
    text = "a red cup to the left of a cat on the beach"
    tokens = tokenizer([text], return_tensors="pt")["input_ids"]
    category, colour = word_labels(tokens, tokenizer)
    assert category[0].unique().tolist() == [-100, CATEGORIES.index("cup"), CATEGORIES.index("cat")]
    assert colour[0, 3] == list(COLOURS).index("red")
    assert colour[0, 9] == len(COLOURS)


def test_labels_of_scenes_go_from_left_to_right():
    for i in range(20):
        scene = draw_pair(rng_of("labels", i), skinned=0.0)
        labels, (first, second) = scene_labels(scene), slots(scene)
        assert first.x < second.x or first.y < second.y
        assert labels["category0"] == CATEGORIES.index(first.category)
        assert labels["colour1"] == list(COLOURS).index(second.colour)
        upright = LAYOUTS[labels["layout"]] == "upright"
        assert upright == (scene.relation in ("above", "below"))


def test_labels_of_a_single_object():
    labels = scene_labels(draw_single(rng_of(1), skinned=1.0))
    assert labels["category1"] == len(CATEGORIES)
    assert labels["colour0"] == len(COLOURS)
    assert LAYOUTS[labels["layout"]] == "single"


def test_warm_up_is_reproducible_and_learns():
    tokenizer, losses = build_tokenizer(), []
    for _ in range(2):
        torch.manual_seed(0)
        encoder = build_text_encoder(len(tokenizer), width=32, layers=1)
        losses.append(warm_up(encoder, tokenizer, seed=1, steps=80, batch=16))
    assert losses[0] == losses[1]
    assert losses[0][-1] < 0.8 * losses[0][0]
    assert -1 <= largest_category_cosine(encoder, tokenizer) < 1
