"""Settings by row: one call of a batch is as many calls of one prompt each."""

from __future__ import annotations

import copy
import functools

import numpy as np
import pytest
import torch
from rankedit_recipes.perfusion.applying.apply import active, apply, load, set_concepts
from rankedit_recipes.perfusion.applying.explaining import explain
from rankedit_recipes.perfusion.applying.weighting import WEIGHTS, Weighted
from rankedit_recipes.perfusion.errors import PerfusionError

import rankedit as rk
from tests.diffusion import pipelines
from tests.perfusion.concepts import random_concept

PROMPTS = [
    "a photo of a <bean>",
    "a <bean> next to a <mug>",
    "a photo of a cat",
    "a <mug> on grass",
]
STRENGTHS = [0.0, 0.4, 1.0, 1.7]
OTHERS = [1.2, 0.0, 0.7, 0.3]


@functools.cache
def made(family):
    """A pipeline with the concepts for it."""
    pipe = getattr(pipelines, family)()
    return pipe, random_concept(pipe), random_concept(pipe, "<mug>", "teddy bear", seed=1)


def pictures(pipe, prompts, seeds, **more):
    """Pictures of prompts, each from a generator of its own."""
    size = 64 if type(pipe).__name__.startswith("Sana") else 16
    given = {"num_inference_steps": 2, "height": size, "width": size, "output_type": "np"} | more
    if hasattr(pipe, "transformer"):
        given["use_resolution_binning"] = False
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return pipe(prompts, generator=generators, **given).images


def close(found, wanted):
    # Batches of other sizes differ by rounding.
    np.testing.assert_allclose(found, wanted, atol=2e-5)


def one_by_one(pipe, applied, setting, **more):
    """The four prompts in calls of their own, each with its number."""
    singles = []
    for row, prompt in enumerate(PROMPTS):
        for word, values in setting.items():
            applied.set(word, strength=values[row])
        singles.append(pictures(pipe, [prompt], [row], **more))
    return np.concatenate(singles)


@pytest.mark.parametrize("guidance", [1.0, 7.0])
@pytest.mark.parametrize("family", ["stable_diffusion", "stable_diffusion_xl", "pixart", "sana"])
def test_a_batch_with_strengths_is_as_many_calls(family, guidance):
    pipe, bean, mug = made(family)
    setting = {"<bean>": STRENGTHS, "<mug>": OTHERS}
    with apply(pipe, [bean, mug], bias=0.3) as applied:
        singles = one_by_one(pipe, applied, setting, guidance_scale=guidance)
        for word, values in setting.items():
            applied.set(word, strength=values)
        batch = pictures(pipe, PROMPTS, range(4), guidance_scale=guidance)
        close(batch, singles)
        applied.set(strength=STRENGTHS)
        other = pictures(pipe, PROMPTS, range(4), guidance_scale=guidance)
        assert np.abs(other - singles).max() > 1e-3
        applied.set(strength=1.0)
        assert "encode_prompt" not in vars(pipe)
    with apply(pipe, [bean, mug], bias=0.3, strength=setting):
        assert np.array_equal(pictures(pipe, PROMPTS, range(4), guidance_scale=guidance), batch)
    assert "encode_prompt" not in vars(pipe)


@pytest.mark.parametrize("lock", ["local", "global"])
@pytest.mark.parametrize("family", ["stable_diffusion", "stable_diffusion_xl", "pixart"])
def test_two_pictures_of_each_prompt(family, lock):
    pipe, bean, mug = made(family)
    with apply(pipe, [bean, mug], bias=0.3, lock=lock) as applied:
        singles = []
        for row, prompt in enumerate(PROMPTS):
            applied.set("<bean>", strength=STRENGTHS[row])
            singles.append(
                pictures(pipe, [prompt], [2 * row, 2 * row + 1], num_images_per_prompt=2)
            )
        applied.set("<bean>", strength=STRENGTHS)
        for _ in range(2):  # the second call finds the batch as it is
            batch = pictures(pipe, PROMPTS, range(8), num_images_per_prompt=2)
            close(batch, np.concatenate(singles))
        # Back to one picture each, and a number for each picture.
        close(pictures(pipe, PROMPTS, range(0, 8, 2)), np.concatenate(singles)[::2])
        applied.set("<bean>", strength=[0.4, 1.7])
        ladder = pictures(pipe, PROMPTS[1], [2, 7], num_images_per_prompt=2)
        close(ladder[:1], batch[2:3])
        applied.set("<bean>", strength=[1.7] * 4)
        close(ladder[1:], pictures(pipe, [PROMPTS[1]] * 4, [2, 7, 2, 7])[1:2])


