"""Attached edits beside a user's LoRA, in a diffusers pipeline and under its own hooks."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from rankedit.models.patching import attach
from rankedit.models.projections import geometry, innermost, select
from tests.patching_cases import KINDS, added_to
from tests.unet_cases import NOISE, TEXT, edits_of, names_of, output, tiny_pipeline, tiny_unet

pytest.importorskip("diffusers")
pytest.importorskip("peft")

pytestmark = pytest.mark.filterwarnings("ignore:.*:FutureWarning", "ignore:.*:UserWarning")


def lora_file(unet):
    """A user's LoRA on the same layers, in diffusers' own key names."""
    generator, tensors = torch.Generator().manual_seed(4), {}
    for name in names_of(unet):
        size = geometry(unet.get_submodule(name))
        down = torch.randn(2, size.in_features, generator=generator)
        tensors[f"unet.{name}.lora_A.weight"] = 0.3 * down
        up = torch.randn(size.out_features, 2, generator=generator)
        tensors[f"unet.{name}.lora_B.weight"] = 0.3 * up
    return tensors


def truth(kind):
    """The UNet with LoRA and edits written into plain layers' outputs, by hooks."""
    unet = tiny_unet()
    edits, lora = edits_of(unet, kind), lora_file(unet)
    for name, edit in edits.items():
        layer = unet.get_submodule(name)
        down, up = (lora[f"unet.{name}.lora_{part}.weight"] for part in "AB")

        def hook(layer, args, result, edit=edit, down=down, up=up):
            x = args[0]
            return result + x @ down.T @ up.T + added_to(layer.weight, edit, x)

        layer.register_forward_hook(hook)
    return output(unet)


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


@pytest.fixture
def pipe():
    return tiny_pipeline()


class TestLora:
    @pytest.mark.parametrize("first", ["edit", "lora"])
    def test_with_a_users_lora_in_either_order(self, pipe, kind, first):
        unet, base = pipe.unet, output(pipe.unet)
        edits, lora = edits_of(unet, kind), lora_file(unet)
        if first == "lora":
            pipe.load_lora_weights(lora, adapter_name="user")
            with_lora = output(unet)
        attachment = attach(unet, edits)
        if first == "edit":
            with_edits = output(unet)
            pipe.load_lora_weights(lora, adapter_name="user")
        torch.testing.assert_close(output(unet), truth(kind), rtol=1e-4, atol=1e-5)
        if first == "edit":
            pipe.unload_lora_weights()
            assert torch.equal(output(unet), with_edits)
            attachment.detach()
            assert torch.equal(output(unet), base)
        else:
            attachment.detach()
            assert torch.equal(output(unet), with_lora)
            pipe.unload_lora_weights()
            assert torch.equal(output(unet), base)
        assert all(type(unet.get_submodule(name)) is nn.Linear for name in edits)

    @pytest.mark.parametrize("first", ["edit", "lora"])
    def test_fuse_unfuse_and_unload(self, pipe, kind, first):
        unet = pipe.unet
        edits, lora = edits_of(unet, kind), lora_file(unet)
        if first == "edit":
            attach(unet, edits)
        pipe.load_lora_weights(lora, adapter_name="user")
        if first == "lora":
            attach(unet, edits)
        runtime = output(unet)
        pipe.fuse_lora()
        torch.testing.assert_close(output(unet), runtime, rtol=1e-4, atol=1e-5)
        pipe.unfuse_lora()
        torch.testing.assert_close(output(unet), runtime, rtol=1e-4, atol=1e-5)
        pipe.unload_lora_weights()
        plain = tiny_unet()
        with attach(plain, edits):
            torch.testing.assert_close(output(unet), output(plain), rtol=1e-4, atol=1e-5)

    def test_disabling_the_lora_leaves_the_edit(self, pipe, kind):
        unet = pipe.unet
        pipe.load_lora_weights(lora_file(unet), adapter_name="user")
        attach(unet, edits_of(unet, kind))
        pipe.disable_lora()
        plain = tiny_unet()
        with attach(plain, edits_of(plain, kind)):
            torch.testing.assert_close(output(unet), output(plain), rtol=1e-5, atol=1e-6)

    def test_peft_on_a_language_model(self, kind):
        import peft
        import transformers

        torch.manual_seed(0)
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
        config = transformers.LlamaConfig(**sizes, num_hidden_layers=2, vocab_size=50)
        model = transformers.LlamaForCausalLM(config).eval()
        tokens = torch.arange(6)[None]
        edit = kind(64, 32)
        with torch.no_grad(), attach(model, {"model.layers.1.mlp.down_proj": edit}):
            edited = model(tokens).logits
        lora = peft.LoraConfig(r=2, target_modules=["down_proj"], init_lora_weights=True)
        wrapped = peft.get_peft_model(model, lora).eval()
        name = "base_model.model.model.layers.1.mlp.down_proj"
        assert name in select(wrapped, "*.down_proj")
        with torch.no_grad(), attach(wrapped, {name: edit}):
            # A fresh LoRA adds nothing, so that the edit alone is seen.
            torch.testing.assert_close(wrapped(tokens).logits, edited)
            with wrapped.disable_adapter():
                torch.testing.assert_close(wrapped(tokens).logits, edited)
            wrapped.merge_adapter()
            torch.testing.assert_close(wrapped(tokens).logits, edited)
            wrapped.unmerge_adapter()
            plain = wrapped.unload()
            torch.testing.assert_close(plain(tokens).logits, edited)

    def test_adapter_files_hold_no_trace_of_the_edit(self, pipe, kind, tmp_path):
        from safetensors.torch import load_file

        unet = pipe.unet
        pipe.load_lora_weights(lora_file(unet), adapter_name="user")
        with attach(unet, edits_of(unet, kind)):
            unet.save_lora_adapter(tmp_path, adapter_name="user")
        (file,) = tmp_path.glob("*.safetensors")
        saved = {f"unet.{name}": tensor for name, tensor in load_file(file).items()}
        expected = lora_file(tiny_unet())
        assert saved.keys() == expected.keys()
        assert all(torch.equal(saved[name], expected[name]) for name in saved)


