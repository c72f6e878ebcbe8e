"""Attach, change, swap and detach: what the model does meanwhile and what is left afterwards."""

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
    binding,
    patching,
    swapping,
)
from rankedit.patching import attach, detach_all
from rankedit.projections import Projection, fingerprint, select
from tests.patching_cases import KINDS, added_to, gated, low_rank, residual, state_of
from tests.test_projections import Conv1D, Doubling, Packed, matrix_of

X = torch.randn(5, 3, 16, generator=torch.Generator().manual_seed(1))
HIDDEN = torch.randn(5, 3, 32, generator=torch.Generator().manual_seed(2))


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


class TestOutput:
    @pytest.mark.parametrize("shape", [(16,), (4, 16), (2, 3, 16), (2, 0, 16)])
    def test_an_edit_adds_to_the_output(self, kind, shape):
        layer, x = residual().inner, torch.randn(shape)
        edit, base = kind(16, 32), None
        base = layer(x)
        with attach(layer, edit, strength=0.7):
            edited = layer(x)
        torch.testing.assert_close(
            edited, base + 0.7 * added_to(layer.weight, edit, x), rtol=1e-5, atol=1e-5
        )
        assert torch.equal(layer(x), base)

    def test_conv1d_of_gpt2(self, kind):
        torch.manual_seed(0)
        layer, x, edit = Conv1D(32, 16), X, kind(16, 32)
        base = layer(x)
        with attach(layer, edit):
            torch.testing.assert_close(
                layer(x), base + added_to(matrix_of(layer).float(), edit, x), rtol=1e-5, atol=1e-5
            )

    @pytest.mark.parametrize("stride", [1, 2])
    @pytest.mark.parametrize("batched", [True, False])
    def test_convolution(self, kind, stride, batched):
        torch.manual_seed(0)
        layer, edit = nn.Conv2d(16, 32, 1, stride=stride), kind(16, 32)
        image = torch.randn(2, 16, 6, 5)
        image = image if batched else image[0]
        base = layer(image)
        pixels = image[..., ::stride, ::stride].movedim(-3, -1)
        added = added_to(matrix_of(layer).float(), edit, pixels).movedim(-1, -3)
        with attach(layer, edit):
            torch.testing.assert_close(layer(image), base + added, rtol=1e-5, atol=1e-5)

    def test_a_layer_without_a_weight(self, kind):
        torch.manual_seed(0)
        layer, edit, x = Packed(nn.Linear(16, 32)), kind(16, 32), X.bfloat16()
        base = layer(x)
        with attach(layer, edit):
            truth = added_to(matrix_of(layer).float(), edit, x)
            assert layer(x).dtype == torch.bfloat16
            assert float((layer(x) - base - truth).norm() / truth.norm()) < 0.02

    def test_rows_of_a_fused_projection(self, kind):
        layer, base = residual().inner, None
        base = layer(X)
        edit = kind(16, 8)
        expected = base.clone()
        expected[..., 4:12] += added_to(layer.weight[4:12], edit, X)
        with attach(Projection(layer, slice(4, 12)), edit):
            torch.testing.assert_close(layer(X), expected, rtol=1e-5, atol=1e-5)
        model = residual()
        with attach(model, {"inner[4:12]": edit, "inner[12:32]": kind(16, 20)}) as attachment:
            torch.testing.assert_close(model.inner(X)[..., :12], expected[..., :12])
            assert attachment.names == ("inner[4:12]", "inner[12:32]")

    def test_the_innermost_layer_is_edited(self, kind):
        torch.manual_seed(0)
        wrapper = Doubling(nn.Linear(16, 32)).eval()
        edit, base = kind(16, 32), wrapper(X)
        with attach(wrapper, edit):
            assert swapping.slots_of(wrapper.base_layer)
            added = added_to(wrapper.base_layer.weight, edit, X)
            torch.testing.assert_close(wrapper(X), base + added, rtol=1e-5, atol=1e-5)

    def test_by_keyword(self):
        layer, edit = residual().inner, low_rank(16, 32)
        with attach(layer, edit):
            assert torch.equal(layer(input=X), layer(X))

    def test_the_output_keeps_its_dtype(self, kind):
        layer = residual().inner.bfloat16()
        with attach(layer, kind(16, 32)):
            assert layer(X.bfloat16()).dtype == torch.bfloat16


