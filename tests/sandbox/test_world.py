"""The picture world: the same seed draws the same picture, and masks tell the truth."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from rankedit_recipes.sandbox.images import cache
from rankedit_recipes.sandbox.images.backgrounds import paint_background
from rankedit_recipes.sandbox.images.cache import drawn_pictures, scene_of
from rankedit_recipes.sandbox.images.renderer import render
from rankedit_recipes.sandbox.images.scenes import (
    Scene,
    Thing,
    draw_pair,
    draw_scene,
    draw_single,
    rng_of,
)
from rankedit_recipes.sandbox.images.shapes import SHAPES, parts
from rankedit_recipes.sandbox.images.skins import MARKS, PALETTE, PATTERNS, draw_skin
from rankedit_recipes.sandbox.images.vocabulary import CATEGORIES, COLOURS, SCENES


def plain(*things: Thing) -> Scene:
    return Scene(things, "plain", "photo", seed=3)


def test_the_world_is_as_rich_as_promised():
    assert len(CATEGORIES) >= 10
    assert len(COLOURS) >= 8
    assert len(SCENES) >= 6
    assert set(SHAPES) == set(CATEGORIES)


def test_same_seed_same_picture():
    first, second = (render(draw_scene(rng_of("a", 5))).pixels for _ in range(2))
    assert hashlib.sha256(first).digest() == hashlib.sha256(second).digest()


def test_other_seeds_other_pictures():
    pictures = {render(draw_scene(rng_of("a", i))).pixels.tobytes() for i in range(30)}
    assert len(pictures) == 30


@pytest.mark.parametrize("size", [32, 48, 64])
def test_any_size(size):
    picture = render(draw_pair(rng_of(0)), size)
    assert picture.pixels.shape == (size, size, 3)
    assert picture.masks.shape == (2, size, size)


def test_impossible_size_is_refused():
    with pytest.raises(ValueError, match="size of at least 1 pixel, got 0"):
        render(draw_single(rng_of(0)), 0)


@pytest.mark.parametrize("category", CATEGORIES)
def test_the_mask_is_where_the_picture_changes(category):
    thing = Thing(category, "red", None, 0.5, 0.5, 0.6)
    far = replace(thing, x=0.5, y=9.0)
    picture, empty = render(plain(thing)), render(plain(far))
    changed = (picture.pixels != empty.pixels).any(2)
    assert not (picture.masks[0] & ~changed).any()
    # Pixels that the object covers by less than half change too: only a thin rim.
    rim = (changed & ~picture.masks[0]).sum()
    assert rim < 0.35 * picture.masks[0].sum()


def test_a_hidden_part_belongs_to_the_object_in_front():
    behind = Thing("star", "red", None, 0.45, 0.5, 0.6)
    front = Thing("cat", "blue", None, 0.6, 0.5, 0.6)
    both, alone = render(plain(behind, front)).masks, render(plain(front)).masks[0]
    assert not (both[0] & both[1]).any()
    np.testing.assert_array_equal(both[1], alone)


def test_antialiasing():
    picture = render(plain(Thing("tree", "black", None, 0.5, 0.5, 0.7))).pixels
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 15


@pytest.mark.parametrize("style", ["line", "sunset", "fog"])
def test_styles_change_the_picture_and_not_the_mask(style):
    scene = draw_single(rng_of(1), skinned=0.0)
    usual, other = render(replace(scene, style="photo")), render(replace(scene, style=style))
    assert np.abs(usual.pixels.astype(int) - other.pixels).mean() > 5
    # Lines are drawn thicker in a drawing, so that the mask may grow by a rim.
    assert (usual.masks & ~other.masks).sum() == 0


def test_all_backgrounds_differ():
    means = [paint_background(s, 192, rng_of(0)).mean((0, 1)) for s in SCENES]
    apart = np.abs(np.subtract.outer(np.array(means)[:, 0], np.array(means)[:, 0]))
    assert len({tuple(mean.round()) for mean in means}) == len(SCENES)
    assert apart.max() > 50


def test_pairs_lie_as_their_relation_says():
    for i in range(60):
        scene = draw_pair(rng_of("pair", i))
        first, second = scene.things
        holds = {
            "left": first.x < second.x - 0.3,
            "right": first.x > second.x + 0.3,
            "above": first.y < second.y - 0.3,
            "below": first.y > second.y + 0.3,
        }
        assert holds[scene.relation]
        assert first.category != second.category


def test_objects_stay_in_the_picture():
    for i in range(100):
        for thing in draw_scene(rng_of("inside", i)).things:
            assert thing.x - 0.45 * thing.size >= 0
            assert thing.x + 0.45 * thing.size <= 1


def test_skins_are_valid_and_varied():
    skins = {draw_skin(rng_of("skin", i)) for i in range(200)}
    assert len(skins) > 195
    assert {skin.pattern for skin in skins} == set(PATTERNS)
    assert {skin.mark for skin in skins} == set(MARKS)
    for skin in skins:
        assert len({*skin.colours, skin.mark_colour}) == len(skin.colours) + 1
        assert max(*skin.colours, skin.mark_colour) < len(PALETTE)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_pattern_shows_all_its_colours(pattern):
    skin = replace(draw_skin(rng_of("p")), pattern=pattern, colours=(0, 5), mark_colour=10)
    u, v = np.meshgrid(np.linspace(-1, 1, 64), np.linspace(-1, 1, 64))
    seen = {tuple(c) for c in skin.paint(u, v, (0.0, 0.0)).reshape(-1, 3)}
    assert {tuple(np.uint8(PALETTE[i])) for i in (0, 5, 10)} == seen


def test_unknown_names_list_the_known_ones():
    with pytest.raises(KeyError, match=r"unknown category 'dog'.*cup, house"):
        parts("dog")
    with pytest.raises(KeyError, match=r"unknown scene 'moon'.*plain, grass"):
        paint_background("moon", 48, rng_of(0))


def test_the_cache_holds_what_is_drawn(tmp_path):
    settings = {"seed": 4, "count": 6, "singles": 2, "size": 16, "patch": 4}
    drawn = drawn_pictures(tmp_path, **settings, workers=1)
    again = drawn_pictures(tmp_path, **settings, workers=1)
    np.testing.assert_array_equal(drawn.pixels, again.pixels)
    picture = render(scene_of(4, 5, 2), 16)
    np.testing.assert_array_equal(drawn.pixels[5], picture.pixels)
    share = drawn.objects[5].mean() / 255
    assert share == pytest.approx(picture.masks.any(0).mean(), abs=0.01)
    assert [len(scene_of(4, i, 2).things) for i in range(6)] == [1, 1, 2, 2, 2, 2]


def test_a_killed_drawing_goes_on_from_its_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "CHUNK", 2)
    settings = {"seed": 4, "count": 5, "singles": 2, "size": 16, "patch": 4}
    whole = drawn_pictures(tmp_path / "whole", **settings, workers=1)
    assert [file.suffix for file in (tmp_path / "whole").iterdir()] == [".npy", ".npy"]
    killed = tmp_path / "killed" / "pictures-4-5-2-16-4-0.5.parts"
    killed.mkdir(parents=True)
    for end, size, shape in (("", 7, (2, 16, 16, 3)), ("-objects", 9, (2, 4, 4))):
        np.save(killed / f"00000002{end}.npy", np.full(shape, size, np.uint8))
    # Half a part counts for nothing: its objects were not written.
    np.save(killed / "00000000.npy", np.zeros((2, 16, 16, 3), np.uint8))
    drawn = drawn_pictures(tmp_path / "killed", **settings, workers=1)
    assert (drawn.pixels[2:4] == 7).all()
    assert (drawn.objects[2:4] == 9).all()
    for row in (0, 1, 4):
        np.testing.assert_array_equal(drawn.pixels[row], whole.pixels[row])
    assert not killed.exists()
