"""One strength, bias and temperature for each row of a batch."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

from rankedit import AttachError, JointSigmoid, LowRank, Projection, ShapeError, Sigmoid
from rankedit.models.patching import attach
from tests.patching_cases import KINDS, gated, low_rank, residual

STRENGTHS = torch.tensor([0.0, 1.0, -0.5, 2.0])
BIASES = torch.tensor([0.1, 0.6, -0.2, 0.3])
WIDTHS = torch.tensor([0.5, 0.1, 2.0, 0.3])


def rows(*shape, dtype=torch.float32):
    return torch.randn(4, *shape, 16, generator=torch.Generator().manual_seed(1)).to(dtype)


def one_by_one(layer, attachment, x, **settings):
    """Four calls, each with numbers of its own."""
    outputs = []
    for number in range(4):
        attachment.set(**{name: float(values[number]) for name, values in settings.items()})
        outputs.append(layer(x[number : number + 1]))
    return torch.cat(outputs)


class TestRows:
    @pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
    @pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
    def test_four_rows_in_one_call_are_four_calls(self, make, shape):
        layer, x = residual().inner, rows(*shape)
        settings = {"strength": STRENGTHS}
        if make is gated:
            settings |= {"bias": BIASES, "temperature": WIDTHS}
        with attach(layer, make(16, 32)) as attachment:
            expected = one_by_one(layer, attachment, x, **settings)
            attachment.set(**settings)
            torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)
            attachment.set(**dict.fromkeys(settings, 0.4))
            plain = layer(x)
            attachment.set(strength=torch.full((4,), 0.4))
            torch.testing.assert_close(layer(x), plain, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("kind", [Sigmoid, JointSigmoid])
    @pytest.mark.parametrize("form", ["plain", "normalised", "floor"])
    def test_with_every_form_of_gate(self, kind, form):
        layer, x = residual().inner, rows(3)
        more = {"normalised": {"normalised": True}, "floor": {"floor": 0.2}, "plain": {}}[form]
        edit = gated(16, 32, count=3).with_gate(kind(0.1, 0.5), **more)
        settings = {"bias": BIASES} | ({"floor": BIASES - 0.1} if form == "floor" else {})
        with attach(layer, edit) as attachment:
            expected = one_by_one(layer, attachment, x, **settings)
            attachment.set(**settings)
            torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)

    def test_a_number_for_each_key_and_row(self):
        layer, x = residual().inner, rows(3)
        edit = gated(16, 32).with_gate(Sigmoid(torch.tensor([0.1, 0.2]), 0.5))
        table = torch.stack([BIASES, BIASES.flip(0)], 1)
        with attach(layer, edit) as attachment:
            expected = []
            for number in range(4):
                attachment.set(bias=table[number])
                expected.append(layer(x[number : number + 1]))
            attachment.set(bias=table)
            torch.testing.assert_close(layer(x), torch.cat(expected), rtol=1e-5, atol=1e-5)
            attachment.set(bias=BIASES[:, None])
            attachment.set(bias=torch.tensor([0.1, 0.2]))
            assert attachment._installed[0].tensor("bias").shape == (2,)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
    def test_in_other_precisions(self, dtype):
        layer, x = residual().inner.to(dtype), rows(3, dtype=dtype)
        with attach(layer, gated(16, 32)) as attachment:
            expected = one_by_one(layer, attachment, x, strength=STRENGTHS, bias=BIASES)
            attachment.set(strength=STRENGTHS, bias=BIASES)
            given = layer(x)
        assert given.dtype == dtype
        torch.testing.assert_close(given, expected)

    def test_of_convolutions_and_parts_of_a_fused_projection(self):
        torch.manual_seed(0)
        convolution, image = nn.Conv2d(16, 32, 1, stride=2), torch.randn(4, 16, 6, 5)
        with attach(convolution, gated(16, 32)) as attachment:
            expected = one_by_one(convolution, attachment, image, strength=STRENGTHS, bias=BIASES)
            attachment.set(strength=STRENGTHS, bias=BIASES)
            torch.testing.assert_close(convolution(image), expected, rtol=1e-5, atol=1e-5)
        layer, x = residual().inner, rows(3)
        with attach(Projection(layer, slice(4, 12)), gated(16, 8)) as attachment:
            expected = one_by_one(layer, attachment, x, strength=STRENGTHS)
            attachment.set(strength=STRENGTHS)
            torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)

    def test_gradients_of_what_is_learned(self):
        layer, x = residual().inner, rows(3)
        targets = torch.randn(2, 32, requires_grad=True)
        with attach(layer, gated(16, 32).with_targets(targets)) as attachment:
            one_by_one(layer, attachment, x, strength=STRENGTHS).square().sum().backward()
            expected, targets.grad = targets.grad, None
            attachment.set(strength=STRENGTHS)
            layer(x).square().sum().backward()
        torch.testing.assert_close(targets.grad, expected, rtol=1e-4, atol=1e-4)

    def test_copies_and_casts_keep_them(self):
        import copy

        model, x = residual(), rows(3)
        with attach(model, {"inner": gated(16, 32)}) as attachment:
            attachment.set(strength=STRENGTHS)
            expected = model(x)
            assert torch.equal(copy.deepcopy(model)(x), expected)
            assert torch.equal(model.double().float()(x), expected)


class TestCompiled:
    @pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
    def test_nothing_is_compiled_again_for_other_values(self, make):
        torch._dynamo.reset()
        model, counter, x = residual(), CompileCounter(), rows(3)
        compiled = torch.compile(model, backend=counter, fullgraph=True)
        with attach(model, {"inner": make(16, 32)}) as attachment:
            for number in range(4):
                values = {"strength": STRENGTHS * (number + 1)}
                if make is gated:
                    values |= {"bias": BIASES + number, "temperature": WIDTHS / (number + 1)}
                attachment.set(**values)
                torch.testing.assert_close(compiled(x), model(x))
                assert counter.frame_count == 1
        torch._dynamo.reset()


class TestRefused:
    def test_batches_of_another_size(self):
        layer = residual().inner
        with attach(layer, low_rank(16, 32)) as attachment:
            attachment.set(strength=STRENGTHS)
            for x in (rows(3)[:3], torch.randn(8, 16), torch.randn(16)):
                with pytest.raises(
                    ShapeError, match=r"'strength' was given 4 numbers, .*\[4, \.\.\."
                ):
                    layer(x)
            attachment.set(strength=1.0)
            layer(torch.randn(16))

    def test_what_may_be_meant_for_keys_or_for_rows(self):
        layer = residual().inner
        with attach(layer, gated(16, 32)) as attachment:
            with pytest.raises(ShapeError, match=r"'bias' .* or one for each row .*for each key"):
                attachment.set(bias=torch.tensor([0.1, 0.2]))
            attachment.set(bias=torch.tensor([[0.1], [0.2]]))
            layer(rows(3)[:2])
            attachment.set(bias=torch.tensor([0.1, 0.2, 0.3]))
            layer(rows(3)[:3])

    @pytest.mark.parametrize("value", [torch.ones(4, 2), torch.ones(2, 2, 2), torch.ones(4, 0)])
    def test_other_shapes(self, value):
        with (
            attach(residual().inner, gated(16, 32)) as attachment,
            pytest.raises(ShapeError, match=r"must be a number, or one for each row of a batch"),
        ):
            attachment.set(strength=value)

    def test_values_that_the_gate_refuses_in_any_row(self):
        edit = gated(16, 32)
        normalised = edit.with_gate(Sigmoid(0.5, 0.2), normalised=True)
        with attach(residual().inner, normalised) as attachment:
            before = attachment._installed[0].slot
            with pytest.raises(ShapeError, match="temperature must be positive"):
                attachment.set(temperature=torch.tensor([0.1, 0.1, 0.0]))
            with pytest.raises(ShapeError, match="too little apart to normalise"):
                attachment.set(bias=torch.tensor([0.1, 50.0, 0.2]), temperature=0.01)
            with pytest.raises(ShapeError, match="strength must be finite"):
                attachment.set(strength=torch.tensor([1.0, float("nan")]))
            assert attachment._installed[0].slot is before
            with pytest.raises(AttachError, match="no edit has the setting 'colour'"):
                attachment.set(colour=STRENGTHS)

    def test_refreshing_keeps_the_strengths_and_takes_the_gate_of_the_new_edit(self):
        layer, x, other = residual().inner, rows(3), gated(16, 32, 5)
        with attach(layer, gated(16, 32)) as attachment:
            attachment.set(strength=STRENGTHS, bias=BIASES)
            attachment.refresh({"": other})
            given = layer(x)
        with attach(layer, other) as attachment:
            attachment.set(strength=STRENGTHS)
            torch.testing.assert_close(given, layer(x))


class _Repeated(LowRank):
    """An edit whose rows are repeated as often as the batch has them."""

    def rows_for(self, setting, count):
        return setting.repeat(count // len(setting), 1)


def test_an_edit_may_put_its_batches_together_itself():
    torch.manual_seed(0)
    layer, x = torch.nn.Linear(4, 3), torch.randn(4, 5, 4)
    edit = _Repeated(torch.randn(3, 1), torch.randn(1, 4))
    with torch.no_grad(), attach(layer, edit) as attached:
        wanted = []
        for row, strength in enumerate([0.5, 2.0, 0.5, 2.0]):
            attached.set(strength=strength)
            wanted.append(layer(x[row : row + 1]))
        attached.set(strength=torch.tensor([0.5, 2.0]))
        torch.testing.assert_close(layer(x), torch.cat(wanted))
        with pytest.raises(ShapeError, match="'strength' was given 2 numbers"):
            layer(x[:3])


def test_one_key_goes_from_rows_to_its_own_number_and_back():
    """A setting of shape [1] is the one key's, not that of a batch of one row."""
    gate = JointSigmoid(torch.tensor([0.4]), torch.tensor([0.2]))
    layer, x = nn.Linear(16, 32), rows(3)
    with attach(layer, gated(16, 32, count=1).with_gate(gate)) as attachment:
        by_row = one_by_one(layer, attachment, x, bias=BIASES)
        attachment.set(bias=0.6)
        by_number = layer(x)
        for value in (torch.tensor([0.6]), torch.tensor(0.6), 0.6):
            for table in (BIASES, BIASES[:, None]):
                attachment.set(bias=table)
                torch.testing.assert_close(layer(x), by_row)
            attachment.set(bias=value)
            torch.testing.assert_close(layer(x), by_number)
