"""Families that cannot be worked with are refused for the reason that they have."""

from __future__ import annotations

import pytest
import torch
from rankedit_recipes.diffusion.errors import PipelineError
from rankedit_recipes.diffusion.parts import find_targets
from rankedit_recipes.diffusion.statistics import second_moment
from rankedit_recipes.perfusion.learning.training import learn

from tests.diffusion import pipelines
from tests.diffusion.families import tiny

JOINT = r"text and picture attend jointly \(text rows read the picture"
REASONS = {
    "cogvideox": JOINT,
    "cogview4": JOINT,
    "flux": JOINT,
    "lumina_2": JOINT,
    "qwen_image": JOINT,
    "z_image": JOINT,
    "kandinsky_5": r"keys read the time step beside the text \('visual_transformer_blocks.0",
    "prx": r"one projection \('blocks.0.attention.txt_kv_proj'\) makes keys and values together",
    "lumina_next": "cross-attention layers of LuminaNextDiT2DModel read different encodings",
    "nucleus": "cross-attention layers of NucleusMoEImage.* read different encodings",
    "hunyuan_dit": "keys read 333 vectors of a prompt whose encoding has 77 tokens",
}


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.filterwarnings("ignore:.*LoraLoaderMixin")
@pytest.mark.parametrize("name", REASONS)
def test_a_family_is_refused_for_its_reason(name):
    if name == "prx":
        pytest.importorskip("ftfy", reason="PRX's own pipeline needs it")
    pipe = getattr(tiny, name)()
    before = dict(vars(pipe))
    drawn = torch.get_rng_state()
    with pytest.raises(PipelineError, match=REASONS[name]):
        second_moment(pipe, ["a cat"], progress=False)
    assert vars(pipe) == before
    assert torch.equal(torch.get_rng_state(), drawn)


def test_a_model_is_refused_before_words_and_photos():
    # Its tokenizer is a processor of pictures and texts, which words cannot be put into.
    with pytest.raises(PipelineError, match=REASONS["kandinsky_5"]):
        learn(tiny.kandinsky_5(), [], placeholder="<bean>", category="cat", statistics=["a cat"])


def test_stable_diffusion_3_is_refused_as_joint():
    with pytest.raises(PipelineError, match=JOINT):
        second_moment(pipelines.stable_diffusion_3(), ["a cat"], progress=False)


def test_two_denoisers_in_turn_are_refused():
    pipe = tiny.wan(transformer_2=tiny.wan().transformer, boundary_ratio=0.5)
    with pytest.raises(
        PipelineError, match=r"two networks in turn \(transformer and transformer_2"
    ):
        find_targets(pipe)


def test_pipelines_that_need_more_than_a_prompt_say_what_they_said():
    pipe = tiny.ltx()

    class Needy(type(pipe)):
        def __call__(self, prompt=None, image=None, **_):
            raise ValueError("`image` has to be given")

    pipe.__class__ = Needy
    with pytest.raises(
        PipelineError, match=r"cannot be run with a prompt alone.*`image` has to be"
    ):
        find_targets(pipe)


def test_a_library_that_is_absent_is_named():
    pipe = tiny.ltx()

    class Cleaning(type(pipe)):
        def __call__(self, prompt=None, **_):
            return ftfy.fix_text(prompt)  # noqa: F821 - as diffusers does

    pipe.__class__ = Cleaning
    with pytest.raises(PipelineError, match=r"needs a library that is not installed.*'ftfy'"):
        find_targets(pipe)
