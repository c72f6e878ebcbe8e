"""Whether a model calls what is edited: observed while it runs, told by name, warned of."""

from __future__ import annotations

import contextlib
import copy
import pickle
import warnings
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.functional import linear

from rankedit import Projection, RankeditWarning, attach, detach_all, fuse_, unfuse_
from rankedit.linear_outputs import linear_output
from tests.patching_cases import gated, low_rank, residual, state_of

X = torch.randn(5, 3, 16, generator=torch.Generator().manual_seed(1))
WHEN = "1 projections were not called"
WHY = "may use their weights in a function .*probe.* do nothing: .*with fuse_"


class Functional(nn.Module):
    """Uses the weight of one of its layers without calling the layer."""

    def __init__(self):
        super().__init__()
        self.used, self.called = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x):
        return self.called(linear(x, self.used.weight, self.used.bias))


class Attention(nn.Module):
    """Hands the weights of its projections to torch's function, as WavLM does."""

    def __init__(self):
        super().__init__()
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            setattr(self, name, nn.Linear(16, 16))

    def forward(self, x):
        biases = torch.cat([self.q_proj.bias, self.k_proj.bias, self.v_proj.bias])
        return nn.functional.multi_head_attention_forward(
            x, x, x, 16, 2, None, biases, None, None, False, 0.0,
            self.out_proj.weight, self.out_proj.bias, use_separate_proj_weight=True,
            q_proj_weight=self.q_proj.weight, k_proj_weight=self.k_proj.weight,
            v_proj_weight=self.v_proj.weight,
        )[0]  # fmt: skip


def made(kind):
    torch.manual_seed(0)
    return kind().requires_grad_(requires_grad=False)


