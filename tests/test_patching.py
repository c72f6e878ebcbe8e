"""Attach, change, swap and detach: what the model does meanwhile and what is left afterwards."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rankedit.models import swapping
from rankedit.models.patching import attach, detach_all
from rankedit.models.projections import Projection, fingerprint, select
from tests.layer_cases import Conv1D, Doubling, Packed, matrix_of
from tests.patching_cases import KINDS, added_to, gated, low_rank, residual, state_of, tensors_in

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

    @pytest.mark.parametrize("rows", [slice(0, 32), slice(4, 12)])
    def test_is_the_same_without_gradients(self, kind, rows):
        """Then products are summed into the output in place, if no other class made it."""

        class Remembering(nn.Linear):
            def forward(self, x):
                self.given = super().forward(x)
                return self.given

        torch.manual_seed(0)
        layer, own = nn.Linear(16, 32), Remembering(16, 32)
        own.load_state_dict(layer.state_dict())
        edit, turned = kind(16, rows.stop - rows.start), X.transpose(0, 1)
        before = X.clone(), layer(X), {n: p.clone() for n, p in layer.named_parameters()}
        with attach(Projection(layer, rows), edit, strength=0.7):
            with_gradients = layer(X)
            with torch.no_grad():
                torch.testing.assert_close(layer(X), with_gradients)
                torch.testing.assert_close(layer(turned), with_gradients.transpose(0, 1))
                torch.testing.assert_close(layer(X[0, 0]), with_gradients[0, 0])
        with torch.no_grad(), attach(Projection(own, rows), edit, strength=0.7):
            torch.testing.assert_close(own(X), with_gradients)
            assert torch.equal(own.given, before[1])
        assert torch.equal(X, before[0])
        assert torch.equal(layer(X), before[1])
        assert all(torch.equal(p, before[2][n]) for n, p in layer.named_parameters())

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
            before = [t.clone() for _, t in tensors_in(model)]
            model.half().to("cpu").float().bfloat16()
            after = [t for _, t in tensors_in(model)]
            assert len(after) > 2
            assert model.inner.weight.dtype == torch.bfloat16
            assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))
            assert model(X.bfloat16()).dtype == torch.bfloat16
        assert model.to("meta").inner.weight.is_meta

    def test_moving_to_another_device_moves_the_edit(self):
        model, learned = residual(), torch.randn(2, 32, requires_grad=True)
        edit = gated(16, 32).with_targets(learned)
        with attach(model, {"inner": edit}):
            model.to("meta")
            assert all(tensor.is_meta for _, tensor in tensors_in(model))
            assert model.inner(X.to("meta")).shape == (5, 3, 32)
            assert sum(tensor.requires_grad for _, tensor in tensors_in(model)) == 1

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
