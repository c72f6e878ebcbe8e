"""Edits that are told of each call where and when they act."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.utils.checkpoint import checkpoint

import rankedit as rk
from rankedit.placed import PlacedEdit, hats
from rankedit.testing import check_edit
from tests.patching_cases import low_rank, residual, state_of
from tests.test_models_threads import all_of, beside

BATCH, TOKENS, LENGTH, KNOTS = 3, 4, 7, 4


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def placed(in_features, out_features, *, seed=0, count=2, knots=KNOTS, last=False):
    return PlacedEdit(draw(count, knots, out_features, seed=seed), in_features, last)


def call(seed=0, tokens=TOKENS):
    """Rows with zeros among them, and times, some of them between knots and one beyond."""
    rows = draw(BATCH, tokens, 2, seed=seed + 50)
    rows[0] = 0  # an unguided prompt
    rows[:, 1] = 0
    return {"rows": rows, "time": torch.tensor([0.1, 0.5, 1.4])}


def truth(weight, x, edit, rows, time, strength=1.0):
    """The documented formula in float64, place by place."""
    outputs = x.double() @ weight.double().T
    begin = x.shape[1] - rows.shape[1] if edit.last else 0
    for b in range(x.shape[0]):
        at = min(max(float(time[b]), 0.0), 1.0) * (edit.knots - 1)
        for p in range(rows.shape[1]):
            for j, target in enumerate(edit.targets.double()):
                lower = min(int(at), edit.knots - 2)
                between = target[lower] + (at - lower) * (target[lower + 1] - target[lower])
                outputs[b, begin + p] += strength * float(rows[b, p, j]) * between
    return outputs


X = draw(BATCH, LENGTH, 16, seed=1)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("tokens", [TOKENS, LENGTH])
def test_the_formula(last, grad, tokens):
    layer, edit = nn.Linear(16, 8, bias=False), placed(16, 8, last=last)
    base, told = layer(X), call(tokens=tokens)
    with rk.attach(layer, edit, strength=0.7) as attachment, torch.set_grad_enabled(grad):
        attachment.tell(**told)
        found = layer(X)
        expected = truth(layer.weight, X, edit, **told, strength=0.7)
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
        untouched = [0, 1] if last else [LENGTH - 1]
        if tokens < LENGTH:
            assert torch.equal(found[:, untouched], base[:, untouched])
        assert torch.equal(found[0], base[0])  # rows of zeros
        attachment.tell(rows=None)
        assert torch.equal(layer(X), base)
        attachment.set(strength=torch.tensor([0.0, 1.0, 2.0]))
        attachment.tell(**told)
        each = truth(layer.weight, X[2:], edit, told["rows"][2:], told["time"][2:], 2.0)
        torch.testing.assert_close(layer(X)[2:].double(), each, rtol=1e-5, atol=1e-5)
    assert torch.equal(layer(X), base)


def test_weights_of_knots_are_linear_interpolation():
    import numpy as np

    times = torch.linspace(-0.2, 1.2, 57, dtype=torch.float64)
    values = draw(5, dtype=torch.float64)
    expected = np.interp(times.numpy(), np.linspace(0, 1, 5), values.numpy())
    torch.testing.assert_close(hats(times, torch.arange(5.0)) @ values, torch.from_numpy(expected))


def test_one_vector_takes_plain_rows_and_no_time():
    layer, edit = nn.Linear(16, 8), PlacedEdit(draw(1, 8), 16)
    base, rows = layer(X), draw(BATCH, TOKENS)
    with rk.attach(layer, edit) as attachment:
        attachment.tell(rows=rows)
        expected = base.clone()
        expected[:, :TOKENS] += rows[..., None] * edit.targets
        torch.testing.assert_close(layer(X), expected)
        with pytest.raises(rk.AttachError, match="no edit reads 'time' of a call; they read rows"):
            attachment.tell(rows=rows, time=0.5)


def test_conformance():
    context = {"rows": draw(2, 3, 2), "time": torch.tensor([0.2, 0.7])}
    check_edit(placed(16, 8), context=context)


def test_rows_of_a_fused_projection():
    layer, edit = nn.Linear(16, 24), placed(16, 8, last=True)
    base, told = layer(X), call()
    with rk.attach(rk.Projection(layer, slice(8, 16)), edit) as attachment:
        attachment.tell(**told)
        found = layer(X)
    assert torch.equal(found[..., :8], base[..., :8])
    assert torch.equal(found[..., 16:], base[..., 16:])
    expected = truth(layer.weight[8:16], X, edit, **told) + layer.bias[8:16].double()
    torch.testing.assert_close(found[..., 8:16].double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_precision_of_the_layer(dtype):
    layer, edit, told = nn.Linear(16, 8, bias=False).to(dtype), placed(16, 8), call()
    x = X.to(dtype)
    with rk.attach(layer, edit) as attachment:
        attachment.tell(**told)
        found, expected = layer(x), truth(layer.weight, x, edit, **told)
    tolerance = 1e-2 if dtype == torch.bfloat16 else 1e-6  # rows are told in float32
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=5 * tolerance)


def test_learning_lowers_a_loss_and_checkpoints():
    layer, told, goal = nn.Linear(16, 8), call(), draw(BATCH, LENGTH, 8, seed=9)
    targets = torch.zeros(2, KNOTS, 8, requires_grad=True)
    optimiser = torch.optim.Adam([targets], 0.1)
    losses = []
    with rk.attach(layer, PlacedEdit(targets, 16)) as attachment:
        for step in range(30):
            attachment.tell(**told)
            run = layer if step % 2 else lambda x: checkpoint(layer, x, use_reentrant=False)
            loss = (run(X) - goal)[:, :TOKENS].square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert layer.weight.grad is not None


# ------------------------------------------------------------------------------ what is not told


def test_what_was_not_told_or_is_of_another_call():
    layer = nn.Linear(16, 8)
    with rk.attach(layer, placed(16, 8)) as attachment:
        with pytest.raises(rk.AttachError, match=r"PlacedEdit reads rows, time of each call.*tell"):
            layer(X)
        attachment.tell(rows=call()["rows"])
        with pytest.raises(rk.AttachError, match="reads time of each call"):
            layer(X)
        attachment.tell(**call())
        with pytest.raises(rk.ShapeError, match="guidance"):
            layer(torch.cat([X, X]))
        with pytest.raises(rk.ShapeError, match=r"expected \[batch, tokens, in\]"):
            layer(X[:, :2])
        with pytest.raises(rk.ShapeError, match=r"expected \[batch, tokens, in\]"):
            layer(X[:, 0])
        attachment.tell(**{**call(), "rows": call()["rows"][..., :1]})
        with pytest.raises(rk.ShapeError, match=r"rows must be \[batch, tokens, 2\]"):
            layer(X)
        attachment.tell()
        with pytest.raises(rk.AttachError, match="was not told"):
            layer(X)
    with pytest.raises(rk.AttachError, match="attach again"):
        attachment.tell(rows=None)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"rows": torch.tensor([1.0])}, r"rows must be floating-point \[batch, tokens\]"),
        ({"rows": torch.ones(1, 2, dtype=torch.long)}, "rows must be floating-point"),
        ({"rows": torch.full((1, 2), torch.nan)}, "rows must be finite"),
        ({"rows": None, "time": "late"}, "time must be numbers, got str"),
    ],
)
def test_refused_values(wrong, match):
    attachment = rk.attach(nn.Linear(16, 8), placed(16, 8))
    with pytest.raises(rk.ShapeError, match=match):
        attachment.tell(**wrong)


def test_edits_that_are_no_sequences_matter():
    with pytest.raises(rk.AttachError, match="is a convolution"):
        rk.attach(nn.Conv2d(16, 8, 1), placed(16, 8))
    with (
        rk.attach(nn.Linear(16, 8), low_rank(16, 8)) as attachment,
        pytest.raises(rk.AttachError, match="no edit reads 'rows' of a call; they read nothing"),
    ):
        attachment.tell(rows=None)
    for wrong in (torch.ones(3), torch.ones(0, 3), torch.ones(2, 3, dtype=torch.long)):
        with pytest.raises(rk.ShapeError, match="targets must be"):
            PlacedEdit(wrong, 16)
    with pytest.raises(rk.RankeditError, match="PlacedEdit"):
        rk.fuse_(nn.Linear(16, 8), placed(16, 8))


def test_beside_other_edits_and_in_place_of_others():
    layer, told = nn.Linear(16, 8, bias=False), call()
    static, first, last = low_rank(16, 8), placed(16, 8), placed(16, 8, seed=3)
    with rk.attach(layer, [static, first]) as attachment:
        attachment.tell(**told)
        weight = layer.weight + static.delta()
        expected = truth(weight, X, first, **told)
        torch.testing.assert_close(layer(X).double(), expected, rtol=1e-5, atol=1e-5)
        attachment.refresh({"": [static, last]})
        expected = truth(weight, X, last, **told)
        torch.testing.assert_close(layer(X).double(), expected, rtol=1e-5, atol=1e-5)
        with pytest.raises(rk.AttachError, match="of the form PlacedEdit on the first rows"):
            attachment.refresh({"": [static, placed(16, 8, last=True)]})


# ------------------------------------------------------------------------------ in whole models


EDITS = {"inner": placed(16, 32), "outer": [placed(32, 16, seed=1), low_rank(32, 16)]}


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_compiled_models_are_told_too(mode):
    model, counter = residual(), CompileCounter()
    base = model(X)
    with rk.attach(model, EDITS) as attachment, mode():
        attachment.tell(**call())
        compiled = torch.compile(model, backend=counter, fullgraph=True)
        for seed in range(4):
            attachment.tell(**call(seed))
            torch.testing.assert_close(compiled(X), model(X))
        assert counter.frame_count == 1  # other prompts, nothing compiled again
        attachment.tell(**call(tokens=2))
        torch.testing.assert_close(compiled(X), model(X))
        attachment.tell(rows=None)
        found = compiled(X)
        assert not torch.allclose(found, base)  # the static edit is in
    torch.testing.assert_close(compiled(X), base)


def test_gone_to_the_bit_and_copies_know_nothing():
    model = residual()
    before = state_of(model)
    with rk.attach(model, EDITS) as attachment:
        attachment.tell(**call())
        expected = model(X)
        copied = copy.deepcopy(model)
        read = pickle.loads(pickle.dumps(model))
        stored = io.BytesIO()
        torch.save(model.state_dict(), stored)
        assert set(model.state_dict()) == set(residual().state_dict())
        torch.testing.assert_close(model(X), expected)
    assert state_of(model) == before
    for other in (copied, read):
        with pytest.raises(rk.AttachError, match="copied model has to be attached to anew"):
            other(X)
        rk.detach_all(other)
        torch.testing.assert_close(other(X), model(X))


def test_offloaded_layers_are_told_where_they_compute():
    accelerate = pytest.importorskip("accelerate")
    model = residual()
    with rk.attach(model, EDITS) as attachment:
        attachment.tell(**call())
        expected = model(X)
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    with rk.attach(model, EDITS) as attachment:
        attachment.tell(**call())
        torch.testing.assert_close(model(X), expected)


def test_a_call_of_a_layer_sees_one_context():
    layer, edit = residual().inner, placed(16, 32)
    contexts = [call(seed) for seed in range(3)] + [{"rows": None}]
    with rk.attach(layer, edit) as attachment, torch.no_grad():
        allowed = []
        for told in contexts:
            attachment.tell(**told)
            allowed.append(layer(X))
        results = beside(lambda: layer(X), lambda n: attachment.tell(**contexts[n % 4]), 400)
    assert all_of(results, allowed) == 0
