"""Attached edits under diffusers' hooks, and layers that its fused attention no longer calls."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rankedit import AttachError
from rankedit.models.patching import attach
from tests.patching_cases import KINDS, added_to, low_rank, state_of, tensors_in
from tests.unet_cases import TEXT, edits_of, names_of, output, tiny_unet

pytest.importorskip("diffusers")
pytest.importorskip("peft")

pytestmark = pytest.mark.filterwarnings("ignore:.*:FutureWarning", "ignore:.*:UserWarning")


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


class TestHooks:
    @pytest.mark.parametrize("first", ["edit", "hook"])
    def test_layerwise_casting(self, kind, first):
        unet = tiny_unet()
        name, edit = next(iter(edits_of(unet, kind).items()))
        cast = {"storage_dtype": torch.float8_e4m3fn, "compute_dtype": torch.float32}
        if first == "edit":
            attachment = attach(unet, {name: edit})
        unet.enable_layerwise_casting(**cast)
        if first == "hook":
            attachment = attach(unet, {name: edit})
        layer = unet.get_submodule(name)
        assert layer.weight.dtype == torch.float8_e4m3fn
        edited = layer(TEXT)
        assert {tensor.dtype for _, tensor in tensors_in(layer)} == {torch.float32}
        attachment.detach()
        added = added_to(layer.weight.float(), edit, TEXT)
        rtol = (
            0.2 if first == "edit" and kind is KINDS["gated"] else 1e-4
        )  # bound to the full weight
        assert float((edited - layer(TEXT) - added).norm() / added.norm()) < rtol

    @pytest.mark.parametrize("first", ["edit", "hook"])
    @pytest.mark.parametrize("level", ["block_level", "leaf_level"])
    def test_group_offloading(self, kind, first, level):
        from diffusers.hooks import apply_group_offloading

        unet, groups = tiny_unet(), {"num_blocks_per_group": 1} if level == "block_level" else {}
        edits, plain = edits_of(unet, kind), tiny_unet()
        base = output(plain)
        if first == "edit":
            attachment = attach(unet, edits)
        device = torch.device("cpu")
        apply_group_offloading(
            unet, onload_device=device, offload_device=device, offload_type=level, **groups
        )
        if first == "hook":
            attachment = attach(unet, edits)
        with attach(plain, edits):
            torch.testing.assert_close(output(unet), output(plain))
        attachment.detach()
        assert torch.equal(output(unet), base)


class TestFusedProjections:
    def test_layers_that_are_no_longer_called_are_refused(self):
        unet = tiny_unet()
        unet.fuse_qkv_projections()
        before = state_of(unet)
        name = names_of(unet)[0]
        with pytest.raises(AttachError, match=r"to_k' is never called since .* 'to_kv'.*unfuse_"):
            attach(unet, {name: low_rank(32, 64)})
        own = name.replace("attn2", "attn1")
        with pytest.raises(AttachError, match=r"is never called since .* runs 'to_qkv'"):
            attach(unet, {own: low_rank(64, 64)})
        assert state_of(unet) == before

    def test_their_rows_can_be_edited_instead(self, kind):
        unet = tiny_unet()
        name, edit = next(iter(edits_of(unet, kind).items()))
        with attach(unet, {name: edit}):
            expected = output(unet)
        unet.fuse_qkv_projections()
        with attach(unet, {name.replace("to_k", "to_kv[0:64]"): edit}):
            torch.testing.assert_close(output(unet), expected)

    def test_after_unfusing_they_are_called_again(self, kind):
        unet = tiny_unet()
        base = output(unet)
        unet.fuse_qkv_projections()
        unet.unfuse_qkv_projections()
        with attach(unet, edits_of(unet, kind)):
            assert not torch.allclose(output(unet), base)

    def test_the_newer_kind_of_attention(self):
        from diffusers.models.transformers.transformer_flux import FluxAttention

        attention = FluxAttention(query_dim=32, heads=2, dim_head=16, added_kv_proj_dim=32)
        model = nn.ModuleDict({"attn": attention})
        attention.fuse_projections()
        for child in ("to_q", "add_k_proj"):
            with pytest.raises(AttachError, match="never called since its projections were fused"):
                attach(model, {f"attn.{child}": low_rank(32, 32)})
        attention.unfuse_projections()
        attach(model, {"attn.to_q": low_rank(32, 32)}).detach()

    def test_the_output_projection_of_a_fused_attention_still_is_called(self):
        unet = tiny_unet()
        unet.fuse_qkv_projections()
        base = output(unet)
        with attach(unet, {names_of(unet)[0].replace("to_k", "to_out.0"): low_rank(64, 64)}):
            assert not torch.allclose(output(unet), base)
