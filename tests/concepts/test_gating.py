"""Gated edits: on the concept's tokens what the static edit does, elsewhere nothing at all."""

import numpy as np
import pytest
import torch
from rankedit_recipes import concepts, sandbox
from rankedit_recipes.concepts.commands.opening import sandbox_captions
from rankedit_recipes.concepts.gating import GatedMap, detectors
from rankedit_recipes.diffusion.parts import Parts

import rankedit as rk
from rankedit.testing import check_edit

ASKED = [concepts.erase("cat", to="tree"), concepts.erase("boat", to="house")]


@pytest.fixture(scope="module")
def world():
    pipe = sandbox.pipeline()
    pipe.set_progress_bar_config(disable=True)
    captions = sandbox_captions(300)
    edited = concepts.edit(pipe, ASKED, statistics=captions, progress=False)
    return pipe, captions, edited, concepts.gated(pipe, edited, captions)


def picture(pipe, prompt):
    noise = torch.Generator().manual_seed(0)
    made = pipe(prompt, num_inference_steps=2, output_type="np", generator=noise)
    return np.asarray(made.images)


def test_pictures_without_the_concepts_are_the_same_bit_for_bit(world):
    pipe, _, edited, gated = world
    others = ["a photo of a red cup on the beach", "a photo of a big tree next to a blue star"]
    before = [picture(pipe, prompt) for prompt in others]
    cat = picture(pipe, "a photo of a cat on the beach")
    with gated.attach(pipe) as attachment:
        for prompt, plain in zip(others, before, strict=True):
            assert np.array_equal(picture(pipe, prompt), plain)
        changed = picture(pipe, "a photo of a cat on the beach")
        attachment.set(strength=0.0)
        assert np.array_equal(picture(pipe, "a photo of a cat on the beach"), cat)
    assert not np.allclose(changed, cat, atol=1e-2)
    with edited.attach(pipe):
        assert not np.array_equal(picture(pipe, others[0]), before[0])


def test_on_the_concepts_tokens_it_is_the_static_edit(world):
    pipe, _, edited, gated = world
    name, edit = next(iter(edited.edits(pipe).items()))
    rows = edited.rows["cat"].keys.float()
    gate = gated.gate.of(["cat"])
    found = gate.open(rows)
    assert found[edited.rows["cat"].word].all()
    layer = Parts(pipe).projections[name]
    plain = rk.linear_output(layer, rows)
    with gated.attach(pipe):
        given = rk.linear_output(layer, rows)
    open_ = gated.gate.open(rows)
    assert torch.equal(given[~open_], plain[~open_])
    expected = (plain + edit.added(rows, edit.bind(None)))[open_]
    assert torch.allclose(given[open_], expected, atol=1e-4)
    check_edit(GatedMap(edit, gated.gate))


def test_it_is_saved_undone_and_has_no_form_as_a_weight(world, tmp_path):
    pipe, _, edited, gated = world
    gated.save(tmp_path / "gated.safetensors")
    loaded = concepts.Edited.load(tmp_path / "gated.safetensors", statistics=edited.kept.moment)
    assert loaded.gate.names == gated.gate.names
    assert torch.equal(loaded.gate.floor, gated.gate.floor)
    assert set(loaded.without("cat").gate.names) == {"boat"}
    for call in (lambda: gated.fuse(pipe), lambda: gated.export_lora(pipe, tmp_path / "x")):
        with pytest.raises(concepts.ConceptsError, match="no form as a weight"):
            call()
    with pytest.raises(concepts.ConceptsError, match="call gated again"):
        concepts.add(pipe, gated, [concepts.erase("star")])
    for caption in ("a photo of a cat", "Cat, red", "the boat's house"):
        with pytest.raises(concepts.ConceptsError, match="captions without the edit's concepts"):
            concepts.gated(pipe, edited, [caption])
    # Captions that say the same of the concept under another name: nothing tells them apart.
    rows = {"cat": edited.rows["cat"]}
    with pytest.raises(concepts.ConceptsError, match="can be told from those"):
        detectors(rows, rows["cat"].keys, rk.Metric.identity(edited.map.in_features))