class TestNeverReached:
    @pytest.mark.parametrize(
        ("kind", "name"), [(Functional, "used"), (Attention, "v_proj"), (Attention, "out_proj")]
    )
    def test_the_first_call_of_the_model_tells(self, kind, name):
        model = made(kind)
        base = model(X)
        with attach(model, {name: low_rank(16, 16)}) as attachment:
            assert attachment.reached == {name: False}
            with pytest.warns(
                RankeditWarning, match=f"{WHEN} in the model's first call: '{name}'.*{WHY}"
            ):
                assert torch.equal(model(X), base)
            assert attachment.reached == {name: False}
            model(X)  # told once

    @pytest.mark.parametrize("switch", ["eval", "no_grad"])
    def test_a_fast_way_in_another_mode_is_told_of(self, switch):
        class Fast(nn.Module):
            def __init__(self):
                super().__init__()
                self.layer, self.head = nn.Linear(16, 16), nn.Linear(16, 16)

            def forward(self, x):
                slow = self.training and torch.is_grad_enabled()
                inner = self.layer(x) if slow else x @ self.layer.weight.T + self.layer.bias
                return self.head(inner)

        model = made(Fast)
        with attach(model, {"layer": low_rank(16, 16)}) as attachment:
            model(X)
            assert attachment.reached == {"layer": True}
            with torch.set_grad_enabled(switch != "no_grad"):
                model.train(mode=switch != "eval")
                with pytest.warns(RankeditWarning, match=f"{WHEN} .*the first in this mode: 'laye"):
                    model(X)
            assert attachment.reached == {"layer": False}

    def test_torchs_fused_encoder_that_was_switched_off_and_on(self):
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
        model = made(lambda: nn.Sequential(layer)).eval()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            with torch.no_grad(), attach(model, {"0.linear1": low_rank(16, 32)}) as attachment:
                model(X)
                torch.backends.mha.set_fastpath_enabled(True)
                with pytest.warns(RankeditWarning, match=rf"{WHEN} .*the first in this mode"):
                    model(X)
                assert attachment.reached == {"0.linear1": False}
        finally:
            torch.backends.mha.set_fastpath_enabled(True)

    def test_a_way_of_its_own_that_is_put_into_a_block_afterwards(self):
        model = made(lambda: nn.Sequential(nn.ModuleDict({"a": nn.Linear(16, 16)})))
        block = model[0]
        block.forward = lambda x: block["a"](x)
        with attach(model, {"0.a": low_rank(16, 16)}) as attachment:
            model(X)
            block.forward = lambda x: x @ block["a"].weight.T
            with pytest.warns(RankeditWarning, match="rearranged"):
                model(X)
            assert attachment.reached == {"0.a": False}

    def test_beside_edits_that_are_it_is_told_at_the_end(self):
        model = made(Functional)
        edits = {"used": low_rank(16, 16), "called": gated(16, 16)}
        attachment = attach(model, edits)
        for _ in range(2):
            model(X)
        assert attachment.reached == {"used": False, "called": True}
        with pytest.warns(RankeditWarning, match=f"{WHEN} while edits were .*: 'used'.*{WHY}"):
            attachment.detach()
        attachment.detach()
        with pytest.warns(RankeditWarning, match="not called .*: 'used'"), attach(model, edits):
            model(X)

    def test_nothing_is_told_of_what_never_ran_or_was_broken_off(self):
        model = made(Functional)
        edits = {"used": gated(16, 16), "called": gated(16, 16)}
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            with attach(model, edits):
                pass
            with contextlib.suppress(KeyError), attach(model, edits):
                model(X)
                raise KeyError
        assert not told

    @pytest.mark.parametrize("alone", [lambda m: m.used, lambda m: Projection(m.used)])
    @pytest.mark.parametrize("ran", [True, False])
    def test_a_layer_alone_is_told_of_at_the_end(self, alone, ran):
        model = made(Functional)
        attachment = attach(alone(model), low_rank(16, 16))
        if ran:  # which nobody sees
            model(X)
        assert attachment.reached == {"": False}
        with pytest.warns(RankeditWarning, match=f"{WHEN} while .*alone.*by name.* with fuse_"):
            attachment.detach()
        with attach(alone(model), gated(16, 16)):
            model.used(X)

    def test_nothing_is_told_of_what_is_reached(self):
        model = residual()
        edits = {"inner": [low_rank(16, 32), gated(16, 32)], "head": low_rank(16, 8)}
        with attach(model, edits) as attachment:
            model(X)
            assert attachment.reached == {"inner": True, "head": True}
        with attach(model.inner, low_rank(16, 32)) as attachment:
            assert attachment.reached == {"": False}
            model(X)
            assert attachment.reached == {"": True}

    def test_to_ask_a_layer_is_no_call_of_it(self):
        model = made(Functional)
        with attach(model, {"called": gated(16, 16)}) as attachment:
            linear_output(model.called, torch.randn(2, 16))
            attach(model, {"called": gated(16, 16)}).detach()
            assert attachment.reached == {"called": False}

    def test_experts_that_no_token_came_to_are_told_of_at_the_end_only(self):
        class Routed(nn.Module):
            def __init__(self):
                super().__init__()
                self.experts = nn.ModuleList([nn.Linear(16, 16) for _ in range(3)])

            def forward(self, x, expert):
                return self.experts[expert](x)

        model = made(Routed)
        names = [f"experts.{i}" for i in range(3)]
        attachment = attach(model, {name: low_rank(16, 16) for name in names})
        model(X, 0)
        model(X, 1)
        assert attachment.reached == dict(zip(names, (True, True, False), strict=True))
        with pytest.warns(RankeditWarning, match=rf"{WHEN} while .*: 'experts\.2'"):
            attachment.detach()

    def test_an_edit_in_the_weight_acts_all_the_same(self):
        for kind, name in ((Attention, "v_proj"), (Functional, "used")):
            model = made(kind)
            base = model(X)
            fuse_(model, {name: low_rank(16, 16)})
            assert not torch.allclose(model(X), base, atol=1e-3)
            unfuse_(model)
        attention = nn.MultiheadAttention(16, 2).requires_grad_(requires_grad=False)
        base = attention(X, X, X)[0]
        fuse_(nn.ModuleDict({"a": attention}), {"a.out_proj": low_rank(16, 16)})
        assert not torch.allclose(attention(X, X, X)[0], base, atol=1e-3)

    @pytest.mark.parametrize("names", [["v_proj"], ["out_proj"], ["v_proj", "out_proj"]])
    def test_wavlm(self, names):
        transformers = pytest.importorskip("transformers")
        torch.manual_seed(0)
        config = transformers.WavLMConfig(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
            conv_dim=(16,), conv_stride=(5,), conv_kernel=(10,), num_feat_extract_layers=1,
            num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2,
        )  # fmt: skip
        model = transformers.WavLMModel(config).eval().requires_grad_(requires_grad=False)
        edits = {f"encoder.layers.0.attention.{name}": low_rank(16, 16) for name in names}
        with attach(model, edits), pytest.warns(RankeditWarning, match=WHY):
            model(torch.randn(1, 400))