class TestSeveral:
    def test_edits_add_up_in_any_order_of_attaching_and_detaching(self, kind):
        model, edits = residual(), [kind(32, 16, seed) for seed in range(3)]
        base, layer = model.outer(HIDDEN), model.outer
        parts = [added_to(layer.weight, edit, HIDDEN) for edit in edits]
        attached = [attach(model, {"outer": edit}) for edit in edits]
        torch.testing.assert_close(layer(HIDDEN), base + sum(parts), rtol=1e-4, atol=1e-4)
        attached[1].detach()
        torch.testing.assert_close(layer(HIDDEN), base + parts[0] + parts[2], rtol=1e-4, atol=1e-4)
        again = attach(model, {"outer": edits[1]})
        torch.testing.assert_close(layer(HIDDEN), base + sum(parts), rtol=1e-4, atol=1e-4)
        for attachment in (attached[0], again, attached[2]):
            attachment.detach()
        assert torch.equal(layer(HIDDEN), base)
        assert type(layer) is nn.Linear

    def test_a_list_of_edits(self):
        layer, edits = residual().outer, [low_rank(32, 16), gated(32, 16)]
        with attach(layer, edits[0]), attach(layer, edits[1]):
            nested = layer(HIDDEN)
        with attach(layer, edits) as attachment:
            assert torch.equal(layer(HIDDEN), nested)
            assert repr(attachment) == "Attachment(2 edits on [''])"

    def test_nested_blocks_restore_what_was_there(self):
        model = residual()
        with attach(model, {"outer": low_rank(32, 16)}):
            first, state = model(X), state_of(model)
            with attach(model, {"outer": gated(32, 16), "inner": low_rank(16, 32)}):
                assert not torch.equal(model(X), first)
            assert torch.equal(model(X), first)
            assert state_of(model) == state


class TestAsIfNothingWereAttached:
    def test_detach_leaves_the_model_as_it_was(self, kind):
        model = residual()
        before, outputs = state_of(model), model(X)
        attachment = attach(model, {"inner": kind(16, 32), "outer": kind(32, 16)})
        assert state_of(model) != before
        assert not torch.equal(model(X), outputs)
        attachment.detach()
        attachment.detach()
        assert state_of(model) == before
        assert torch.equal(model(X), outputs)
        assert not attachment.active

    def test_an_exception_in_the_block_detaches(self):
        model = residual()
        before = state_of(model)
        with pytest.raises(KeyError), attach(model, {"inner": low_rank(16, 32)}):
            raise KeyError
        assert state_of(model) == before

    def test_state_dict_names_and_strict_loading(self, kind):
        model, other = residual(), residual(1)
        names = [name for name, _ in model.named_modules()]
        parameters = [name for name, _ in model.named_parameters()]
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        with attach(model, {"inner": kind(16, 32), "outer": kind(32, 16)}):
            assert [name for name, _ in model.named_modules()] == names
            assert [name for name, _ in model.named_parameters()] == parameters
            assert list(model.state_dict()) == list(state)
            assert all(torch.equal(model.state_dict()[name], state[name]) for name in state)
            model.load_state_dict(other.state_dict(), strict=True)
            other.load_state_dict(model.state_dict(), strict=True)
        assert torch.equal(model(X), other(X))

    def test_isinstance_and_fingerprint(self, kind):
        model = residual()
        print_before = fingerprint(model.inner)
        with attach(model, {"inner": kind(16, 32)}):
            assert isinstance(model.inner, nn.Linear)
            assert fingerprint(model.inner) == print_before
            assert list(select(model, "*")) == ["inner", "outer", "head"]

    def test_moving_and_casting_the_model_keeps_the_edit_in_float32(self, kind):
        model, edit = residual(), kind(16, 32)
        with attach(model, {"inner": edit}):
            before = [t.clone() for n, t in model.inner.named_buffers() if "rankedit" in n]
            model.half().to("cpu").float().bfloat16()
            after = [t for n, t in model.inner.named_buffers() if "rankedit" in n]
            assert model.inner.weight.dtype == torch.bfloat16
            assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))
            assert model(X.bfloat16()).dtype == torch.bfloat16
        assert model.to("meta").inner.weight.is_meta

    def test_moving_to_another_device_moves_the_edit(self):
        model, learned = residual(), torch.randn(2, 32, requires_grad=True)
        edit = gated(16, 32).with_targets(learned)
        with attach(model, {"inner": edit}):
            model.to("meta")
            assert all(tensor.is_meta for tensor in model.inner.buffers())
            assert sum(tensor.requires_grad for tensor in model.inner.buffers()) == 1

    def test_the_edit_itself_is_not_changed_by_settings(self):
        model, edit = residual(), gated(16, 32)
        before = edit.targets.clone()
        with attach(model, {"inner": edit}) as attachment:
            attachment.set(bias=3.0, strength=0.1)
            attachment.refresh({"inner": edit.with_targets(edit.targets * 2)})
        assert torch.equal(edit.targets, before)
        assert edit.gate.bias == 0.1

    def test_detach_all_cleans_a_model_whoever_attached(self):
        model = residual()
        before = state_of(model)
        attach(model, {"inner": [low_rank(16, 32), gated(16, 32)]})
        attach(model, {"outer": low_rank(32, 16)})
        assert detach_all(model) == 3
        assert state_of(model) == before
        assert detach_all(model) == 0