def test_gates_by_row_and_negative_prompts():
    pipe, bean, _ = made("stable_diffusion")
    biases, temperatures = [0.1, 0.5, 0.7, 0.9], [0.1, 0.3, 0.2, 0.15]
    given = {"negative_prompt": [f"a {thing}" for thing in ("cat", "dog", "cup", "red cat")]}
    prompts = ["a <bean>", "a <bean> on grass", "a cat", "my <bean>"]
    for more in ({}, {"normalised": True}, {"floor": 0.5}):
        with apply(pipe, bean, **more) as applied:
            singles = []
            for row, prompt in enumerate(prompts):
                applied.set(bias=biases[row], temperature=temperatures[row])
                negative = given["negative_prompt"][row]
                singles.append(pictures(pipe, [prompt], [row], negative_prompt=[negative]))
            applied.set(bias=torch.tensor(biases), temperature=np.array(temperatures))
            close(pictures(pipe, prompts, range(4), **given), np.concatenate(singles))


def test_embeddings_given_by_hand_and_a_loop_of_ones_own():
    pipe, bean, _ = made("stable_diffusion")
    prompts = ["a <bean>", "a <bean> on grass"]
    with apply(pipe, bean, strength=[0.2, 1.5]) as applied:
        wanted = pictures(pipe, prompts, range(2))
        positive, negative = pipe.encode_prompt(prompts, "cpu", 1, True)
        found = pictures(
            pipe, None, range(2), prompt_embeds=positive, negative_prompt_embeds=negative
        )
        close(found, wanted)
        latents, time = torch.zeros(4, 4, 8, 8), torch.tensor(3)
        both = torch.cat([negative, positive])
        # Encoded without guidance, and run with it.
        close(pipe.unet(latents, time, both)[0].detach(), _guided(pipe, latents, both))
        applied.set(strength=[0.2, 1.5, 1.0])
        with pytest.raises(PerfusionError, match="set them first, and then call the pipeline"):
            pipe.unet(latents, time, both)
        pipe.encode_prompt([*prompts, "a cat"], "cpu", 1, False)
        with pytest.raises(PerfusionError, match=r"batch of 3 rows.*runs with 4"):
            pipe.unet(latents, time, both)
        pipe.encode_prompt([*prompts, "a cat"], "cpu", 4, False)
        with pytest.raises(PerfusionError, match=r"batch of 12 rows.*runs with 4"):
            pipe.unet(latents, time, both)


def _guided(pipe, latents, both):
    """The same denoiser row by row."""
    applied, found = active(pipe), []
    for row in range(4):
        applied.set(strength=[0.2, 1.5][row % 2])
        found.append(pipe.unet(latents[row : row + 1], torch.tensor(3), both[row : row + 1])[0])
    return torch.cat(found).detach()


@pytest.mark.parametrize(
    ("prompts", "more", "message"),
    [
        ("a <bean>", {}, "given for 3 rows of a batch, but this call has 1 prompt; give a number"),
        (["a <bean>"] * 2, {}, "for 3 rows of a batch, but this call has 2 prompts; give"),
        (["a cat"] * 2, {"num_images_per_prompt": 3}, "has 2 prompts, 6 pictures; give a number"),
        (["a cat"] * 6, {}, r"perfusion\.set_concepts\(pipe, strength=1\.0\)"),
    ],
)
def test_a_call_with_another_number_of_prompts_is_refused(prompts, more, message):
    pipe, bean, _ = made("stable_diffusion")
    with apply(pipe, bean, strength=[0.1, 0.2, 0.3]):
        with pytest.raises(PerfusionError, match=message):
            pipe(prompts, num_inference_steps=1, output_type="np", **more)
        # What recipes read for themselves is no call: its gates can be explained.
        assert explain(pipe, "a <bean>", show=False).triggers == ("<bean>",)
        set_concepts(pipe, strength=1.0)
        pictures(pipe, "a <bean>", [0])


