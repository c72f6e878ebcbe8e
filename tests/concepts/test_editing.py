"""Edits of concepts on tiny pipelines: order, undoing, files, weights, and what is refused."""

import itertools

import numpy as np
import pytest
import torch
from rankedit_recipes import concepts
from rankedit_recipes.concepts.prompts import alignment, read_prompts
from rankedit_recipes.concepts.reading import carrying
from rankedit_recipes.diffusion.parts import Parts
from rankedit_recipes.diffusion.statistics import second_moment

import rankedit as rk
from tests.diffusion import pipelines
from tests.diffusion.families import tiny
from tests.diffusion.pipelines import CAPTIONS
from tests.problems import relative

ASKED = [concepts.erase("cat"), concepts.replace("blue", "red", about="attribute"),
         concepts.erase("teddy bear", to=("dog", "cup")), concepts.hold("snow")]  # fmt: skip


@pytest.fixture(scope="module")
def pipe():
    return pipelines.stable_diffusion()


@pytest.fixture(scope="module")
def moment(pipe):
    return second_moment(pipe, CAPTIONS, progress=False)


def picture(pipe, prompt="a photo of a cat"):
    result = pipe(prompt, height=16, width=16, num_inference_steps=2, output_type="np",
                  generator=torch.Generator().manual_seed(0), **tiny.one_frame(pipe))  # fmt: skip
    return np.asarray(next(iter(result.values())))


@pytest.mark.parametrize("method", concepts.METHODS)
def test_order_makes_no_difference_and_undoing_is_exact(pipe, moment, method):
    every = [concepts.edit(pipe, order, method=method, statistics=moment)
             for order in itertools.islice(itertools.permutations(ASKED), 0, 24, 7)]  # fmt: skip
    for other in every[1:]:
        assert relative(other.map.delta(), every[0].map.delta()) < 1e-9
    fewer = [request for request in ASKED if request.name != "blue"]
    without = concepts.edit(pipe, fewer, method=method, statistics=moment)
    undone = every[0].without("blue")
    assert undone.names() == without.names() or set(undone.names()) == set(without.names())
    assert relative(undone.map.delta(), without.map.delta()) < 1e-9
    again = concepts.add(pipe, undone, [ASKED[1]])
    assert relative(again.map.delta(), every[0].map.delta()) < 1e-9


HUNDRED = [
    concepts.replace(f"{start} {colour} {thing}", goal, contexts=["a photo of {} at night"])
    for start, goal in (("my", "star"), ("one", "house"), ("two", "tree"))
    for colour in ("red", "blue", "bright", "dark")
    for thing in ("cat", "dog", "cup", "bear", "teddy bear", "photo", "beach", "snow", "grass")
][:100]


@pytest.mark.parametrize("method", ["uce", pytest.param("covariance", marks=pytest.mark.slow)])
def test_of_a_hundred_requests_one_is_undone_exactly(pipe, moment, method):
    """In 32 dimensions, where a hundred cannot all be met: each is in all the others' way."""
    edited = concepts.edit(pipe, HUNDRED, method=method, statistics=moment)
    fewer = [request for request in HUNDRED if request.name != HUNDRED[41].name]
    without = concepts.edit(pipe, fewer[::-1], method=method, statistics=moment)
    undone = edited.without(HUNDRED[41].name)
    assert relative(undone.map.delta(), without.map.delta()) < 1e-9
    assert relative(undone.map.delta(), edited.map.delta()) > 1e-4
    again = concepts.add(pipe, undone, [HUNDRED[41]])
    assert relative(again.map.delta(), edited.map.delta()) < 1e-9


@pytest.mark.parametrize("method", ["uce", "rece", "covariance"])
def test_a_file_is_small_and_comes_back_whole(pipe, moment, method, tmp_path):
    edited = concepts.edit(pipe, ASKED, method=method, statistics=moment)
    path = tmp_path / "edit.safetensors"
    edited.save(path)
    loaded = concepts.Edited.load(path, statistics=moment)
    assert loaded.requests == edited.requests
    assert loaded.settings == edited.settings
    assert torch.equal(loaded.map.delta(), edited.map.delta())
    assert relative(loaded.without("cat").map.delta(), edited.without("cat").map.delta()) < 1e-9
    if method == "covariance":
        with pytest.raises(concepts.ConceptsError, match="give statistics="):
            concepts.Edited.load(path).without("cat")
        other = second_moment(pipe, CAPTIONS[:9], progress=False)
        with pytest.raises(concepts.ConceptsError, match="other statistics"):
            concepts.Edited.load(path, statistics=other)
    rk.save(moment, path)
    with pytest.raises(concepts.ConceptsError, match="no edit of concepts"):
        concepts.Edited.load(path)