class TestRearranged:
    """After attaching, the model puts something else in the layer's place."""

    @pytest.mark.parametrize("ran", [True, False])
    def test_a_replaced_layer(self, ran):
        model = residual()
        with attach(model, {"inner": low_rank(16, 32), "head": low_rank(16, 8)}) as attachment:
            if ran:
                model(X)
                assert attachment.reached["inner"]
            model.inner = nn.Linear(16, 32)
            with pytest.warns(
                RankeditWarning, match=rf"{WHEN} after .*: 'inner'\. The model was rearranged"
            ):
                model(X)
            assert attachment.reached == {"inner": False, "head": True}

    def test_a_replaced_block(self):
        model = nn.Sequential(nn.Sequential(residual()), nn.Identity())
        with attach(model, {"0.0.inner": low_rank(16, 32)}):
            model(X)
            model[0] = nn.Sequential(residual())
            with pytest.warns(RankeditWarning, match=r"'0\.0\.inner'\. .*rearranged"):
                model(X)

    def test_a_wrapper_around_the_layer_is_no_other_layer(self):
        from tests.layer_cases import Doubling

        model = residual()
        with attach(model, {"inner": low_rank(16, 32)}) as attachment:
            model(X)
            model.inner = Doubling(model.inner).eval()
            model(X)
            assert attachment.reached == {"inner": True}

    @pytest.mark.parametrize("place", ["block", "model", "config"])
    @pytest.mark.parametrize("values", [(False, True), ("eager", "fused")])
    def test_a_fast_way_that_a_switch_opens(self, place, values):
        class Block(nn.Module):
            def __init__(self, switch):
                super().__init__()
                self.layer, self.switch = nn.Linear(16, 16), switch

            def forward(self, x):
                if self.switch().way == values[0]:
                    return self.layer(x)
                return linear(x, self.layer.weight, self.layer.bias)

        class Model(nn.Module):
            def __init__(self):
                super().__init__()
                self.config = SimpleNamespace(way=values[0])
                self.block, self.head = Block(lambda: holder()), nn.Linear(16, 16)
                self.way = self.block.way = values[0]

            def forward(self, x):
                return self.head(self.block(x))

        model = made(Model)
        holder = {
            "block": lambda: model.block, "model": lambda: model, "config": lambda: model.config,
        }[place]  # fmt: skip
        with attach(model, {"block.layer": low_rank(16, 16)}) as attachment:
            model(X)
            assert attachment.reached == {"block.layer": True}
            holder().way = values[1]
            with pytest.warns(RankeditWarning, match=r"'block\.layer'\. .*switch of its modules"):
                model(X)
            assert attachment.reached == {"block.layer": False}

    def test_a_layer_that_later_calls_leave_out_is_no_other_layer(self):
        """Keys and values of a text that are kept from the first step of a generation."""

        class Keeping(nn.Module):
            def __init__(self):
                super().__init__()
                self.key, self.out, self.kept = nn.Linear(16, 16), nn.Linear(16, 16), None
                self.full = False

            def forward(self, x):
                self.kept = self.key(x) if self.kept is None else self.kept
                self.full = True
                return self.out(self.kept)

        model = made(Keeping)
        with attach(model, {"key": low_rank(16, 16)}) as attachment:
            for _ in range(3):
                model(X)
            assert attachment.reached == {"key": True}

    @pytest.mark.filterwarnings("ignore:.*:FutureWarning", "ignore:.*:UserWarning")
    def test_projections_that_diffusers_fuses(self):
        pytest.importorskip("diffusers")
        from tests.unet_cases import names_of, output, tiny_unet

        unet = tiny_unet()
        base, name = output(unet), names_of(unet)[0]
        with attach(unet, {name: low_rank(32, 64)}) as attachment:
            assert not torch.equal(output(unet), base)
            unet.fuse_qkv_projections()
            with pytest.warns(RankeditWarning, match=r"rearranged .*projections were fused"):
                output(unet)
            assert attachment.reached == {name: False}
            unet.unfuse_qkv_projections()
            assert not torch.equal(output(unet), base)
            assert attachment.reached == {name: True}


class TestHook:
    def test_it_leaves_with_the_edits(self):
        model = residual()
        before = state_of(model)
        attachments = [attach(model, {"inner": gated(16, 32, i)}) for i in range(2)]
        assert len(model._forward_hooks) == 2
        attachments[0].detach()
        assert len(model._forward_hooks) == 1
        detach_all(model)
        assert state_of(model) == before

    def test_copies_of_the_model_do_not_tell_of_the_original(self):
        model = made(Functional)
        with attach(model, {"used": low_rank(16, 16)}):
            twins = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
            for twin in twins:
                twin(X)
        for twin in twins:
            assert detach_all(twin) == 1
            assert not twin._forward_hooks

    def test_compiled_models_are_observed_too(self):
        torch._dynamo.reset()
        model = made(Functional)
        edits = {"used": low_rank(16, 16), "called": low_rank(16, 16)}
        attachment = attach(model, edits)
        torch.compile(model, backend="eager", fullgraph=True)(X)
        assert attachment.reached == {"used": False, "called": True}
        with pytest.warns(RankeditWarning, match="not called .*: 'used'"):
            attachment.detach()
        torch._dynamo.reset()