def test_lists_are_read_in_one_way_only():
    pipe, bean, mug = made("stable_diffusion")
    with apply(pipe, [bean, mug], strength=[0.5, 1.0]) as applied:  # one for each concept, as ever
        assert [own.strength for own in applied.settings.values()] == [0.5, 1.0]
        applied.set(strength=[0.5, 1.0])
        assert {own.strength for own in applied.settings.values()} == {(0.5, 1.0)}
        with pytest.raises(PerfusionError, match="some for 2 and some for 3 rows"):
            applied.set("<bean>", strength=[1, 2, 3])
        with pytest.raises(PerfusionError, match="the bias of '<mug>' must be a finite number"):
            applied.set("<mug>", bias=[0.1, float("nan")])
        with pytest.raises(PerfusionError, match="temperature of '<bean>' must be positive"):
            applied.set("<bean>", temperature=[0.1, 0.0])
        for wrong in ("12", [], ["x"], [[1.0, 2.0]], None.__class__):
            with pytest.raises(PerfusionError, match="must be a number, or a list with one for"):
                applied.set(strength=wrong)
        assert {own.strength for own in applied.settings.values()} == {(0.5, 1.0)}
    with pytest.raises(PerfusionError, match=r"name the concept: \{'<bean>': \[\.\.\.\]\}"):
        apply(pipe, [bean, mug], strength=[0.1, 0.2, 0.3])
    with apply(
        pipe, [bean, mug], strength=torch.tensor([[0.1, 0.2, 0.3], [1.0, 1.0, 1.0]])
    ) as both:
        assert len(both.settings["<mug>"].strength) == 3
    with apply(pipe, bean, bias=[0.5, 0.6, 0.7]) as applied:
        with pytest.raises(PerfusionError, match="set one bias and one temperature first"):
            explain(pipe, "a <bean>", show=False)
        load(pipe, mug, strength=[1, 2, 3])
        assert applied.settings["<bean>"].bias == (0.5, 0.6, 0.7)


def _perturbed(pipe):
    from diffusers import StableDiffusionPAGPipeline

    parts = {**pipe.components, "requires_safety_checker": False}
    return StableDiffusionPAGPipeline(**parts, pag_applied_layers=["down"]), {"pag_scale": 2.0}


def _from_images(pipe):
    from diffusers import StableDiffusionImg2ImgPipeline

    parts = {**pipe.components, "requires_safety_checker": False}
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return StableDiffusionImg2ImgPipeline(**parts), {"image": image, "strength": 0.9}


@pytest.mark.parametrize("kind", [_perturbed, _from_images])
@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_other_pipelines_repeat_their_batches_in_other_ways(kind, guidance):
    other, more = kind(pipelines.stable_diffusion())
    other.set_progress_bar_config(disable=True)
    bean, prompts, strengths = made("stable_diffusion")[1], ["a <bean>", "my <bean>"], [0.2, 1.6]

    def run(prompts, seeds):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        size = {} if "image" in more else {"height": 16, "width": 16}
        return other(
            prompts, generator=generators, num_inference_steps=2, output_type="np",
            num_images_per_prompt=2, guidance_scale=guidance, **size, **more,
        ).images  # fmt: skip

    with apply(other, bean, bias=0.3) as applied:
        singles = []
        for row, prompt in enumerate(prompts):
            applied.set(strength=strengths[row])
            singles.append(run([prompt], [2 * row, 2 * row + 1]))
        applied.set(strength=strengths)
        close(run(prompts, range(4)), np.concatenate(singles))


def test_a_copied_pipeline_with_rows_leaves_the_original_alone():
    pipe, bean, _ = made("stable_diffusion")
    prompts = ["a <bean>", "my <bean>"]
    with apply(pipe, bean, strength=[0.2, 1.6]):
        wanted = pictures(pipe, prompts, range(2))
        twin = copy.deepcopy(pipe)
        close(pictures(twin, prompts, range(2)), wanted)
        assert twin.encode_prompt.__self__ is twin
        close(pictures(pipe, prompts, range(2)), wanted)
        own = pipe.encode_prompt
        pipe.encode_prompt = type(pipe).encode_prompt.__get__(pipe)  # by somebody else
    assert vars(pipe).pop("encode_prompt") is not own


