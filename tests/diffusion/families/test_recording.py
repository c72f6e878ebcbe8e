"""A call is recorded as the pipeline makes it, and nothing of the pipeline is left changed."""

from __future__ import annotations

import threading

import pytest
import torch
from rankedit_recipes.diffusion.calling import ROWS, smallest
from rankedit_recipes.diffusion.calls import Call
from rankedit_recipes.diffusion.errors import PipelineError
from rankedit_recipes.diffusion.layout import Places, known
from rankedit_recipes.diffusion.parts import Parts
from rankedit_recipes.diffusion.recording import Asking, First
from rankedit_recipes.diffusion.words import NewWords

from tests.diffusion import pipelines
from tests.diffusion.families import tiny

PROMPT = "a photo of a cat"


def real_steps(pipe):
    """What passes the scheduler and the autoencoder in a real run without guidance."""
    seen, step, decode = [], pipe.scheduler.step, pipe.vae.decode

    def stepping(output, time, sample, *args, **kwargs):
        result = step(output, time, sample, *args, **kwargs)
        after = result[0] if isinstance(result, tuple) else result.prev_sample
        seen.append((output.clone(), time, sample.clone(), after.clone()))
        return result

    def decoding(latents, *args, **kwargs):
        seen.append(latents.clone())
        return decode(latents, *args, **kwargs)

    pipe.scheduler.step, pipe.vae.decode = stepping, decoding
    try:
        pipe(
            PROMPT, height=64, width=64, num_inference_steps=2, output_type="np",
            guidance_scale=1.0, generator=torch.Generator().manual_seed(1), **tiny.one_frame(pipe),
        )  # fmt: skip
    finally:
        del pipe.scheduler.step, pipe.vae.decode
    return seen


@pytest.mark.parametrize("name", ["wan", "ltx", "latte", "lumina_next", "sana", "pixart"])
def test_the_denoiser_gives_the_scheduler_what_it_gives_in_a_real_run(name):
    pipe = getattr(tiny if hasattr(tiny, name) else pipelines, name)()
    *steps, decoded = real_steps(pipe)
    denoiser = Parts(pipe).denoiser
    placed = denoiser._layout(64)

    def from_scheduler(latents):
        return latents.flatten(1)[:, placed.latents.index].reshape(-1, *placed.shape)

    text = Parts(pipe).text.encode([PROMPT])
    for output, time, sample, _ in steps:
        with torch.no_grad():
            mine = denoiser.run(from_scheduler(sample), time[None], text, size=64)
        torch.testing.assert_close(mine, from_scheduler(output), rtol=1e-4, atol=1e-5)
    last = from_scheduler(steps[-1][3])
    torch.testing.assert_close(denoiser.scaled(decoded, 64), last, rtol=1e-4, atol=1e-5)


