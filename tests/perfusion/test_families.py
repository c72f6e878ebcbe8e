"""Base models and prompts of every kind: what is found, what is learned, and what comes back."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline
from PIL import Image
from rankedit_recipes.diffusion.parts import Parts
from rankedit_recipes.perfusion.applying.apply import apply
from rankedit_recipes.perfusion.applying.explaining import explain
from rankedit_recipes.perfusion.concept import Concept
from rankedit_recipes.perfusion.errors import PerfusionError
from rankedit_recipes.perfusion.learning.config import Config
from rankedit_recipes.perfusion.learning.training import learn

from tests.diffusion import pipelines
from tests.diffusion.pipelines import CAPTIONS
from tests.perfusion.concepts import TEMPLATES, random_concept
from tests.perfusion.test_learning import photos


@pytest.fixture(scope="module")
def pipe():
    return pipelines.stable_diffusion()


@pytest.fixture(scope="module")
def bean(pipe):
    return random_concept(pipe)


def picture(pipe, prompt, **arguments):
    settings = {"num_inference_steps": 2, "height": 16, "width": 16, "output_type": "np"}
    generator = torch.Generator().manual_seed(3)
    return pipe(prompt, generator=generator, **(settings | arguments)).images


def key_and_value_reads(pipe, run):
    """What the first key and the first value projection read, and what the value one gives."""
    targets, seen = Parts(pipe).targets, {}
    modules = targets.modules(Parts(pipe).denoiser.module)
    names = {"keys": targets.keys[0], "values": targets.values[0]}
    handles = []
    for kind, name in names.items():

        def keep(_, args, output, kind=kind):
            seen.setdefault(kind, (args[0], output))

        handles.append(modules[name].register_forward_hook(keep))
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return seen


# ------------------------------------------------------------------------ families


@pytest.mark.parametrize("lock", ["local", "global"])
def test_a_controlnet_pipeline(pipe, bean, lock):
    torch.manual_seed(1)
    controlnet = ControlNetModel.from_unet(
        pipe.unet, conditioning_embedding_out_channels=(4, 8)
    ).eval()
    own = (controlnet.controlnet_mid_block, controlnet.controlnet_cond_embedding.conv_out)
    with torch.no_grad():  # made to change nothing at first; a trained one does
        for block in (*controlnet.controlnet_down_blocks, *own):
            torch.nn.init.normal_(block.weight, std=0.3)
    other = StableDiffusionControlNetPipeline(
        **{**pipe.components, "requires_safety_checker": False}, controlnet=controlnet
    )
    other.set_progress_bar_config(disable=True)
    edges = Image.effect_noise((16, 16), 60).convert("RGB")

    def run(prompt, control=edges):
        return picture(other, prompt, image=control)

    before, bare = run("a cat"), run("a cat", Image.new("RGB", (16, 16)))
    assert not np.array_equal(before, bare)
    with apply(other, bean, lock=lock, bias=0.3):
        inside = run("a <bean>")
        assert np.isfinite(inside).all()
        assert not np.array_equal(inside, run("a <bean>", Image.new("RGB", (16, 16))))
        assert not np.array_equal(inside, before)
    assert np.array_equal(run("a cat"), before)


def test_stable_diffusion_2_1_is_found_learned_and_applied(tmp_path):
    pipe = pipelines.stable_diffusion_2_1()
    found = Parts(pipe).targets
    assert len(found.keys) == len(found.values) == 4
    assert found.direct
    config = Config(steps=3, batch=2, templates=TEMPLATES)
    concept = learn(
        pipe, photos(1), placeholder="<bean>", category="cat", statistics=CAPTIONS, config=config,
        progress=False,
    )  # fmt: skip
    concept.save(tmp_path / "c.safetensors")
    before = picture(pipe, "a photo of a cat")
    for lock in ("local", "global"):
        with apply(pipe, Concept.load(tmp_path / "c.safetensors"), lock=lock):
            inside = picture(pipe, "a photo of a <bean>")
        assert np.isfinite(inside).all()
        assert not np.array_equal(inside, before)
        assert np.array_equal(picture(pipe, "a photo of a cat"), before)


# ------------------------------------------------------------------------ prompts


def test_every_occurrence_of_a_concept_is_edited(pipe, bean):
    prompt = "a <bean> and a <bean> on grass"
    with apply(pipe, bean, strength=1.0):
        texts = Parts(pipe).text
        places = texts.positions(texts.encode([prompt]), "<bean>")[0]
        assert len(places) == 2
        inside = key_and_value_reads(pipe, lambda: picture(pipe, prompt))["values"]
        gates = explain(pipe, prompt, show=False).opening["values"][:, 0]
    name = Parts(pipe).targets.values[0]
    layer = Parts(pipe).targets.modules(pipe.unet)[name]
    read, output = inside[0][1], inside[1][1]
    change = output - torch.nn.functional.linear(read, layer.weight)
    for place in places:  # exactly what the gate of that place says, at each of them
        energy = bean.key @ bean.image
        similarity = read[place] @ bean.image / energy
        wanted = gates[place].float() * bean.targets[name]
        wanted = wanted - similarity * torch.nn.functional.linear(bean.key, layer.weight)
        torch.testing.assert_close(change[place], wanted, rtol=1e-4, atol=1e-5)


def test_two_concepts_with_categories_of_several_tokens_follow_the_global_lock(pipe):
    bear = random_concept(pipe, "<bear>", "teddy bear", seed=1)
    cup = random_concept(pipe, "<cup>", "my red cup", seed=2)
    prompt = "a <bear> on a <cup> at night and a <bear>"
    plain = "a teddy bear on a my red cup at night and a teddy bear"
    base = key_and_value_reads(pipe, lambda: picture(pipe, plain))["keys"][0][1]
    with apply(pipe, [bear, cup], lock="global", strength=0.0):
        ours = key_and_value_reads(pipe, lambda: picture(pipe, prompt))["keys"][0][1]
    # <s> a BEAR on a CUP at night and a BEAR: tokens of the prompt against those of the plain one.
    alignment = [0, 1, 3, 4, 5, 8, 9, 10, 11, 12, 14, 15]
    torch.testing.assert_close(ours[: len(alignment)], base[alignment])


@pytest.mark.parametrize("lock", ["local", "global"])
def test_prompt_embeddings_of_any_length(pipe, bean, lock):
    def long(prompt, copies=3):
        """Chunks one behind another, as programs for long prompts make them."""
        parts = [
            Parts(pipe).text.encode([text]).embeds for text in (prompt, "a dog", "on the grass")
        ]
        return torch.cat(parts[:copies], 1)

    def run(prompt, copies):
        with torch.no_grad():
            given, empty = long(prompt, copies), long("", copies)
        return picture(pipe, None, prompt_embeds=given, negative_prompt_embeds=empty)

    before = run("a cat", 3)
    with apply(pipe, bean, lock=lock, bias=0.3):
        inside = run("a <bean>", 3)
        assert inside.shape == before.shape
        assert not np.array_equal(inside, before)
        assert not np.array_equal(inside, run("a <bean>", 2))
        seen = key_and_value_reads(pipe, lambda: run("a <bean>", 3))
        with torch.no_grad():
            wanted = long("a cat" if lock == "global" else "a <bean>", 3)
        torch.testing.assert_close(seen["keys"][0][1], wanted[0])
    assert np.array_equal(run("a cat", 3), before)


def test_words_behind_the_end_of_the_text_are_cut_as_diffusers_cuts_them(pipe, bean):
    prompt = " ".join(["a"] * 40) + " <bean>"
    with apply(pipe, bean, bias=0.3):
        cut, kept = picture(pipe, prompt), picture(pipe, " ".join(["a"] * 40))
    assert np.array_equal(cut, kept)


# ------------------------------------------------------------------------ refusals


def test_concepts_of_different_base_models_are_not_merged(pipe, bean):
    other = random_concept(pipe, "<mug>", "cup", seed=2, base="0123456789abcdef", sketch="")
    with pytest.raises(
        PerfusionError, match=r"'<bean>' and '<mug>' were learned on base models with different"
    ):
        apply(pipe, [bean, other])
    with apply(pipe, [bean, dataclasses.replace(other, base="")]) as applied:
        assert applied.triggers == ("<bean>", "<mug>")


def test_concepts_of_other_families_are_refused_both_ways(pipe, bean):
    xl, pixart = pipelines.stable_diffusion_xl(), pipelines.pixart()
    for there, concept in ((xl, bean), (pixart, bean), (pipe, random_concept(pixart)),
                           (pipe, random_concept(xl))):  # fmt: skip
        with pytest.raises(PerfusionError, match="learned on another kind of model"):
            apply(there, concept)
    with pytest.raises(PerfusionError, match="no concept is in this pipeline"):
        explain(pipe, "a cat")
