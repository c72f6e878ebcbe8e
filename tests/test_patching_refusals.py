"""What attach refuses, in words, and that a refusal or a failure leaves the model bitwise."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rankedit import (
    AttachError,
    GatedEdit,
    LowRank,
    ProjectionError,
    ShapeError,
    Sigmoid,
)
from rankedit.models import binding, patching, swapping
from rankedit.models.fusing import fuse_, unfuse_
from rankedit.models.patching import attach
from rankedit.models.projections import Projection
from tests.patching_cases import gated, low_rank, residual, state_of

X = torch.randn(5, 3, 16, generator=torch.Generator().manual_seed(1))


def encoder(kind=nn.TransformerEncoderLayer, *, batch_first):
    torch.manual_seed(0)
    layer = kind(16, 2, 32, batch_first=batch_first)
    return layer.eval().requires_grad_(requires_grad=False)


class TestAllOrNothing:
    NAMES = ("inner", "outer", "head")

    def edits(self, model):
        sizes = {name: model.get_submodule(name) for name in self.NAMES}
        return {name: gated(at.in_features, at.out_features) for name, at in sizes.items()}

    @pytest.mark.parametrize("index", range(3))
    @pytest.mark.parametrize("place", ["bind", "install", "class", "settle"])
    def test_a_failure_at_any_layer_leaves_the_model_bitwise(self, monkeypatch, index, place):
        model = residual()
        edits, before, outputs = self.edits(model), state_of(model), model(X)
        calls = []

        def failing(original):
            def run(*args, **kwargs):
                calls.append(place)
                if len(calls) == index + 1:
                    raise MemoryError(f"injected at {index}")
                return original(*args, **kwargs)

            return run

        if place == "bind":
            monkeypatch.setattr(GatedEdit, "bind", failing(GatedEdit.bind))
        elif place == "install":
            monkeypatch.setattr(patching, "install", failing(patching.install))
        elif place == "class":
            monkeypatch.setattr(swapping, "edited_class", failing(swapping.edited_class))
        else:
            monkeypatch.setattr(swapping, "_settle", failing(swapping._settle))
        with pytest.raises(MemoryError, match="injected"):
            attach(model, edits)
        monkeypatch.undo()
        assert state_of(model) == before
        assert torch.equal(model(X), outputs)

    @pytest.mark.parametrize("index", range(3))
    def test_a_bad_edit_at_any_layer(self, index):
        model = residual()
        edits, before = self.edits(model), state_of(model)
        edits[self.NAMES[index]] = low_rank(3, 3)
        with pytest.raises(ShapeError, match=r"attach: the edit of .* must be \[out, in\]"):
            attach(model, edits)
        assert state_of(model) == before


class TestRefusals:
    def test_unknown_names_list_the_nearest(self):
        with pytest.raises(ProjectionError, match=r"layer 'iner': .*nearest names are inner"):
            attach(residual(), {"iner": low_rank(16, 32)})

    def test_a_model_needs_names(self):
        with pytest.raises(ProjectionError, match=r"attach: the layer itself .*not a projection"):
            attach(residual(), low_rank(16, 32))

    def test_edits_of_another_size(self):
        with pytest.raises(ShapeError, match=r"\[32, 16\] like the projection, got \[16, 32\]"):
            attach(residual(), {"inner": low_rank(32, 16)})
        with pytest.raises(ShapeError, match=r"rows 0 to 8\) must be \[out, in\] = \[8, 16\]"):
            attach(residual(), {"inner[0:8]": low_rank(16, 32)})

    def test_rows_outside_the_layer(self):
        with pytest.raises(ProjectionError, match="rows must be a slice"):
            attach(residual(), {"inner[0:33]": low_rank(16, 33)})

    @pytest.mark.parametrize(
        "edits", [{"inner": 3}, {"inner": []}, {4: low_rank(16, 32)}, {"inner": None}, None]
    )
    def test_other_objects(self, edits):
        with pytest.raises(AttachError, match=r"expected {name: edit or list of edits}"):
            attach(residual(), edits)

    def test_a_projection_takes_no_names(self):
        with pytest.raises(AttachError, match="a Projection takes an edit or a list"):
            attach(Projection(residual().inner), {"inner": low_rank(16, 32)})

    @pytest.mark.parametrize("strength", [float("inf"), float("nan"), "1"])
    def test_strength_must_be_a_finite_number(self, strength):
        with pytest.raises(AttachError, match="attach: strength must be a finite number"):
            attach(residual(), {"inner": low_rank(16, 32)}, strength=strength)

    def test_one_layer_under_two_names(self):
        model = residual()
        model.alias = model.inner
        with pytest.raises(AttachError, match="'inner' and 'alias' are one and the same layer"):
            attach(model, {"inner": low_rank(16, 32), "alias": low_rank(16, 32)})

    def test_a_forward_that_would_ignore_the_edit(self):
        model = residual()
        original = model.inner.forward
        model.inner.forward = lambda x: original(x)
        with pytest.raises(AttachError, match=r"'inner' .*forward replaced by .*ignore the edit"):
            attach(model, {"inner": low_rank(16, 32)})

    def test_names_of_tensors(self):
        class Odd(LowRank):
            def bind(self, outputs):
                return {"strength": self.up}

        with pytest.raises(AttachError, match=r"Odd\.bind names a tensor 'strength'"):
            attach(residual(), {"inner": Odd(torch.ones(32, 1), torch.ones(1, 16))})

    def test_attention_that_uses_its_weights_in_a_function(self):
        model = nn.ModuleDict({"attention": nn.MultiheadAttention(16, 2)})
        with pytest.raises(AttachError, match=r"out_proj' is never called: nn\.Multihead"):
            attach(model, {"attention.out_proj": low_rank(16, 16)})

    def test_layers_that_the_fused_encoder_never_calls(self):
        model = nn.ModuleDict({"encoder": encoder(batch_first=True)})
        edits = {"encoder.linear1": low_rank(16, 32)}
        with pytest.raises(AttachError, match=r"linear1' is not called in eval .*fastpath_enabled"):
            attach(model, edits)
        fuse_(model, edits)  # the fused function reads the weight
        fused = model["encoder"](X)
        unfuse_(model)
        enabled = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            with attach(model, edits):
                torch.testing.assert_close(model["encoder"](X), fused, rtol=1e-4, atol=1e-5)
        finally:
            torch.backends.mha.set_fastpath_enabled(enabled)
        assert not torch.allclose(model["encoder"](X), fused, atol=1e-2)

    def test_encoder_layers_without_the_fused_path_take_edits(self):
        class Own(nn.TransformerEncoderLayer):
            def forward(self, x):
                return self.linear2(self.linear1(x))

        for layer in (encoder(batch_first=False), encoder(Own, batch_first=True)):
            base = layer(X)
            with attach(nn.ModuleDict({"encoder": layer}), {"encoder.linear1": low_rank(16, 32)}):
                assert not torch.allclose(layer(X), base, atol=1e-2)

    def test_learned_tensors_on_another_device(self):
        edit = low_rank(16, 32)
        learned = LowRank(edit.up.requires_grad_(), edit.down)
        with pytest.raises(AttachError, match="'up' requires gradients and must be on the layer's"):
            binding._placed("attach", "up", learned.up, torch.device("meta"), torch.float32)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
    def test_learned_tensors_that_would_be_cast(self, dtype):
        model, edit, static = residual(), gated(16, 32), low_rank(16, 32)
        before = state_of(model)
        bias = torch.tensor(0.1, dtype=dtype, requires_grad=True)
        learned = {
            "targets": edit.with_targets(edit.targets.to(dtype).requires_grad_()),
            "bias": edit.with_gate(Sigmoid(bias, 0.5)),
            "up": LowRank(static.up.to(dtype).requires_grad_(), static.down.to(dtype)),
        }
        for name, other in learned.items():
            with pytest.raises(AttachError, match=rf"'{name}' requires .* must be float32.*make"):
                attach(model, {"inner": other})
        assert state_of(model) == before

    def test_learned_keys_make_bound_tensors_by_a_computation(self):
        layer, edit = residual().inner, gated(16, 32)
        keys = edit.keys.clone().requires_grad_()
        images = keys * 2  # under the metric of the identity over two
        with attach(layer, GatedEdit.from_images(keys, edit.targets, images, Sigmoid(0.1, 0.5))):
            layer(X).square().sum().backward()
        assert keys.grad is not None
        assert keys.grad.norm() > 0
