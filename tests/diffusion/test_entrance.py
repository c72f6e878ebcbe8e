"""Where the text enters denoisers, and what is refused."""

import pytest
import torch
from rankedit_recipes.diffusion.errors import PipelineError
from rankedit_recipes.diffusion.parts import Parts
from rankedit_recipes.diffusion.statistics import second_moment
from torch import nn

from tests.diffusion import pipelines
from tests.diffusion.families import joint, tiny
from tests.diffusion.pipelines import CAPTIONS


@pytest.mark.filterwarnings("ignore:.*LoraLoaderMixin")
@pytest.mark.parametrize(
    ("make", "names", "direct", "pooled"),
    [
        (tiny.flux, ("context_embedder",), True, True),
        (tiny.cogvideox, ("patch_embed.text_proj",), True, False),
        (joint.chroma, ("context_embedder",), True, False),
        (tiny.qwen_image, ("txt_in",), False, False),  # behind a norm
        (tiny.kandinsky_5, ("text_embeddings.in_layer",), True, True),
    ],
)
def test_the_first_projection_that_the_text_passes(make, names, direct, pooled):
    parts = Parts(make(), entrance=True)
    found = parts.targets
    assert (found.names, found.direct, parts.pooled) == (names, direct, pooled)
    assert parts.targets is found  # searched for once
    assert not any(m._forward_hooks for m in parts.denoiser.plain.modules())
    with pytest.raises(PipelineError):  # without being asked for, joint attention stays refused
        _ = Parts(parts.pipe).targets


def test_cross_attention_keeps_its_keys_and_values():
    pipe = pipelines.stable_diffusion()
    assert Parts(pipe, entrance=True).targets == Parts(pipe).targets


def test_prompts_of_a_batch_are_read_as_each_by_itself():
    """Z-Image puts all prompts into one sequence, and fills each up."""
    parts = Parts(tiny.z_image(), entrance=True)
    prompts = ["a photo of a cat", "a red teddy bear on the grass at night"]
    encoded = parts.text.encode(prompts)
    both, mask = parts.reads(encoded), parts.text.token_mask(encoded, "all")
    assert mask.sum(1).tolist() == [6, 10]
    for index, prompt in enumerate(prompts):
        alone = parts.reads(parts.text.encode([prompt]))[0]
        assert torch.allclose(both[index, : len(alone)], alone, atol=1e-5)


def test_statistics_of_what_the_entrance_reads():
    pipe = tiny.qwen_image()
    parts = Parts(pipe, entrance=True)
    moment = second_moment(pipe, CAPTIONS[:3], entrance=True, progress=False)
    rows = [parts.reads(parts.text.encode([text]))[0] for text in CAPTIONS[:3]]
    every = torch.cat(rows).double()
    assert moment.count == len(every)
    assert torch.allclose(moment.matrix, every.T @ every / len(every), atol=1e-5)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (tiny.hunyuan_dit, "6 projections that read different encodings"),
        (joint.hunyuan_image, "2 projections that read different encodings"),
    ],
)
def test_several_entrances_are_refused(make, said):
    with pytest.raises(PipelineError, match=said):
        _ = Parts(make(), entrance=True).targets


def test_text_that_passes_by_projections_is_refused():
    pipe = tiny.flux()

    def add(_, args, kwargs, output):
        return (output[0] + kwargs["encoder_hidden_states"].mean(), *output[1:])

    pipe.transformer.register_forward_hook(add, with_kwargs=True)
    with pytest.raises(PipelineError, match="in other ways than through projections"):
        _ = Parts(pipe, entrance=True).targets


def test_an_entrance_that_is_no_projection_is_refused():
    pipe = tiny.flux()
    width = pipe.transformer.inner_dim

    class Padded(nn.Module):
        def forward(self, text):
            return nn.functional.pad(text, (0, width - text.shape[-1]))

    pipe.transformer.context_embedder = Padded()
    with pytest.raises(PipelineError, match="12 projections that read different encodings"):
        _ = Parts(pipe, entrance=True).targets


class Behind(nn.Module):
    """A projection that reads the text otherwise, or more than once."""

    def __init__(self, inner, change):
        super().__init__()
        self.inner, self.change = inner, change

    def forward(self, text):
        return self.change(self.inner, text)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda inner, text: inner(text) + inner(text / 2), "enters through once in each step"),
        (lambda inner, text: inner(text.flip(1)), "not known which row is which token's"),
        (lambda inner, text: inner(text + text.mean(1, keepdim=True)), None),
    ],
)
def test_text_that_is_read_twice_or_out_of_order_is_refused(change, said):
    pipe = tiny.flux()
    pipe.transformer.context_embedder = Behind(pipe.transformer.context_embedder, change)
    parts = Parts(pipe, entrance=True)
    if said is None:  # a little of all tokens is in each, as behind a refiner's attention
        assert parts.targets.names == ("context_embedder.inner",)
        return
    with pytest.raises(PipelineError, match=said):
        _ = parts.targets


def test_two_denoisers_in_turn_are_refused():
    pipe = tiny.wan(transformer_2=tiny.wan().transformer, boundary_ratio=0.5)
    with pytest.raises(PipelineError, match="two networks in turn"):
        _ = Parts(pipe, entrance=True).targets
