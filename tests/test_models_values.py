"""Precision of what is added, values that a layer cannot hold, and layers that change meanwhile."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from rankedit import AttachError, GatedEdit, LowRank, Metric, ShapeError, Sigmoid, attach
from rankedit.models import swapping
from rankedit.models.fusing import fuse_, fused, unfuse_
from tests.patching_cases import KINDS, added_to, gated, low_rank, residual, state_of, tensors_in

X = torch.randn(5, 3, 16, generator=torch.Generator().manual_seed(1))


def wide(shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def formula(layer, edit, metric, x):
    """`x Wᵀ + b − c(x) I Wᵀ + gate(s) O` in float64, by definition."""
    keys, weight, bias = (t.detach().double() for t in (edit.keys, layer.weight, layer.bias))
    images = metric.solve(keys)
    seen = x @ images.T
    c = torch.linalg.solve(images @ keys.T, seen.T).T
    s = seen / (images * keys).sum(1)
    opening = torch.sigmoid((s - edit.gate.bias) / edit.gate.temperature)
    return (x - c @ keys) @ weight.T + bias + opening @ edit.targets.double()


class TestPrecision:
    @pytest.mark.parametrize("count", [1, 3])
    @pytest.mark.parametrize("form", ["plain", "by row", "conv"])
    def test_float64_layers_get_the_float64_formula(self, count, form):
        torch.manual_seed(0)
        layer, x = residual().inner.double(), wide((7, 16), 3)
        matrix = wide((64, 16), 4)
        metric = Metric.from_matrix(matrix.T @ matrix / 64)
        edit = GatedEdit(wide((count, 16), 5), wide((count, 32), 6), metric, Sigmoid(0.3, 0.7))
        expected = formula(layer, edit, metric, x)
        if form == "conv":
            convolution = nn.Conv1d(16, 32, 1).double()
            convolution.load_state_dict(
                {
                    k: v.reshape(convolution.state_dict()[k].shape)
                    for k, v in layer.state_dict().items()
                }
            )
            convolution.requires_grad_(requires_grad=False)
            layer, x, expected = convolution, x.T[None], expected.T[None]
        with attach(layer, edit) as attachment:
            if form == "by row":
                attachment.set(
                    strength=torch.ones(7), temperature=torch.full((7,), 0.7, dtype=torch.float64)
                )
            given = layer(x)
        assert given.dtype == torch.float64
        assert float((given - expected).norm()) < 1e-12 * float(expected.norm())

    def test_static_edits_of_float64_layers(self):
        layer, edit = nn.Linear(16, 32).double(), LowRank(wide((32, 2), 1), wide((2, 16), 2))
        x = wide((4, 16), 3)
        expected = layer(x) + x @ edit.delta().T
        with attach(layer, edit):
            torch.testing.assert_close(layer(x), expected, rtol=1e-13, atol=1e-13)

    @pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_layers_are_edited_in_float32(self, make, dtype):
        layer, edit = residual().inner.to(dtype), make(16, 32)
        x = X.to(dtype)
        base = layer(x).float()
        with attach(layer, edit):
            assert {tensor.dtype for _, tensor in tensors_in(layer)} == {torch.float32}
            given = layer(x)
        added = added_to(layer.weight.float(), edit, x.float())
        assert torch.equal(given, base.to(dtype) + added.to(dtype)) or float(
            (given.float() - base - added).abs().max()
        ) < 4 * torch.finfo(dtype).eps * float((base.abs() + added.abs()).max())

    @pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
    @pytest.mark.parametrize(
        "casts", [(torch.float32, torch.float64), (torch.float64, torch.float32)]
    )
    def test_models_that_are_cast_while_edited(self, make, casts):
        model, edit = residual().to(casts[0]), make(16, 32)
        with attach(model, {"inner": edit}):
            model.to(casts[1])
            given = model.inner(X.to(casts[1]))
        expected = model.inner(X.to(casts[1])) + added_to(model.inner.weight, edit, X)
        assert given.dtype == casts[1]
        torch.testing.assert_close(given, expected.to(casts[1]), rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_learned_tensors_of_float64_layers(self, dtype):
        layer = nn.Linear(16, 32).double()
        edit, targets = gated(16, 32), torch.randn(2, 32, dtype=dtype, requires_grad=True)
        with attach(layer, edit.with_targets(targets)):
            layer(X.double()).sum().backward()
        assert targets.grad.dtype == dtype
        assert float(targets.grad.norm()) > 0
        with pytest.raises(
            AttachError, match=r"must be float32, in which edits compute, got torch.b"
        ):
            attach(layer, edit.with_targets(targets.detach().bfloat16().requires_grad_()))


def of_powers(up, down):
    return LowRank(torch.ones(32, 1).double() * 10.0**up, torch.ones(1, 16).double() * 10.0**down)


class TestFinite:
    def test_what_float32_cannot_hold_is_refused(self):
        model, edit = residual(), of_powers(39, 0)
        before = state_of(model)
        with pytest.raises(
            AttachError,
            match=r"attach: .*LowRank.to: up and down must be within the range of torch.float32",
        ):
            attach(model, {"inner": edit})
        assert state_of(model) == before
        attach(residual().double(), {"inner": edit}).detach()
        with attach(model, {"inner": low_rank(16, 32, rank=1)}) as attachment:
            base = model(X)
            with pytest.raises(
                AttachError, match=r"Attachment.refresh: .*LowRank.to: up and down must be"
            ):
                attachment.refresh({"inner": edit})
            assert torch.equal(model(X), base)

    @pytest.mark.parametrize("powers", [(60, -60), (-60, 60)])
    def test_factors_whose_product_float32_holds_are_balanced(self, powers):
        model, wide, edit = residual(), residual().double(), of_powers(*powers)
        wide.load_state_dict(model.state_dict())
        with attach(model, {"inner": edit}), attach(wide, {"inner": edit}):
            torch.testing.assert_close(model(X).double(), wide(X.double()), rtol=1e-5, atol=1e-4)
        with attach(model, {"inner": low_rank(16, 32, rank=1)}) as attachment:
            attachment.refresh({"inner": edit})
            with attach(wide, {"inner": edit}):
                expected = wide(X.double())
            torch.testing.assert_close(model(X).double(), expected, rtol=1e-5, atol=1e-4)

    def test_gated_edits(self):
        edit = gated(16, 32)
        with pytest.raises(
            AttachError, match=r"'targets' of the edit must be finite in torch.float32"
        ):
            attach(residual().inner, edit.with_targets(edit.targets.double() * 1e39))
        with pytest.raises(ShapeError, match=r"Sigmoid: bias must be a finite number"):
            attach(residual().inner, edit.with_gate(Sigmoid(torch.tensor(1e39).double(), 0.1)))

    @pytest.mark.parametrize("value", [1e39, -1e39, float("nan"), float("inf"), 10**400])
    def test_settings(self, value):
        model = residual()
        with pytest.raises(
            AttachError, match=r"attach: strength must be a finite number, got .* float32"
        ):
            attach(model, {"inner": gated(16, 32)}, strength=value)
        with attach(model, {"inner": gated(16, 32)}) as attachment:
            base = model(X)
            for name in ("strength", "bias", "temperature"):
                with pytest.raises(AttachError, match=rf"set: {name} must be a finite number"):
                    attachment.set(**{name: value})
                if abs(value) < 1e300:
                    with pytest.raises(ShapeError, match=rf"set: {name} must be finite"):
                        attachment.set(**{name: torch.tensor(value, dtype=torch.float64)})
            assert torch.equal(model(X), base)


class TestFused:
    def test_the_same_edit_twice_is_refused(self):
        model, edit = residual(), low_rank(16, 32)
        fuse_(model, {"inner": edit})
        again = LowRank(edit.up.clone(), edit.down.clone())
        for same in (edit, again):
            with pytest.raises(
                AttachError, match=r"'inner' has this very edit in it already.*unfuse_"
            ):
                fuse_(model, {"head": low_rank(16, 8), "inner": same})
        assert list(fused(model)) == ["inner"]
        fuse_(model, {"inner": low_rank(16, 32, 1)})
        with pytest.raises(AttachError, match=r"this very edit"):
            fuse_(model, {"inner": edit})
        unfuse_(model)
        fuse_(model, {"inner": edit})

    def test_other_rows_and_multiples_are_other_edits(self):
        model, edit = residual(), low_rank(16, 8)
        before = model.inner.weight.clone()
        fuse_(model, {"inner[0:8]": edit})
        fuse_(model, {"inner[8:16]": edit, "head": edit})
        fuse_(model, {"inner[0:8]": 2 * edit})
        expected = before.clone()
        expected[:8] += 3 * edit.delta()
        expected[8:16] += edit.delta()
        torch.testing.assert_close(model.inner.weight, expected)
        with pytest.raises(AttachError, match=r"this very edit"):
            fuse_(model, {"inner[8:16]": edit})

    def test_what_is_fused_is_told_with_the_originals(self):
        model = nn.Sequential(residual())
        assert fused(model) == {}
        original = model[0].inner.weight.clone()
        fuse_(model, {"0.inner": low_rank(16, 32)})
        fuse_(model, {"0.inner": low_rank(16, 32, 1)})
        found = fused(model)
        assert list(found) == ["0.inner"]
        assert torch.equal(found["0.inner"], original)
        unfuse_(model)
        assert fused(model) == {}


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


class TestParametrisations:
    """Registered and removed while edits are attached: the layer is as if there had been none."""

    @pytest.mark.parametrize("first", [True, False])
    @pytest.mark.parametrize("second", ["weight", "bias"])
    def test_registered_meanwhile(self, first, second):
        def steps(layer, attaching):
            if first:
                parametrizations.weight_norm(layer)
            attachment = attach(layer, gated(16, 32)) if attaching else None
            parametrize.register_parametrization(layer, second, Doubled())
            if attachment:
                edited = layer(X)
                attachment.detach()
                assert not torch.allclose(edited, layer(X), atol=1e-3)
            return layer

        plain, layer = (steps(residual().inner, attaching) for attaching in (False, True))
        assert torch.equal(layer(X), plain(X))
        assert layer.state_dict().keys() == plain.state_dict().keys()
        assert [cls.__name__ for cls in type(layer).__mro__] == [
            cls.__name__ for cls in type(plain).__mro__
        ]
        for one in (plain, layer):
            parametrize.remove_parametrizations(one, second)
            if first and second == "bias":
                parametrize.remove_parametrizations(one, "weight")
        assert type(layer) is type(plain) is nn.Linear
        assert torch.equal(layer(X), plain(X))

    @pytest.mark.parametrize("names", [["weight"], ["bias"], ["weight", "bias"]])
    def test_removed_meanwhile(self, names):
        layer = residual().inner
        for name in names:
            parametrize.register_parametrization(layer, name, Doubled())
        base = layer(X)
        attachment = attach(layer, low_rank(16, 32))
        edited = layer(X)
        for name in names:
            parametrize.remove_parametrizations(layer, name)
        torch.testing.assert_close(layer(X), edited)
        attachment.detach()
        torch.testing.assert_close(layer(X), base)
        assert type(layer) is nn.Linear
        assert sorted(layer.state_dict()) == ["bias", "weight"]

    def test_edited_again_and_copied(self):
        import copy

        layer = parametrizations.weight_norm(residual().inner)
        base, cls = layer(X), type(layer)
        for seed in range(2):
            with attach(layer, gated(16, 32, seed)):
                edited, twin = layer(X), copy.deepcopy(layer)
            assert type(layer) is cls
            assert torch.equal(layer(X), base)
            assert torch.equal(twin(X), edited)
            for slot in swapping.slots_of(twin):
                swapping.remove(twin, slot.mark)
            assert type(twin) is cls
            assert torch.equal(twin(X), base)


class TestSmall:
    @pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
    @pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
    def test_traces_with_gradients_on(self, make):
        model = residual().requires_grad_()
        with attach(model, {"inner": make(16, 32), "head": make(16, 8)}):
            traced = torch.jit.trace(model, X)
            other = 2 * X + 1
            torch.testing.assert_close(traced(other), model(other))
            traced(other).sum().backward()
        assert model.inner.weight.grad is not None

    @pytest.mark.parametrize("form", ["plain", "parametrised", "of a local class"])
    def test_layers_that_are_dropped_leave_nothing(self, form):
        def layer():
            made = type("Own", (nn.Linear,), {})(4, 4) if "class" in form else nn.Linear(4, 4)
            return parametrizations.weight_norm(made) if form == "parametrised" else made

        edit, gone, kept = low_rank(4, 4), [], len(swapping._KEPT)
        for _ in range(100):
            one = layer()
            attach(one, edit).detach()
            fuse_(one, edit) if form == "plain" else None
            gone += [weakref.ref(one), weakref.ref(type(one))]
        del one
        gc.collect()
        left = [ref() for ref in gone if ref() is not None]
        assert all(cls is nn.Linear for cls in left)
        assert len(swapping._KEPT) <= kept + 1
