"""A key that moves at each step: attached edits follow it as by `refresh`, and wait for nothing."""

import pytest
import torch
from torch import nn

import rankedit as rk
from rankedit.models.moving import move_key
from tests.host_work import Looks
from tests.problems import relative


def model_of(bias=True, dtype=torch.float32):
    torch.manual_seed(0)
    return nn.ModuleDict({n: nn.Linear(6, 4, bias=bias) for n in "ab"}).to(dtype)


def edits_of(key, metric, targets, **options):
    gate = rk.Sigmoid(0.6, 0.2)
    return {n: rk.GatedEdit(key, targets[n], metric, gate, **options) for n in targets}


@pytest.fixture
def metric():
    torch.manual_seed(1)
    return rk.Metric.from_moment(rk.SecondMoment(6).update(torch.randn(40, 6)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", [{}, {"floor": 0.1}, {"normalised": True}])
def test_it_is_refresh_with_edits_of_the_key(metric, dtype, options):
    model, other = model_of(dtype=dtype), model_of(dtype=dtype)
    targets = {n: torch.randn(1, 4) for n in "ab"}
    first = edits_of(torch.randn(1, 6), metric, targets, **options)
    moved, refreshed = rk.attach(model, first, strength=0.7), rk.attach(other, first, strength=0.7)
    x = torch.randn(3, 5, 6, dtype=dtype)
    for scale in (1.0, 1e-4, 1e4):
        key = torch.randn(1, 6) * scale
        image = metric.guarded.solve(key)
        move_key(moved, key, image)
        refreshed.refresh(edits_of(key, metric, targets, **options))
        for name in "ab":
            with torch.no_grad():
                at_once = model[name](x)
            # In float32 a similarity of short keys is a large number of a small one's digits.
            bound = 1e-12 if dtype == torch.float64 else 1e-6 if scale == 1 else 1e-4
            assert relative(at_once, other[name](x).detach()) < bound
            assert relative(model[name](x).detach(), other[name](x).detach()) < bound
    # What is there is still an edit like any other.
    moved.set(strength=0.2)
    refreshed.set(strength=0.2)
    torch.testing.assert_close(model["a"](x), other["a"](x))
    moved.detach()
    assert torch.equal(model["a"](x), model_of(dtype=dtype)["a"](x))


def test_targets_that_are_learned_stay_those_of_the_optimiser(metric):
    model = model_of()
    targets = {n: torch.randn(1, 4, requires_grad=True) for n in "ab"}
    attachment = rk.attach(model, edits_of(torch.randn(1, 6), metric, targets))
    key = torch.randn(1, 6)
    move_key(attachment, key, metric.guarded.solve(key))
    model["a"](key).sum().backward()
    assert targets["a"].grad is not None
    assert targets["b"].grad is None


def test_nothing_is_waited_for(metric):
    attachment = rk.attach(
        model_of(), edits_of(torch.randn(1, 6), metric, {n: torch.randn(1, 4) for n in "ab"})
    )
    key = torch.randn(1, 6)
    image = metric.guarded.solve(key)
    move_key(attachment, key, image)  # the first one says that they move
    with Looks() as looks:
        move_key(attachment, key, image)
    assert looks.found == []


def test_what_has_no_one_key_is_refused(metric):
    two = rk.GatedEdit(torch.randn(2, 6), torch.randn(2, 4), metric)
    static = rk.LowRank(torch.ones(4, 1), torch.ones(1, 6))
    key = torch.randn(1, 6)
    for edit in (two, static):
        attachment = rk.attach(model_of(), {"a": edit})
        with pytest.raises(rk.AttachError, match=r"'a' must be a gated edit with one key.*ref"):
            move_key(attachment, key, key)
        attachment.detach()
    with pytest.raises(rk.AttachError, match=r"Attachment\.move_key: the edits have been detached"):
        move_key(attachment, key, key)
