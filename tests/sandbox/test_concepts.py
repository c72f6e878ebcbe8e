"""Personal concepts: reproducible photos with exact masks, by seed, by name and from files."""

import numpy as np
import pytest
from rankedit_recipes import sandbox
from rankedit_recipes.sandbox.images.concepts import FOLDER, NAMED, as_array
from rankedit_recipes.sandbox.images.renderer import render
from rankedit_recipes.sandbox.images.vocabulary import COLOURS


def test_the_same_seed_is_the_same_concept():
    assert sandbox.concept(7) == sandbox.concept(7)
    assert sandbox.concept(7) != sandbox.concept(8)
    assert sandbox.concept(7, category="boat").category == "boat"
    assert sandbox.concept(7, category="boat").skin == sandbox.concept(7, category="cup").skin


def test_photos_show_the_skin_in_varied_scenes():
    photos = sandbox.concept("bean").photos(6)
    assert len({photo.scene.background for photo in photos}) == 6
    for photo in photos:
        (thing,) = photo.scene.things
        assert (thing.category, thing.colour) == ("cat", None)
        assert not set(photo.caption.split()) & set(COLOURS)


def test_masks_are_exact():
    for photo in sandbox.concept("mug").photos(4):
        truth = render(photo.scene).masks[0]
        np.testing.assert_array_equal(np.asarray(photo.mask) > 127, truth)
        assert 0.05 < truth.mean() < 0.6


def test_other_seeds_other_photos():
    bean = sandbox.concept("bean")
    assert not np.array_equal(as_array(bean.photos(2)), as_array(bean.photos(2, seed=1)))


def test_two_concepts_in_one_picture():
    photos = sandbox.together(sandbox.concept("bean"), sandbox.concept("mug"), 3)
    for photo in photos:
        assert {thing.category for thing in photo.scene.things} == {"cat", "cup"}
        assert all(thing.skin for thing in photo.scene.things)


def test_at_least_twelve_concepts_ship_and_are_what_the_code_draws():
    assert len(NAMED) >= 12
    for name in NAMED:
        shipped = sandbox.read_photos(sandbox.concept(name).folder)
        drawn = sandbox.concept(name).photos()
        assert len(shipped) == len(drawn) == 5
        np.testing.assert_array_equal(as_array(shipped), as_array(drawn))
        for one, other in zip(shipped, drawn, strict=True):
            np.testing.assert_array_equal(np.asarray(one.mask), np.asarray(other.mask))
    assert sum(file.stat().st_size for file in FOLDER.rglob("*.png")) < 1_000_000


def test_saving_and_reading(tmp_path):
    sandbox.concept(9).save(tmp_path / "mine", 3)
    photos = sandbox.read_photos(tmp_path / "mine")
    np.testing.assert_array_equal(as_array(photos), as_array(sandbox.concept(9).photos(3)))


def test_refusals(tmp_path):
    with pytest.raises(LookupError, match=r"unknown name 'beans'.*bean, mug"):
        sandbox.concept("beans")
    with pytest.raises(LookupError, match=r"unknown category 'dog'.*cup, house"):
        sandbox.concept(1, category="dog")
    with pytest.raises(LookupError, match=r"'concept-1' does not ship.*concept\.save"):
        _ = sandbox.concept(1).folder
    with pytest.raises(FileNotFoundError, match=r"no photo-\*\.png"):
        sandbox.read_photos(tmp_path)
    sandbox.concept(9).save(tmp_path, 1)
    (tmp_path / "mask-0.png").unlink()
    with pytest.raises(FileNotFoundError, match="has no mask"):
        sandbox.read_photos(tmp_path)
