"""What is found in a pipeline, and where words stand in its prompts."""

from __future__ import annotations

import pytest
import torch
from rankedit_recipes.diffusion.errors import PipelineError
from rankedit_recipes.diffusion.parts import Parts

from tests.diffusion import pipelines


@pytest.fixture(scope="module")
def pipe():
    return pipelines.stable_diffusion()


@pytest.mark.parametrize(
    ("make", "count", "width", "direct"),
    [
        ("stable_diffusion", 4, 32, True),
        ("stable_diffusion_xl", 8, 96, True),
        ("pixart", 2, 24, False),
        ("sana", 2, 8, False),
    ],
)
def test_keys_and_values_are_found_by_running_the_model(make, count, width, direct):
    found = Parts(getattr(pipelines, make)()).targets
    assert len(found.keys) == len(found.values) == count
    assert all(name.endswith("attn2.to_k") for name in found.keys)
    assert all(name.endswith("attn2.to_v") for name in found.values)
    assert (found.width, found.direct) == (width, direct)


def test_models_that_are_told_sizes_are_told_them():
    parts = Parts(pipelines.pixart(sized=True))
    assert parts.targets == Parts(pipelines.pixart()).targets
    text, latents = parts.text.encode(["a cat"]), torch.ones(1, 4, 8, 8)
    told = {"resolution": torch.tensor([[16.0, 16.0]]), "aspect_ratio": torch.tensor([[1.0]])}
    with torch.no_grad():
        given = parts.denoiser.run(latents, torch.ones(1), text)
        wanted = parts.denoiser.module(
            hidden_states=latents, timestep=torch.ones(1), encoder_hidden_states=text.embeds,
            encoder_attention_mask=text.mask, added_cond_kwargs=told, return_dict=False,
        )[0][:, :4]  # fmt: skip
    assert int(parts.pipe.vae_scale_factor) == 2
    torch.testing.assert_close(given, wanted, rtol=0, atol=0)


def test_names_do_not_matter(pipe):
    renamed = pipelines.stable_diffusion()
    attention = renamed.unet.mid_block.attentions[0].transformer_blocks[0].attn2

    class Swapped:
        """The attention's processor of diffusers, told that keys are values."""

        def __init__(self, own):
            self.own = own

        def __call__(self, attn, *args, **kwargs):
            attn.to_k, attn.to_v = attn.to_v, attn.to_k
            try:
                return self.own(attn, *args, **kwargs)
            finally:
                attn.to_k, attn.to_v = attn.to_v, attn.to_k

    attention.processor = Swapped(attention.processor)
    name = "mid_block.attentions.0.transformer_blocks.0.attn2"
    found = Parts(renamed).targets
    assert found.keys[1] == f"{name}.to_v"
    assert found.values[1] == f"{name}.to_k"


def test_what_projections_read_is_what_the_model_gives_them():
    pipe = pipelines.pixart()
    encoded = Parts(pipe).text.encode(["a photo of a cat", "a dog"])
    expected = pipe.transformer.caption_projection(encoded.embeds)
    torch.testing.assert_close(Parts(pipe).reads(encoded), expected)


def test_positions_of_phrases_and_of_every_occurrence(pipe):
    prompts = ["a teddy bear and a teddy bear", "a bear", "a cat"]
    texts = Parts(pipe).text
    encoded = texts.encode(prompts)
    assert texts.positions(encoded, "teddy bear") == [[3, 7], [], []]
    assert texts.positions(encoded, "bear") == [[3, 7], [2], []]
    with pytest.raises(PipelineError, match=r"'cat' is not among the 24 tokens.*'a dog'"):
        texts.required_positions(["a cat", "a dog"], texts.encode(["a cat", "a dog"]), "cat")
    cut = " ".join(["a"] * 30) + " cat"
    with pytest.raises(PipelineError, match="nearer to the beginning"):
        texts.required_positions([cut], texts.encode([cut]), "cat")
    with pytest.raises(PipelineError, match="a list of at least one prompt"):
        Parts(pipe).text.encode("a cat")


def test_token_policies(pipe):
    prompts = ["a cat", "a teddy bear"]
    encoded = Parts(pipe).text.encode(prompts)
    for tokens, counts in {"all": [24, 24], "eos": [4, 5], "content": [2, 3]}.items():
        assert Parts(pipe).text.token_mask(encoded, tokens).sum(1).tolist() == counts
    with pytest.raises(PipelineError, match="tokens must be 'all', 'eos' or 'content'"):
        Parts(pipe).text.token_mask(encoded, "some")
    masked = pipelines.pixart()
    found = Parts(masked).text.encode(prompts)
    assert Parts(masked).text.token_mask(found, "all").sum(1).tolist() == [3, 4]
