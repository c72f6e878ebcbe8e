"""What words reach: real photos of a concept are the ceiling, those of others the floor."""

import numpy as np
import pytest
import torch
from rankedit_recipes import sandbox
from rankedit_recipes.sandbox.evaluate import compare, comparison, main
from rankedit_recipes.sandbox.images.concepts import as_array
from rankedit_recipes.sandbox.images.evaluation import Figure
from rankedit_recipes.sandbox.images.tokenizer import build_tokenizer
from rankedit_recipes.sandbox.images.wording import (
    VARIANTS,
    Wording,
    pairs_of,
    sixteen,
    told_alone,
    told_together,
)


@pytest.fixture(scope="module")
def judging():
    return Wording(sandbox.attribute_judge(), sandbox.identity_embedding())


@pytest.fixture(scope="module")
def bean():
    return sandbox.concept("bean")


def test_real_photos_have_an_identity_of_one_and_random_skins_of_zero(judging, bean):
    scale = judging.scale(bean)
    real = scale.identity(judging.photos(bean, 8, 11))
    other = scale.identity(judging.photos(sandbox.concept(77, category="cat"), 8, 11))
    assert 0.8 < float(real.mean()) < 1.2
    assert float(other.mean()) < 0.4


@pytest.mark.parametrize("factor", VARIANTS)
def test_the_right_variant_of_real_photos_is_nearest(judging, bean, factor):
    looks = VARIANTS[factor](bean.skin)
    assert looks[0] == bean.skin
    assert len(set(looks)) == len(looks)
    assert np.mean(judging.nearest_variant(bean, factor, judging.photos(bean, 8, 11))) >= 0.8
    turned = sandbox.Concept("bean", "cat", looks[1])
    assert np.mean(judging.nearest_variant(bean, factor, judging.photos(turned, 8, 11))) <= 0.2


def test_two_are_right_only_with_their_own_skins(judging):
    one, two = pairs_of(sixteen())[0]
    swapped = [sandbox.Concept(a.name, a.category, b.skin) for a, b in ((one, two), (two, one))]
    found = [
        np.mean(judging.both_right((one, two), torch.from_numpy(as_array(photos))))
        for photos in (sandbox.together(one, two, 8), sandbox.together(*swapped, 8))
    ]
    assert found[0] >= 0.8
    assert found[1] == 0


def test_prompts_are_known_to_the_longer_tokenizer():
    tokenizer, every = build_tokenizer(length=40), sixteen()
    assert len({one.name for one in every}) == 16
    texts = [told_alone(one, i) for i, one in enumerate(every)]
    texts += [told_together(pair, i) for i, pair in enumerate(pairs_of(every))]
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert len(ids) <= 34


def test_pipelines_are_compared_side_by_side():
    rows = comparison({"a": [Figure("x", 0.5, 0.9, 10)], "b": [Figure("x", 0.95, 0.9, 10)]})
    assert [list(column.cells) for column in rows.columns[1:3]] == [["0.500"], ["0.950 *"]]


def test_a_missing_folder_is_named_before_anything_is_measured(tmp_path):
    with pytest.raises(sandbox.WeightsError, match=r"config\.json is missing"):
        main(["--weights", "shipped", "--weights", str(tmp_path / "none"), "--count", "1"])


def test_without_the_generator_nothing_is_drawn():
    names = [figure.name for figure in compare([None], 20, generator=False)["shipped"]]
    assert names[-1] == "autoencoder: identity kept"