class TestSettings:
    def test_strength_zero_is_the_bare_model_bitwise(self, kind):
        model = residual()
        base = model(X)
        with attach(model, {"inner": kind(16, 32)}) as attachment:
            attachment.set(strength=0)
            assert torch.equal(model(X), base)

    def test_strength_and_gate_parameters(self):
        layer, edit = residual().inner, gated(16, 32)
        base = layer(X)
        with attach(layer, edit) as attachment:
            attachment.set(strength=0.5, bias=0.6, temperature=0.15)
            other = edit.with_gate(Sigmoid(bias=0.6, temperature=0.15))
            torch.testing.assert_close(
                layer(X), base + 0.5 * added_to(layer.weight, other, X), rtol=1e-5, atol=1e-5
            )

    def test_one_number_for_each_key(self):
        layer, edit = residual().inner, gated(16, 32)
        edit = edit.with_gate(Sigmoid(bias=torch.tensor([0.1, 0.2]), temperature=0.5))
        base = layer(X)
        with attach(layer, edit) as attachment:
            attachment.set(bias=torch.tensor([0.5, -0.5]))
            other = edit.with_gate(Sigmoid(bias=torch.tensor([0.5, -0.5]), temperature=0.5))
            truth = base + added_to(layer.weight, other, X)
            torch.testing.assert_close(layer(X), truth, rtol=1e-5, atol=1e-5)
            attachment.set(bias=0.3)
            assert attachment._installed[0].tensor("bias").tolist() == pytest.approx([0.3, 0.3])

    def test_only_the_named_layers(self):
        model = residual()
        with attach(model, {"inner": low_rank(16, 32), "outer": low_rank(32, 16)}) as attachment:
            attachment.set("inner", strength=0.25)
            strengths = [float(item.tensor("strength")) for item in attachment._installed]
            assert strengths == [0.25, 1.0]

    def test_inside_inference_mode(self):
        model = residual()
        with torch.inference_mode(), attach(model, {"inner": gated(16, 32)}) as attachment:
            attachment.set(strength=0.5)
        with attach(model, {"inner": gated(16, 32)}) as attachment:
            with torch.inference_mode():
                attachment.set(strength=0.5)
            assert float(attachment._installed[0].tensor("strength")) == 0.5

    def test_refusals_change_nothing(self):
        model = residual()
        with attach(model, {"inner": gated(16, 32), "outer": low_rank(32, 16)}) as attachment:
            outputs = model(X)
            with pytest.raises(AttachError, match=r"no edit has the setting 'colour'; known are"):
                attachment.set(strength=0.5, colour=1.0)
            with pytest.raises(AttachError, match="bias must be a finite number, got nan"):
                attachment.set(strength=0.5, bias=float("nan"))
            with pytest.raises(ShapeError, match="bias must be finite"):
                attachment.set(strength=0.5, bias=torch.tensor([0.1, float("inf")]))
            with pytest.raises(ShapeError, match=r"'bias' of 'inner' must be a number, .*one for"):
                attachment.set(strength=0.5, bias=torch.tensor([0.1, 0.2]))
            with pytest.raises(ShapeError, match="temperature must be positive"):
                attachment.set(strength=0.5, temperature=0.0)
            with pytest.raises(AttachError, match=r"'middle' is not among .*\['inner', 'outer'\]"):
                attachment.set("middle", strength=0.5)
            assert torch.equal(model(X), outputs)
        with pytest.raises(AttachError, match=r"Attachment\.set: the edits have been detached"):
            attachment.set(strength=1.0)
        with pytest.raises(AttachError, match=r"Attachment\.refresh: the edits have been detached"):
            attachment.refresh({"inner": gated(16, 32)})


