"""What each projection reads is found by running the model, for models of any family."""

import re

import pytest
import torch
from torch import nn

from rankedit import ProjectionError
from rankedit.models.probe import Reading, Span, probe

TEXT, SIDE, WIDTH = 7, 8, 32  # 64 picture tokens at full resolution


class Joint(nn.Module):
    """Text and image in one sequence, as in single-stream transformers, and a pooled vector."""

    def __init__(self):
        super().__init__()
        self.embed_text, self.embed_image = nn.Linear(4, 4), nn.Linear(4, 4)
        self.pooled, self.time, self.both, self.spare = (nn.Linear(4, 4) for _ in range(4))
        self.out = nn.Linear(4, 4)

    def forward(self, image, text, time):
        text, image = self.embed_text(text), self.embed_image(image)
        pooled = self.pooled(text.mean(1) + image.mean(1))
        joint = self.both(torch.cat([text, image], 1) + self.time(time)[:, None])
        return self.out(joint[:, 3:] + pooled[:, None])


def joint_inputs():
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    inputs = {"image": draw(1, 5, 4), "text": draw(1, 3, 4), "time": draw(1, 4)}
    vary = {
        "text": {"text": draw(1, 3, 4)},
        "image": {"image": draw(1, 5, 4), "time": draw(1, 4)},
    }
    return inputs, vary


def test_roles_of_a_small_model():
    inputs, vary = joint_inputs()
    found = probe(Joint(), inputs, vary)
    lengths = {"text": 3, "image": 5}
    assert {name: reading.role(lengths) for name, reading in found.items()} == {
        "embed_text": "text-static",
        "embed_image": "image-static",
        "pooled": "mixed",
        "time": "image-static",
        "both": "shared",  # the time is varied with the image, and text rows have it added
        "spare": "not called",
        "out": "image-stream",
    }
    text, image = Span(0, 3, frozenset({"text", "image"})), Span(3, 8, frozenset({"image"}))
    assert found["both"].spans == ((text, image),)
    assert found["time"].spans == ((),)
    assert found["both"].shapes == ((1, 8),)
    assert found["time"].changes == {"image"}
    assert not found["spare"].called
    fixed = probe(Joint(), inputs, {"text": vary["text"]}, which="time")
    assert fixed["time"].role(lengths) == "constant"


def test_another_number_of_calls_is_a_change():
    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.step = nn.Linear(4, 4)

        def forward(self, x, steps):
            for _ in range(steps):
                x = self.step(x) * 0 + x
            return x

    inputs = {"x": torch.ones(2, 4), "steps": 2}
    found = probe(Loop(), inputs, {"steps": {"steps": 3}, "same": {"steps": 2}})
    assert found["step"] == Reading(frozenset({"steps"}), ((2,), (2,)), ((), ()))
    inputs = {"x": torch.ones(1, 2, 4), "steps": 2}
    found = probe(Loop(), inputs, {"steps": {"steps": 1}})
    spans = Span(0, 2, frozenset()), Span(0, 2, frozenset({"steps"}))  # the second call is not made
    assert [call for (call,) in found["step"].spans] == list(spans)


class Single(nn.Module):
    """Text in front of the picture in one sequence; text rows attend to text alone, or to all."""

    def __init__(self, *, causal):
        super().__init__()
        self.first, self.second, self.causal = nn.Linear(4, 4), nn.Linear(4, 4), causal

    def forward(self, image, text, time):
        rows = self.first(torch.cat([text, image + time[:, None]], 1))
        mask = torch.ones(8, 8).tril() if self.causal else torch.ones(8, 8)
        return self.second((rows @ rows.mT * mask) @ rows)


@pytest.mark.parametrize(("causal", "second"), [(True, "shared"), (False, "joint")])
def test_rows_of_one_sequence_are_told_apart(causal, second):
    inputs, vary = joint_inputs()
    vary = {"text": vary["text"], "image": {"image": vary["image"]["image"]}}
    vary["time"] = {"time": torch.ones(1, 4)}
    found = probe(Single(causal=causal), inputs, vary)
    lengths = {"text": 3, "image": 5}
    assert [reading.role(lengths) for reading in found.values()] == ["shared", second]
    alone, seen = Span(0, 3, frozenset({"text"})), frozenset({"image", "time"})
    assert found["first"].spans == ((alone, Span(3, 8, seen)),)
    everything = seen | {"text"}
    later = (alone, Span(3, 8, everything)) if causal else (Span(0, 8, everything),)
    assert found["second"].spans == (later,)


def test_what_changes_by_itself_is_no_change():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.noisy, self.clean = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            self.noisy(torch.randn(3, 4))
            return self.clean(x)

    found = probe(Noisy(), {"x": torch.ones(2, 4)}, {"x": {"x": torch.zeros(2, 4)}})
    assert found["noisy"].changes == frozenset()
    assert found["clean"].changes == {"x"}


def test_refusals():
    inputs, vary = joint_inputs()
    with pytest.raises(ProjectionError, match="vary must name at least one argument"):
        probe(Joint(), inputs, {})
    with pytest.raises(ProjectionError, match=r"that are in inputs \(image, .*got prompt"):
        probe(Joint(), inputs, {"text": {"prompt": 1}})
    with pytest.raises(ProjectionError, match="got nothing"):
        probe(Joint(), inputs, {"text": {}})
    with pytest.raises(ProjectionError, match="7 projections were not called in the forward pass"):
        probe(Joint(), inputs, vary, call=lambda **_: None)
    with pytest.raises(ProjectionError, match="'time' reads NaN or infinity"):
        probe(Joint(), {**inputs, "time": torch.full((1, 4), torch.nan)}, vary)