def test_signs_and_times_are_those_of_the_pipeline():
    lumina = Parts(tiny.lumina_next()).denoiser._layout(64)
    assert lumina.times == (1.0, -1 / 1000)
    assert lumina.output.scale.eq(-1).all()
    assert Parts(tiny.wan()).denoiser._layout(64).times == (0.0, 1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_places_are_read_through_moving_and_scaling(dtype):
    shape = torch.Size((4, 30, 30))
    order = torch.randperm(3600, generator=torch.Generator().manual_seed(0))
    scale, shift = torch.linspace(0.5, 3, 3600), torch.linspace(-2, 2, 3600)
    numbers = known(shape, torch.zeros((), dtype=torch.float32)).flatten(1)[:, order]
    found = Places.read((numbers * scale + shift).to(dtype), "mixed")
    assert torch.equal(found.index, order)
    tolerance = 1e-5 if dtype == torch.float32 else 0.03
    torch.testing.assert_close(found.scale.float(), scale, rtol=tolerance, atol=0)
    for broken in (numbers + numbers.roll(1, 1), numbers.square(), numbers[:, :1].expand(-1, 9)):
        with pytest.raises(PipelineError, match=r"mixed, which is not supported"):
            Places.read(broken, "mixed")


def test_nothing_of_the_pipeline_is_changed_whatever_happens():
    pipe = tiny.ltx()
    before, kinds = dict(vars(pipe)), {n: type(part) for n, part in pipe.components.items()}
    scheduled = {n: str(value) for n, value in vars(pipe.scheduler).items()}
    decode, drawn = vars(pipe.vae).get("decode"), torch.get_rng_state()
    asking = Asking(pipe, pipe.transformer, 64)

    class Broken(First):
        def called(self, call):
            raise RuntimeError("broken")

    assert len(asking.first_calls([PROMPT])) == 1
    with pytest.raises(PipelineError, match="RuntimeError: broken"):
        asking.play([PROMPT], Broken(1, None))
    assert dict(vars(pipe)) == before
    assert {n: type(part) for n, part in pipe.components.items()} == kinds
    assert {n: str(value) for n, value in vars(pipe.scheduler).items()} == scheduled
    assert vars(pipe.vae).get("decode") is decode
    assert torch.equal(torch.get_rng_state(), drawn)


def test_a_compiled_denoiser_is_not_compiled_to_be_recorded():
    pipe = tiny.wan()
    plain = pipe.transformer
    pipe.transformer = torch.compile(plain, backend=lambda *_: pytest.fail("compiled"))
    compiled = pipe.transformer
    assert len(Asking(pipe, compiled, 64).first_calls([PROMPT])) == 1
    assert pipe.transformer is compiled
    assert type(compiled).__name__ == "OptimizedModule"
    assert type(plain).__name__ == "WanTransformer3DModel"


def test_pipelines_that_catch_errors_do_not_go_on():
    pipe, went_on = tiny.ltx(), []

    class Catching(type(pipe)):
        def __call__(self, prompt=None, height=64, width=64, generator=None):
            try:
                return super().__call__(prompt, height=height, width=width, num_frames=1)
            except Exception as error:
                went_on.append(error)

    pipe.__class__ = Catching
    assert Asking(pipe, pipe.transformer, 64).first_calls([PROMPT])[0].rows == 1
    assert went_on == []


def test_forwards_on_other_threads_are_answered_by_the_network():
    pipe, answers = tiny.wan(), []
    called = Asking(pipe, pipe.transformer, 64).first_calls([PROMPT])[0]

    class Meanwhile(First):
        def called(self, call: Call):
            def elsewhere():
                with torch.no_grad():
                    answers.append(pipe.transformer(*called.args, **called.kwargs)[0])

            thread = threading.Thread(target=elsewhere)
            thread.start()
            thread.join()
            return super().called(call)

    script = Meanwhile(1, None)
    Asking(pipe, pipe.transformer, 64).play([PROMPT], script)
    with torch.no_grad():
        own = pipe.transformer(*called.args, **called.kwargs)[0]
    assert len(script.calls) == 1
    assert torch.equal(answers[0], own)


def test_masks_that_pipelines_leave_out_are_known_when_they_come():
    pipe = tiny.qwen_image()
    texts, found = Parts(pipe).text, smallest(pipe, pipe.transformer)
    assert found.mask == ("encoder_hidden_states_mask",)
    assert texts.encode(["a cat", "a dog"]).mask is None
    uneven = texts.encode(["a cat on the grass at night", "a dog"])
    assert uneven.mask is not None
    assert uneven.mask.sum(1).tolist()[0] > uneven.mask.sum(1).tolist()[1]


def test_guidance_that_only_zero_turns_off_is_turned_off():
    pipe = tiny.z_image()
    found = smallest(pipe, pipe.transformer)
    assert found.asking.guidance == 0.0
    assert found.latents.shape[0] == ROWS
    assert smallest(pipe, pipe.transformer) is found


def test_prompts_that_are_cut_keep_their_words_places():
    pipe = tiny.latte()
    texts = Parts(pipe).text
    # Alone a prompt is cut to its tokens, in a batch it is not.
    alone, batch = texts.encode([PROMPT]), texts.encode([PROMPT, "a dog"])
    assert alone.embeds.shape[1] < batch.embeds.shape[1]
    assert texts.positions(alone, "cat") == [[4]]
    assert texts.positions(batch, "cat") == [[4], []]


def test_words_stand_where_they_do_behind_instructions():
    pipe = pipelines.sana()
    texts = Parts(pipe).text
    encoded = texts.encode([PROMPT])
    place = texts.positions(encoded, "cat")[0][0]
    assert encoded.tokens[0].shape == encoded.embeds.shape[:2]
    other = texts.encode([PROMPT.replace("cat", "dog")]).embeds
    # A causal encoder: the first place that differs is the word's.
    changed = (other != encoded.embeds).any(2)[0]
    assert int(changed.nonzero()[0]) == place


def test_words_cannot_be_learned_where_prompts_are_encoded_without_gradients():
    pipe = tiny.wan()

    class Closed(type(pipe)):
        @torch.no_grad()
        def encode_prompt(self, *args, **kwargs):
            return super().encode_prompt(*args, **kwargs)

    pipe.__class__ = Closed
    texts = Parts(pipe).text
    words = NewWords(texts, {"zbean": [torch.zeros(16, requires_grad=True)]})
    try:
        with pytest.raises(PipelineError, match="encodes prompts without gradients"):
            texts.encode(["a zbean"])
        with torch.no_grad():
            assert texts.encode(["a zbean"]).embeds.shape[0] == 1
        pipe.__class__ = Closed.__base__
        assert texts.encode(["a zbean"]).embeds.requires_grad
    finally:
        words.remove()