def test_rows_stay_when_a_setting_changes_within_a_call():
    pipe, bean, _ = made("stable_diffusion")
    prompts = ["a <bean>", "a <bean> on grass"]
    with apply(pipe, bean, bias=0.3) as applied:

        def run(strengths, change):
            applied.set(strength=strengths)

            def after(_, step, __, kwargs):
                if step == 0:
                    applied.set(strength=change)
                return kwargs

            return pictures(
                pipe, prompts, range(4), num_images_per_prompt=2, guidance_scale=1.0,
                callback_on_step_end=after,
            )  # fmt: skip

        batch = run([0.1, 1.5], [1.0, 0.4])
        close(batch[:2], run(0.1, 1.0)[:2])
        close(batch[2:], run(1.5, 0.4)[2:])
        # From one number to rows, in the midst of a call: whose they are is not known.
        with pytest.raises(PerfusionError, match="after the prompts had been encoded"):
            run(1.0, [1.0, 0.4])


@torch.no_grad()
def test_rows_are_not_remembered_beyond_their_change():
    generator = torch.Generator().manual_seed(0)
    keys, targets = (torch.randn(2, n, generator=generator) for n in (8, 5))
    edit = Weighted(rk.GatedEdit(keys, targets, rk.Metric.identity(8)), torch.ones(2))
    layer, x = torch.nn.Linear(8, 5), torch.randn(4, 3, 8, generator=generator)
    with rk.attach(layer, edit) as attached:
        for rows in (
            torch.tensor([[0.0, 1.0], [2.0, 3.0]]),
            torch.tensor([[5.0, 1.0], [0.0, 0.5]]),
        ):
            wanted = []
            for row in range(4):
                attached.set(**{WEIGHTS: rows[row % 2]})
                wanted.append(layer(x[row : row + 1]))
            attached.set(**{WEIGHTS: rows})
            for _ in range(2):
                torch.testing.assert_close(layer(x), torch.cat(wanted))


@pytest.mark.slow
def test_a_compiled_denoiser_follows_strengths_by_row_without_compiling_again():
    pipe = pipelines.stable_diffusion()
    bean, mug = random_concept(pipe), random_concept(pipe, "<mug>", "teddy bear", seed=1)
    with apply(pipe, [bean, mug], bias=0.3, strength={"<bean>": STRENGTHS}):
        wanted = pictures(pipe, PROMPTS, range(4))
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    pipe.unet = torch.compile(pipe.unet, backend=counter, fullgraph=True)
    with apply(pipe, [bean, mug], bias=0.3, strength={"<bean>": OTHERS}) as applied:
        pictures(pipe, PROMPTS, range(4))
        frames = counter.frame_count
        applied.set("<bean>", strength=STRENGTHS)
        close(pictures(pipe, PROMPTS, range(4)), wanted)
        assert counter.frame_count == frames > 0


@pytest.mark.parametrize("prompts", [1, 2])
def test_another_pipeline_of_the_same_parts_does_not_get_the_rows(prompts):
    """With guidance one prompt of the other makes as many rows as two settings."""
    pipe, concept, _ = made("stable_diffusion")
    other = type(pipe)(**pipe.components)
    other.set_progress_bar_config(disable=True)
    mine = ["a photo of a <bean>", "a <bean> on grass"]
    with apply(pipe, concept, strength={"<bean>": [0.2, 1.0]}):
        wanted = pictures(pipe, mine, [0, 1])
        with pytest.raises(PerfusionError, match="the text encoder has run for another pipeline"):
            pictures(other, ["a photo of a cat"] * prompts, range(prompts))
        close(pictures(pipe, mine, [0, 1]), wanted)
    assert not any(encoder._forward_pre_hooks for encoder in (pipe.text_encoder,))


@pytest.mark.parametrize("adapted", [True, False])
def test_a_call_may_scale_no_lora_that_concepts_were_fitted_to(adapted):
    peft = pytest.importorskip("peft")
    pipe = pipelines.stable_diffusion()
    if adapted:
        torch.manual_seed(0)
        pipe.unet.add_adapter(
            peft.LoraConfig(r=2, target_modules=["to_k", "to_v"], init_lora_weights=False)
        )
    prompt, half = ["a photo of a <bean>"], {"cross_attention_kwargs": {"scale": 0.5}}
    with apply(pipe, random_concept(pipe)):
        whole = pictures(pipe, prompt, [0])
        close(pictures(pipe, prompt, [0], cross_attention_kwargs={"scale": 1.0}), whole)
        if adapted:
            with pytest.raises(PerfusionError, match=r"'scale': 0\.5.*pipe\.set_adapters"):
                pictures(pipe, prompt, [0], **half)
        else:  # it is no strength of concepts
            close(pictures(pipe, prompt, [0], **half), whole)
    pictures(pipe, prompt, [0], **half)
    assert not pipe.unet._forward_pre_hooks
