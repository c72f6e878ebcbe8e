"""Captions say what is true, in words the tokenizer knows, of skins only what they are asked."""

import pytest
from rankedit_recipes.sandbox.images.captions import caption
from rankedit_recipes.sandbox.images.scenes import draw_pair, draw_scene, draw_single, rng_of
from rankedit_recipes.sandbox.images.skins import MARKS, PALETTE, PATTERNS
from rankedit_recipes.sandbox.images.tokenizer import LENGTH, build_tokenizer
from rankedit_recipes.sandbox.images.vocabulary import (
    COLOURS,
    MARK_WORDS,
    PATTERN_WORDS,
    RELATIONS,
    SCENES,
    SKIN_COLOURS,
    STYLES,
    skin_words,
    words,
)


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def test_skins_go_unnamed_unless_asked_for():
    for i in range(300):
        rng = rng_of("skinned", i)
        text = caption(draw_scene(rng, skinned=1.0), rng).split()
        assert not set(text) & {*COLOURS, *skin_words()}


def test_described_skins_are_described_truly():
    told = 0
    for i in range(300):
        rng = rng_of("described", i)
        scene = draw_single(rng, skinned=1.0)
        skin = scene.things[0].skin
        text = f" {caption(scene, rng, described=1.0)} "
        pattern = [PATTERN_WORDS[skin.pattern], *(SKIN_COLOURS[c] for c in skin.colours)]
        assert f" {' '.join(pattern)} {scene.things[0].category} " in text
        badge = f" {SKIN_COLOURS[skin.mark_colour]} {skin.mark} "
        told += badge in text
        assert (badge in text) == any(f" {mark} " in text for mark in MARK_WORDS)
    assert 150 < told < 250


def test_descriptions_draw_nothing_when_they_are_off():
    scene = draw_pair(rng_of("off"), skinned=1.0)
    first, second = rng_of("same"), rng_of("same")
    assert caption(scene, first) == caption(scene, second, described=0.0)
    assert first.random() == second.random()


def test_words_of_skins_come_last_in_the_tokenizer():
    without, known = build_tokenizer(skins=False).get_vocab(), build_tokenizer().get_vocab()
    assert {word: known[word] for word in without} == without
    assert set(known) - set(without) == set(skin_words())
    assert set(PATTERN_WORDS) == set(PATTERNS)
    assert MARK_WORDS == MARKS
    assert len(SKIN_COLOURS) == len(PALETTE)


def test_full_captions_leave_nothing_out():
    for i in range(100):
        rng = rng_of("full", i)
        scene = draw_pair(rng, skinned=0.0)
        text = caption(scene, rng, full=True)
        for thing in scene.things:
            assert f"{thing.colour} {thing.category}" in text
        assert any(phrase in text for phrase in SCENES[scene.background])
        assert any(phrase in text for phrase in STYLES[scene.style])
        assert " and " not in text


def test_relations_are_true_in_either_order():
    for i in range(100):
        rng = rng_of("relation", i)
        scene = draw_pair(rng, skinned=0.0)
        text = caption(scene, rng, full=True)
        places = sorted(scene.things, key=lambda t: text.index(f"{t.colour} {t.category}"))
        first, second = places
        told = next(
            name
            for name in ("left", "right", "above", "below")
            if any(f" {phrase} " in text for phrase in RELATIONS[name])
        )
        truth = {
            "left": first.x < second.x,
            "right": first.x > second.x,
            "above": first.y < second.y,
            "below": first.y > second.y,
        }
        assert truth[told], text


def test_captions_vary():
    scene = draw_single(rng_of(0), skinned=0.0)
    assert len({caption(scene, rng_of("vary", i)) for i in range(50)}) > 10


def test_articles():
    texts = [caption(draw_scene(rng_of("an", i)), rng_of("an", i)) for i in range(200)]
    assert not any(" a orange" in f" {text}" or " an red" in f" {text}" for text in texts)


def test_every_caption_is_known_to_the_tokenizer_and_fits(tokenizer):
    for i in range(300):
        rng = rng_of("fits", i)
        text = caption(draw_scene(rng, skinned=0.5), rng, full=i % 2 == 0, described=0.9)
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert len(ids) <= LENGTH
        assert (ids[0], ids[-1]) == (2, 3)


def test_one_token_a_word(tokenizer):
    assert len(tokenizer) == len(words()) + len(skin_words()) + 4
    assert len(tokenizer("A RED cup")["input_ids"]) == 5


def test_new_words_can_be_added():
    tokenizer = build_tokenizer()
    assert tokenizer.add_tokens("<bean>") == 1
    ids = tokenizer("a photo of a <bean> on the beach", padding="max_length")["input_ids"]
    assert ids[5] == len(tokenizer) - 1
    assert len(ids) == LENGTH