def test_attached_fused_and_exported_edits_act_alike(pipe, moment, tmp_path):
    before = picture(pipe)
    edited = concepts.edit(pipe, ASKED, statistics=moment)
    with edited.attach(pipe) as attachment:
        inside = picture(pipe)
        attachment.set(strength=0.0)
        assert np.array_equal(picture(pipe), before)
    assert np.array_equal(picture(pipe), before)
    assert not np.allclose(inside, before, atol=1e-4)
    edited.fuse(pipe)
    assert np.allclose(picture(pipe), inside, atol=1e-4)
    rk.unfuse_(pipe.unet)
    assert np.array_equal(picture(pipe), before)
    edited.export_lora(pipe, tmp_path / "lora.safetensors")
    names = dict(pipe.unet.named_modules())
    loaded = rk.from_lora(tmp_path / "lora.safetensors", component="unet", modules=names)
    for name, edit in edited.edits(pipe).items():
        assert relative(loaded[name].delta().double(), edit.delta()) < 1e-5


FAMILIES = ["stable_diffusion", "stable_diffusion_2_1", "stable_diffusion_xl", "pixart", "sana"]
FURTHER = ["wan", "ltx", "latte"]


@pytest.mark.filterwarnings("ignore:.*is told each prompt in a pooled vector too")
@pytest.mark.parametrize("name", [*FAMILIES, *FURTHER])
def test_in_every_family_a_replaced_word_lacks_what_the_formula_says(name):
    """Of what a single key lacks, UCE leaves `λ/(λ + ‖k‖²)`; in the projections as they run."""
    made = getattr(pipelines if name in FAMILIES else tiny, name)()
    parts = Parts(made)
    before = {n: t.clone() for n, t in parts.denoiser.plain.state_dict().items()}
    edited = concepts.edit(made, [concepts.replace("cat", "dog")], method="uce")
    rows = edited.rows["cat"]
    left = 0.5 / (0.5 + float(rows.keys.square().sum()))
    layers = edited.layers(parts)
    assert set(layers) == {*parts.targets.keys, *parts.targets.values}
    given = [
        {n: rk.linear_output(layer, x.float()) for n, layer in layers.items()}
        for x in (rows.keys, rows.guides)
    ]
    with edited.attach(made):
        for name, layer in layers.items():
            word, goal = given[0][name], given[1][name]
            after = rk.linear_output(layer, rows.keys.float())
            expected = goal + left * (word - goal)
            assert relative(after.double(), expected.double()) < 1e-4
    after = parts.denoiser.plain.state_dict()
    assert all(torch.equal(tensor, after[n]) for n, tensor in before.items())


def test_words_are_aligned_and_found_by_what_changes(pipe):
    assert alignment(7, [3], 2, 2, 7).tolist() == list(range(7))
    assert alignment(7, [3], 1, 0, 7).tolist() == [0, 1, 2, 2, 3, 4, 5]
    assert alignment(7, [3], 1, 2, 7).tolist() == [0, 1, 2, 4, 5, 6, 6]
    assert alignment(8, [2, 5], 1, 2, 9).tolist() == [0, 1, 3, 4, 5, 7, 8, 8]
    parts = Parts(pipe)
    cat, dog = read_prompts(parts, [f"a photo of a {w} at night" for w in ("cat", "dog")],
                            ["cat", "dog"])  # fmt: skip
    found = carrying(cat.vectors, dog.vectors, 0.1)
    # CLIP reads from left to right: nothing before the word knows of it.
    assert not found[: cat.ends[0]].any()
    assert found[cat.ends[0]]
    assert cat.ends == dog.ends


@pytest.mark.parametrize(
    ("requests", "said"),
    [
        ([concepts.hold("dog")], "nothing is to change"),
        ([concepts.erase("cat"), concepts.hold("cat")], "is in two requests"),
        ([concepts.erase("cat"), concepts.replace("dog", "cat")], "which is to be erased"),
        (["cat"], "come from erase, replace, hold or balance"),
    ],
)
def test_contradictions_are_refused(pipe, requests, said):
    with pytest.raises(concepts.ConceptsError, match=said):
        concepts.edit(pipe, requests, method="uce")


def test_wrong_words_contexts_and_methods_are_refused(pipe, moment):
    with pytest.raises(concepts.ConceptsError, match="words or phrases"):
        concepts.erase("")
    with pytest.raises(concepts.ConceptsError, match="cannot become itself"):
        concepts.replace("cat", "cat")
    with pytest.raises(concepts.ConceptsError, match="a context has one"):
        concepts.erase("cat", contexts=["a photo"])
    with pytest.raises(concepts.ConceptsError, match="unknown method"):
        concepts.edit(pipe, ASKED, method="esd")
    with pytest.raises(concepts.ConceptsError, match="give statistics="):
        concepts.edit(pipe, ASKED)
    with pytest.raises(concepts.ConceptsError, match="out of range"):
        concepts.Settings("mine", weight=0.0)
    edited = concepts.edit(pipe, ASKED, method="uce")
    with pytest.raises(concepts.ConceptsError, match="no request is called"):
        edited.without("dog")
    other = pipelines.stable_diffusion(seed=1)
    with pytest.raises(concepts.ConceptsError, match="another text encoder"):
        edited.edits(other)
    with pytest.raises(concepts.ConceptsError, match="wide"):
        edited.edits(pipelines.stable_diffusion_xl())
    with pytest.raises(concepts.ConceptsError, match="does not know 'zebra'"):
        concepts.edit(pipelines.pixart(), [concepts.erase("zebra")], method="uce")