class TestRefresh:
    def test_it_gives_what_attaching_anew_would(self, kind):
        model, new = residual(), {"inner": kind(16, 32, 5), "outer": kind(32, 16, 6)}
        with attach(model, new):
            expected = model(X)
        with attach(model, {"inner": kind(16, 32), "outer": kind(32, 16)}) as attachment:
            addresses = [tensor.data_ptr() for tensor in model.inner.buffers()]
            attachment.refresh(new)
            assert torch.equal(model(X), expected)
            assert [tensor.data_ptr() for tensor in model.inner.buffers()] == addresses

    def test_refusals_change_nothing(self):
        model = residual()
        with attach(model, {"inner": gated(16, 32), "outer": low_rank(32, 16)}) as attachment:
            outputs = model(X)
            wrong = {
                "as many edits": {"inner": gated(16, 32)},
                "must be a LowRank": {"inner": gated(16, 32, 3), "outer": gated(32, 16)},
                "with tensors of shapes": {
                    "inner": gated(16, 32, 3),
                    "outer": low_rank(32, 16, rank=3),
                },
                "requires gradients": {
                    "inner": gated(16, 32).with_targets(torch.randn(2, 32, requires_grad=True)),
                    "outer": low_rank(32, 16),
                },
            }
            for message, edits in wrong.items():
                with pytest.raises(AttachError, match=message):
                    attachment.refresh(edits)
                assert torch.equal(model(X), outputs)


class TestAllOrNothing:
    NAMES = ("inner", "outer", "head")

    def edits(self, model):
        sizes = {name: model.get_submodule(name) for name in self.NAMES}
        return {name: gated(at.in_features, at.out_features) for name, at in sizes.items()}

    @pytest.mark.parametrize("index", range(3))
    @pytest.mark.parametrize("place", ["bind", "install", "register", "swap"])
    def test_a_failure_at_any_layer_leaves_the_model_bitwise(self, monkeypatch, index, place):
        model = residual()
        edits, before, outputs = self.edits(model), state_of(model), model(X)
        calls = []

        def failing(original, every=1):
            def run(*args, **kwargs):
                calls.append(place)
                if len(calls) == index * every + 1:
                    raise MemoryError(f"injected at {index}")
                return original(*args, **kwargs)

            return run

        if place == "bind":
            monkeypatch.setattr(GatedEdit, "bind", failing(GatedEdit.bind))
        elif place == "install":
            monkeypatch.setattr(patching, "install", failing(patching.install))
        elif place == "register":  # seven buffers each: fail in the midst of a layer
            monkeypatch.setattr(
                nn.Module, "register_buffer", failing(nn.Module.register_buffer, every=5)
            )
        else:
            monkeypatch.setattr(swapping, "_swap", failing(swapping._swap))
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

    @pytest.mark.parametrize("edits", [{"inner": 3}, {"inner": []}, {4: low_rank(16, 32)}])
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

    def test_learned_tensors_on_another_device(self):
        edit = low_rank(16, 32)
        learned = LowRank(edit.up.requires_grad_(), edit.down)
        with pytest.raises(AttachError, match="'up' requires gradients and must be on the layer's"):
            binding._placed("attach", "up", learned.up, torch.device("meta"))
