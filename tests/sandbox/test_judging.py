"""The judges' parts, and the checks that turn verdicts into figures."""

import pytest
import torch
from rankedit_recipes.sandbox.images.checks import (
    OF_DRAWN,
    OF_ONE,
    OF_TWO,
    categories_exact,
    categories_present,
    colours_right,
    relation_right,
)
from rankedit_recipes.sandbox.images.clip import build_clip
from rankedit_recipes.sandbox.images.evaluation import Figure, separation
from rankedit_recipes.sandbox.images.identity import CROP, IdentityEmbedding, crop
from rankedit_recipes.sandbox.images.judge import LOOKS, AttributeJudge, Verdict, judge
from rankedit_recipes.sandbox.images.judge_training import train_attributes, truth_of
from rankedit_recipes.sandbox.images.scenes import draw_pair, draw_single, rng_of
from rankedit_recipes.sandbox.images.skins import draw_skin
from rankedit_recipes.sandbox.images.tokenizer import build_tokenizer
from rankedit_recipes.sandbox.images.views import changed_skin, dressed_scene, pixels_of
from rankedit_recipes.sandbox.images.vocabulary import CATEGORIES, SCENES, STYLES


def omniscient(scenes):
    """The verdict of a judge that is always right."""
    truth = truth_of(scenes)
    looks = torch.nn.functional.one_hot(truth.looks.clamp(min=0), len(LOOKS)).float()
    return Verdict(
        present=2 * truth.present - 1,
        looks=looks,
        boxes=truth.boxes.nan_to_num(0.5),
        scene=torch.nn.functional.one_hot(truth.scene, len(SCENES)).float(),
        style=torch.nn.functional.one_hot(truth.style, len(STYLES)).float(),
    )


@pytest.fixture(scope="module")
def pairs():
    return [draw_pair(rng_of("judged", i), skinned=0.0) for i in range(40)]


def test_the_truth_passes_every_check(pairs):
    singles = [draw_single(rng_of("judged", i), skinned=0.2) for i in range(40)]
    for check in [*OF_DRAWN.values(), *OF_ONE.values()]:
        assert all(check(omniscient(singles), singles))
    for check in OF_TWO.values():
        assert all(check(omniscient(pairs), pairs))


def test_every_check_can_fail(pairs):
    shuffled = omniscient(pairs[1:] + pairs[:1])
    for name, check in [*OF_DRAWN.items(), *OF_TWO.items()]:
        assert not all(check(shuffled, pairs)), name


def test_swapped_colours_are_seen(pairs):
    scene = next(s for s in pairs if s.things[0].colour != s.things[1].colour)
    says = omniscient([scene])
    first, second = (CATEGORIES.index(t.category) for t in scene.things)
    says.looks[0, [first, second]] = says.looks[0, [second, first]]
    assert colours_right(says, [scene]) == [False]
    assert categories_present(says, [scene]) == [True]


def test_mirrored_places_are_seen(pairs):
    says = omniscient(pairs)
    says.boxes[..., :2] = 1 - says.boxes[..., :2]
    assert not any(relation_right(says, pairs))


def test_a_third_object_is_seen(pairs):
    says = omniscient(pairs[:1])
    says.present[0] = 1
    assert categories_exact(says, pairs[:1]) == [False]


def test_separation():
    assert separation(torch.tensor([2.0, 3.0]), torch.tensor([0.0, 1.0])) == 1.0
    assert separation(torch.tensor([1.0]), torch.tensor([1.0])) == 0.5
    assert separation(torch.tensor([0.0]), torch.tensor([1.0])) == 0.0


def test_figures_know_their_direction():
    assert Figure("a", 0.9, 0.9, 1).reached
    assert not Figure("a", 0.9, 0.9, 1, below=True).reached


def test_crops_are_centred_on_the_object():
    picture = torch.zeros(1, 3, 48, 48)
    picture[:, :, 30:34, 8:12] = 1
    cut = crop(picture, torch.tensor([[10 / 48, 32 / 48, 0.3]]))
    assert cut.shape == (1, 3, CROP, CROP)
    rows, columns = torch.meshgrid(torch.arange(CROP), torch.arange(CROP), indexing="ij")
    weight = cut[0, 0] / cut[0, 0].sum()
    assert float((weight * rows).sum()) == pytest.approx((CROP - 1) / 2, abs=0.3)
    assert float((weight * columns).sum()) == pytest.approx((CROP - 1) / 2, abs=0.3)


def test_changed_skins_differ_in_one_element():
    for i in range(50):
        rng = rng_of("changed", i)
        skin = draw_skin(rng)
        other = changed_skin(skin, rng)
        fields = ("pattern", "colours", "mark", "mark_colour", "width")
        assert sum(getattr(skin, f) != getattr(other, f) for f in fields) == 1


def test_dressed_scenes_show_the_skin():
    for i in range(20):
        rng = rng_of("dressed", i)
        skin = draw_skin(rng)
        scene, thing = dressed_scene(rng, "boat", skin)
        assert thing in scene.things
        assert (thing.category, thing.skin) == ("boat", skin)


def test_embeddings_are_unit_vectors():
    vectors = IdentityEmbedding()(torch.randn(3, 3, CROP, CROP))
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))


def test_judging_in_batches_changes_nothing():
    torch.manual_seed(0)
    model = AttributeJudge().eval()
    pixels = pixels_of([draw_single(rng_of("batch", i)) for i in range(7)])
    whole, parts = judge(model, pixels), judge(model, pixels, batch=3)
    torch.testing.assert_close(whole.boxes, parts.boxes, atol=1e-5, rtol=1e-4)


def test_training_the_judge_lowers_its_loss_reproducibly():
    first, second = (train_attributes(2, batch=4, size=16) for _ in range(2))
    assert first.losses == []
    for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_clip_has_two_towers_of_one_space():
    tokenizer = build_tokenizer()
    model = build_clip(len(tokenizer)).eval()
    tokens = tokenizer(["a cat", "a cup"], padding="max_length", return_tensors="pt")["input_ids"]
    out = model(input_ids=tokens, pixel_values=torch.zeros(3, 3, 48, 48))
    assert out.logits_per_image.shape == (3, 2)
