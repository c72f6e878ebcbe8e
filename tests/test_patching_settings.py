"""Strength, gate parameters and tensors change in place while the edits are attached."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from rankedit import AttachError, ShapeError, Sigmoid
from rankedit.models.patching import attach
from tests.patching_cases import KINDS, added_to, gated, low_rank, residual

X = torch.randn(5, 3, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


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

    def test_a_normalised_gate_is_given_all_settings_together(self):
        layer, edit = residual().inner, gated(16, 32)
        edit = edit.with_gate(Sigmoid(bias=0.5, temperature=0.2), normalised=True)
        with attach(layer, edit) as attachment:
            before = layer(X)
            with pytest.raises(ShapeError, match="too little apart to normalise"):
                attachment.set(strength=0.5, bias=50.0, temperature=0.01)
            assert torch.equal(layer(X), before)
            attachment.set(bias=3.0, temperature=1.0)
            with pytest.raises(ShapeError, match="too little apart to normalise"):
                attachment.set(temperature=0.01)  # with the bias as it is now
            attachment.set(bias=0.6, temperature=0.01)
            found = layer(X)
        other = edit.with_gate(Sigmoid(bias=0.6, temperature=0.01), normalised=True)
        with attach(layer, other):
            assert torch.equal(layer(X), found)


@dataclass(frozen=True)
class Steep(Sigmoid):
    """Another gate with the parameters of the sigmoid."""

    name = "steep"

    def opening(self, similarity, parameters):
        return super().opening(similarity, parameters).square()


class TestRefresh:
    def test_it_gives_what_attaching_anew_would(self, kind):
        model, new = residual(), {"inner": kind(16, 32, 5), "outer": kind(32, 16, 6)}
        with attach(model, new):
            expected = model(X)
        with attach(model, {"inner": kind(16, 32), "outer": kind(32, 16)}) as attachment:
            attachment.refresh(new)
            assert torch.equal(model(X), expected)

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

    @pytest.mark.parametrize(
        ("gate", "form"),
        [
            (Steep(0.1, 0.5), {}),
            (Sigmoid(0.1, 0.5), {"normalised": True}),
            (Sigmoid(0.1, 0.5), {"floor": 0.3}),
        ],
    )
    def test_gated_edits_of_another_form(self, gate, form):
        layer, edit = residual().inner, gated(16, 32)
        other = edit.with_gate(gate, **form)
        for first, second in ((edit, other), (other, edit)):
            with attach(layer, first) as attachment:
                before = layer(X)
                with pytest.raises(AttachError, match=r"must be of the form .*anew"):
                    attachment.refresh(second)
                assert torch.equal(layer(X), before)
                attachment.refresh(first)
                assert torch.equal(layer(X), before)
