"""Attached edits under torch's own machinery: compiling, checkpointing, autocast, copies."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.utils.checkpoint import checkpoint

from rankedit import LowRank
from rankedit.models import swapping
from rankedit.models.patching import attach, detach_all
from tests.patching_cases import KINDS, added_to, gated, low_rank, residual, state_of, tensors_in

X = torch.randn(5, 3, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


@pytest.fixture
def edits(kind):
    return {"inner": kind(16, 32), "outer": [kind(32, 16), kind(32, 16, 1)]}


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class TestCompile:
    def test_attached_before_compiling(self, edits):
        model = residual()
        base, counter = model(X), CompileCounter()
        with attach(model, edits):
            compiled = torch.compile(model, backend=counter, fullgraph=True)
            torch.testing.assert_close(compiled(X), model(X))
            assert not torch.allclose(compiled(X), base)
        torch.testing.assert_close(compiled(X), base)
        assert counter.frame_count == 2

    @pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
    def test_as_models_are_run(self, edits, mode):
        model = residual()
        with attach(model, edits), mode():
            compiled = torch.compile(model, backend=CompileCounter(), fullgraph=True)
            torch.testing.assert_close(compiled(X), model(X))

    def test_attached_after_compiling(self, edits):
        model = residual()
        base, counter = model(X), CompileCounter()
        compiled = torch.compile(model, backend=counter, fullgraph=True)
        torch.testing.assert_close(compiled(X), base)
        with attach(compiled, edits):
            torch.testing.assert_close(compiled(X), model(X))
            assert not torch.allclose(compiled(X), base)
        assert torch.equal(compiled(X), base)

    def test_compiled_in_place_and_compiled_layers(self, edits):
        model = residual()
        base = model(X)
        model.compile(backend="eager", fullgraph=True)
        model(X)
        with attach(model, edits):
            assert not torch.allclose(model(X), base)
        model = residual()
        model.inner = torch.compile(model.inner, backend="eager", fullgraph=True)
        model(X)
        with attach(model, edits):
            assert not torch.allclose(model(X), base)
        assert torch.equal(model(X), base)

    def test_nothing_is_compiled_again_for_settings_or_new_tensors(self, kind, edits):
        model, counter = residual(), CompileCounter()
        compiled = torch.compile(model, backend=counter, fullgraph=True)
        with attach(model, edits) as attachment:
            compiled(X)
            frames = counter.frame_count
            for strength in (0.0, 0.5, 1, 1.5, -2.0):
                attachment.set(strength=strength)
                torch.testing.assert_close(compiled(X), model(X))
            if kind is gated:
                for bias in (0.0, 0.3, 0.9):
                    attachment.set(bias=bias, temperature=0.2 + bias)
                    torch.testing.assert_close(compiled(X), model(X))
            for seed in (7, 8):
                new = {"inner": kind(16, 32, seed), "outer": [kind(32, 16, seed)] * 2}
                attachment.refresh(new)
                torch.testing.assert_close(compiled(X), model(X))
            assert counter.frame_count == frames

    def test_nor_for_attaching_again(self, kind):
        """One code for the bare layers and one for edits of a kind, however often they change."""
        model, counter = residual(), CompileCounter()
        compiled = torch.compile(model, backend=counter, fullgraph=True)
        for seed in range(3):
            compiled(X)
            with attach(model, {"inner": kind(16, 32, seed), "outer": kind(32, 16, seed)}):
                torch.testing.assert_close(compiled(X), model(X))
        assert counter.frame_count == 2

    @pytest.mark.slow
    def test_with_the_real_compiler_and_its_gradients(self, edits):
        model = residual()
        learned = torch.randn(2, 32, requires_grad=True)
        edits["inner"] = gated(16, 32).with_targets(learned)
        compiled = torch.compile(model, fullgraph=True)
        with attach(model, edits):
            (eager,) = torch.autograd.grad(model(X).square().sum(), learned)
            torch.testing.assert_close(compiled(X), model(X), rtol=1e-4, atol=1e-5)
            (gradient,) = torch.autograd.grad(compiled(X).square().sum(), learned)
            torch.testing.assert_close(gradient, eager, rtol=1e-4, atol=1e-4)

    def test_export(self, edits):
        model = residual()
        with attach(model, edits):
            program = torch.export.export(model, (X,))
            torch.testing.assert_close(program.module()(X), model(X))


class TestGradients:
    @pytest.mark.parametrize("wrapping", ["plain", "checkpoint", "reentrant", "compiled"])
    def test_they_reach_the_tensors_that_are_learned(self, wrapping):
        model = residual()
        learned = torch.randn(2, 32, requires_grad=True)
        edit = gated(16, 32).with_targets(learned)
        x = X.clone().requires_grad_(wrapping == "reentrant")

        def run():
            if wrapping in ("checkpoint", "reentrant"):
                return checkpoint(model, x, use_reentrant=wrapping == "reentrant")
            if wrapping == "compiled":
                return torch.compile(model, backend="aot_eager", fullgraph=True)(x)
            return model(x)

        def truth(targets):
            hidden = model.inner(X) + added_to(model.inner.weight, edit.with_targets(targets), X)
            return model.head(X + model.outer(torch.tanh(hidden)))

        copy_of = learned.detach().clone().requires_grad_()
        (expected,) = torch.autograd.grad(truth(copy_of).square().sum(), copy_of)
        with attach(model, {"inner": edit}):
            run().square().sum().backward()
        torch.testing.assert_close(learned.grad, expected, rtol=1e-4, atol=1e-4)

    def test_an_optimiser_changes_what_the_model_does(self):
        model = residual()
        edit = low_rank(16, 32)
        edit = LowRank(edit.up.requires_grad_(), edit.down.requires_grad_())
        goal = torch.randn(5, 3, 8, generator=torch.Generator().manual_seed(3))
        optimiser = torch.optim.Adam([edit.up, edit.down], lr=0.05)
        losses = []
        with attach(model, {"inner": edit}):
            for _ in range(20):
                optimiser.zero_grad()
                loss = (model(X) - goal).square().mean()
                loss.backward()
                optimiser.step()
                losses.append(float(loss.detach()))
            after = model(X)
        assert losses[-1] < 0.8 * losses[0]
        with attach(model, {"inner": edit}):
            torch.testing.assert_close(model(X), after)

    def test_nothing_else_learns(self):
        model = residual()
        model.requires_grad_()
        edit = gated(16, 32)
        with attach(model, {"inner": edit}):
            model(X).sum().backward()
            assert all(not tensor.requires_grad for _, tensor in tensors_in(model))
            names = [name for name, _ in model.named_parameters()]
            assert not [name for name in names if "rankedit" in name]


class TestAutocast:
    def test_the_metric_part_stays_in_float32(self, kind):
        layer, edit = residual().inner, kind(16, 32)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            base = layer(X)
            with attach(layer, edit):
                edited = layer(X)
        assert base.dtype == edited.dtype == torch.bfloat16
        truth = base.float() + added_to(layer.weight, edit, X)
        assert (
            torch.equal(edited, truth.bfloat16())
            or float((edited.float() - truth).abs().max() / truth.abs().max()) < 2**-7
        )
        with attach(layer, edit):
            full = {name: tensor.clone() for name, tensor in tensors_in(layer)}
        with torch.autocast("cpu", dtype=torch.bfloat16), attach(layer, edit):
            assert len(full) > 2
            for name, tensor in tensors_in(layer):
                assert torch.equal(tensor, full[name]), name


class TestCopies:
    def test_a_deepcopy_is_independent(self, edits):
        model = residual()
        base = model(X)
        attachment = attach(model, edits)
        edited, twin = model(X), copy.deepcopy(model)
        attachment.set(strength=0.0)
        assert torch.equal(twin(X), edited)
        attachment.detach()
        assert torch.equal(twin(X), edited)
        assert torch.equal(model(X), base)
        assert detach_all(twin) == 3
        assert torch.equal(twin(X), base)
        assert type(twin.inner) is nn.Linear
        assert state_keys(twin) == state_keys(model)

    def test_an_edit_is_shared_and_not_copied(self):
        model, edit = residual(), gated(16, 32)
        with attach(model, {"inner": edit}):
            assert swapping.slots_of(copy.deepcopy(model).inner)[0].edit is edit

    @pytest.mark.parametrize("how", ["torch.save", "pickle"])
    def test_pickling(self, edits, how):
        model = residual()
        base, file = model(X), io.BytesIO()
        with attach(model, edits):
            edited = model(X)
            if how == "torch.save":
                torch.save(model, file)
                file.seek(0)
                twin = torch.load(file, weights_only=False)
            else:
                twin = pickle.loads(pickle.dumps(model))
        assert torch.equal(twin(X), edited)
        detach_all(twin)
        assert torch.equal(twin(X), base)
        assert state_keys(twin) == state_keys(model)

    def test_a_saved_state_dict_loads_with_weights_only(self, edits):
        model, file = residual(), io.BytesIO()
        base = model(X)
        with attach(model, edits):
            torch.save(model.state_dict(), file)
        file.seek(0)
        other = residual(1)
        other.load_state_dict(torch.load(file, weights_only=True), strict=True)
        assert torch.equal(other(X), base)


class TestWrappedAfterwards:
    def test_a_class_derived_from_ours_stays_usable(self):
        """FSDP and parametrisations derive a class from the layer's: ours is then in the middle."""
        model = residual()
        base, edit = model(X), low_rank(16, 32)
        attachment = attach(model, {"inner": edit})
        derived = type("Derived", (type(model.inner),), {})
        model.inner.__class__ = derived
        assert not torch.equal(model(X), base)
        attachment.detach()
        assert torch.equal(model(X), base)
        assert type(model.inner) is derived
        with attach(model, {"inner": edit}):
            assert not torch.equal(model(X), base)
        assert torch.equal(model(X), base)

    def test_parametrised_layers(self, kind):
        model = residual()
        nn.utils.parametrizations.weight_norm(model.inner)
        base, before = model(X), state_of(model)
        with attach(model, {"inner": kind(16, 32)}):
            assert not torch.allclose(model(X), base)
        assert torch.equal(model(X), base)
        assert state_of(model) == before

    def test_a_bound_forward_left_behind_by_a_wrapper(self, kind):
        """accelerate leaves the bound method on the instance when its hooks are removed."""
        model = residual()
        base = model(X)
        model.inner.forward = model.inner.forward
        with attach(model, {"inner": kind(16, 32)}):
            assert not torch.allclose(model(X), base)
        assert torch.equal(model(X), base)


def state_keys(model):
    return {name: (type(part), sorted(vars(part))) for name, part in model.named_modules()}