class TestPipeline:
    def test_save_pretrained_saves_the_bare_model(self, pipe, kind, tmp_path):
        from diffusers import StableDiffusionPipeline

        base = output(pipe.unet)
        state = {name: tensor.clone() for name, tensor in pipe.unet.state_dict().items()}
        with attach(pipe.unet, edits_of(pipe.unet, kind)):
            pipe.save_pretrained(tmp_path)
        loaded = StableDiffusionPipeline.from_pretrained(tmp_path, safety_checker=None).unet.eval()
        assert loaded.state_dict().keys() == state.keys()
        assert all(torch.equal(loaded.state_dict()[name], state[name]) for name in state)
        assert torch.equal(output(loaded), base)

    def test_deepcopy_is_independent(self, pipe, kind):
        unet, base = pipe.unet, output(pipe.unet)
        with attach(unet, edits_of(unet, kind)):
            edited, twin = output(unet), copy.deepcopy(unet)
        assert torch.equal(output(unet), base)
        assert torch.equal(output(twin), edited)

    def test_gradients_under_the_models_own_checkpointing(self, pipe):
        unet = pipe.unet.requires_grad_(requires_grad=False)
        kind, gradients = KINDS["gated"], []
        name, edit = next(iter(edits_of(unet, kind).items()))
        for checkpointing in (False, True):
            learned = edit.targets.clone().requires_grad_()
            (unet.enable_gradient_checkpointing if checkpointing else unet.float)()
            unet.train()
            with attach(unet, {name: edit.with_targets(learned)}):
                sample = unet(NOISE, torch.tensor([3]), encoder_hidden_states=TEXT).sample
                sample.square().sum().backward()
            gradients.append(learned.grad)
        assert float(gradients[0].norm()) > 0
        torch.testing.assert_close(gradients[1], gradients[0])


def test_innermost_of_a_lora_layer(pipe):
    pipe.load_lora_weights(lora_file(pipe.unet))
    layer = pipe.unet.get_submodule(names_of(pipe.unet)[0])
    assert type(innermost(layer)) is nn.Linear
    assert all("lora" not in name for name in select(pipe.unet, "*attn2*"))