# ------------------------------------------------------------------- networks as they are published


def draw(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def shaken(model):
    """Parameters that start at zero would hide what depends on what."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


def unet():
    from diffusers import UNet2DConditionModel

    model = UNet2DConditionModel(
        sample_size=SIDE,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=8,
        norm_num_groups=8,
    )
    latents = lambda seed: {"sample": draw(1, 4, SIDE, SIDE, seed=seed)}  # noqa: E731
    return (
        model,
        latents,
        {
            r".*attn2\.to_[kv]": "text-static",
            r".*attn1\.to_[qkv]": "image",
            r".*attn2\.to_q": "image",
            r"time_embedding\..*": "image-static",
        },
    )


def pixart():
    from diffusers import PixArtTransformer2DModel

    model = PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        cross_attention_dim=32,
        caption_channels=WIDTH,
        sample_size=2 * SIDE,
        in_channels=4,
        out_channels=8,
        use_additional_conditions=False,
    )
    latents = lambda seed: {  # noqa: E731
        "hidden_states": draw(1, 4, 2 * SIDE, 2 * SIDE, seed=seed),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }
    return (
        model,
        latents,
        {
            r"caption_projection\..*": "text-static",
            r".*attn2\.to_[kv]": "text-static",
            r".*attn2\.to_q": "image",
            r".*attn1\.to_[qkv]": "image",
        },
    )


def sana():
    from diffusers import SanaTransformer2DModel

    model = SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=16,
        cross_attention_dim=32,
        caption_channels=WIDTH,
        sample_size=SIDE,
        patch_size=1,
    )
    latents = lambda seed: {"hidden_states": draw(1, 4, SIDE, SIDE, seed=seed)}  # noqa: E731
    return (
        model,
        latents,
        {
            r"caption_projection\..*": "text-static",
            r".*attn2\.to_[kv]": "text-static",
            r".*attn2\.to_q": "image",
            r".*attn1\.to_[qkv]": "image",
        },
    )


def sd3():
    from diffusers import SD3Transformer2DModel

    model = SD3Transformer2DModel(
        sample_size=2 * SIDE,
        patch_size=2,
        in_channels=4,
        num_layers=3,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        caption_projection_dim=32,
        pooled_projection_dim=16,
        out_channels=4,
        pos_embed_max_size=2 * SIDE,
        dual_attention_layers=(0,),
    )
    latents = lambda seed: {"hidden_states": draw(1, 4, 2 * SIDE, 2 * SIDE, seed=seed)}  # noqa: E731
    return (
        model,
        latents,
        {
            r"context_embedder": "text-static",
            r"time_text_embed\.text_embedder\..*": "text-static",
            r".*attn\.add_[qkv]_proj": "text-stream",
            r".*ff_context\.net\.2": "text-stream",
            r".*attn\.to_[qkv]": "image",
            r".*attn2\.to_[qkv]": "image",  # not the text, whatever the name says elsewhere
        },
    )


def flux():
    from diffusers import FluxTransformer2DModel

    model = FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=16,
        axes_dims_rope=(4, 4, 8),
    )
    latents = lambda seed: {  # noqa: E731
        "hidden_states": draw(1, SIDE * SIDE, 4, seed=seed),
        "img_ids": torch.zeros(SIDE * SIDE, 3),
        "txt_ids": torch.zeros(TEXT, 3),
    }
    return (
        model,
        latents,
        {
            r"context_embedder": "text-static",
            r"transformer_blocks.*attn\.add_[qkv]_proj": "text-stream",
            r"transformer_blocks.*attn\.to_[qkv]": "image",
            r"single_transformer_blocks.*attn\.to_[qkv]": "joint",
            r"single_transformer_blocks.*proj_mlp": "joint",
        },
    )


@pytest.mark.parametrize("build", [unet, pixart, sana, sd3, flux])
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_roles_in_diffusion_networks(build):
    pytest.importorskip("diffusers")
    model, latents, expected = build()
    prompt = lambda seed: {  # noqa: E731
        "encoder_hidden_states": draw(1, TEXT, WIDTH, seed=seed),
        **({"pooled_projections": draw(1, 16, seed=seed)} if build in (sd3, flux) else {}),
    }
    step = 1.0 if build is flux else 1000.0
    inputs = {**latents(0), **prompt(1), "timestep": torch.tensor([0.3 * step])}
    vary = {
        "image": {**latents(2), "timestep": torch.tensor([0.7 * step])},
        "text": prompt(3),
    }
    found = probe(shaken(model), inputs, vary)
    lengths = {"text": TEXT, "image": SIDE * SIDE}
    roles = {name: reading.role(lengths) for name, reading in found.items()}
    for pattern, role in expected.items():
        matching = {name: r for name, r in roles.items() if re.fullmatch(pattern, name)}
        assert matching
        accepted = {"image-static", "image-stream"} if role == "image" else {role}
        if build is unet and role == "image":  # fewer tokens after downsampling
            accepted |= {"mixed"}
        assert set(matching.values()) <= accepted, matching
    # Nothing else reads the text alone but what turns the pooled text into a vector.
    static = {name for name, role in roles.items() if role == "text-static"}
    patterns = [p for p, role in expected.items() if role == "text-static"]
    others = {name for name in static if not any(re.fullmatch(p, name) for p in patterns)}
    assert all("text_embedder" in name for name in others), others
