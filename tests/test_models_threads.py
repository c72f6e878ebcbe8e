"""Edits come, go and change while other threads run the model: all of an edit or none of it."""

from __future__ import annotations

import sys
import threading

import pytest
import torch
from torch import nn

from rankedit import Projection, attach, linear_output
from tests.patching_cases import gated, low_rank, residual

X = torch.randn(4, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def _often():
    """Threads take turns as often as Python can have them do."""
    earlier = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(earlier)


def beside(forward, change, times):
    """What two threads get from `forward` while a third one changes something so many times."""
    stop, results, errors = threading.Event(), [], []

    def run():
        try:
            while not stop.is_set():
                results.append(forward())
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for number in range(times):
            change(number)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not errors
    assert len(results) > 20
    return results


def all_of(results, allowed):
    """How many of the results are none of those allowed."""
    return sum(not any(torch.allclose(y, z, atol=1e-5) for z in allowed) for y in results)


@pytest.mark.parametrize("make", [gated, low_rank])
@pytest.mark.parametrize("bare", [True, False])
def test_attaching_and_detaching(make, bare):
    """The last edit takes the layer's class with it; others leave it."""
    layer, edit = residual().inner, make(16, 32, 2)
    kept = None if bare else attach(layer, gated(16, 32, 1))
    without = layer(X)
    with attach(layer, edit):
        with_it = layer(X)
    cls = type(layer)

    def change(_):
        with attach(layer, edit):
            pass

    results = beside(lambda: layer(X), change, 150)
    assert all_of(results, [without, with_it]) == 0
    assert type(layer) is cls
    assert (kept is None) == (cls is nn.Linear)


def test_settings_come_together():
    """Strength, bias and temperature of one call: never some of them without the others."""
    layer = residual().inner
    settings = [
        {"strength": 1.0, "bias": 0.1, "temperature": 0.5},
        {"strength": -3.0, "bias": 0.9, "temperature": 0.05},
        {"strength": torch.tensor([1.0, -2.0, 0.5, 3.0]), "bias": 0.3, "temperature": 2.0},
    ]
    with attach(layer, gated(16, 32)) as attachment:
        allowed = []
        for values in settings:
            attachment.set(**values)
            allowed.append(layer(X))
        results = beside(lambda: layer(X), lambda n: attachment.set(**settings[n % 3]), 600)
    assert all_of(results, allowed) == 0


def test_new_tensors_come_together():
    layer, edits = residual().inner, [gated(16, 32, seed) for seed in range(3)]
    allowed = []
    for edit in edits:
        with attach(layer, edit):
            allowed.append(layer(X))
    with attach(layer, edits[0]) as attachment:
        results = beside(lambda: layer(X), lambda n: attachment.refresh({"": edits[n % 3]}), 200)
    assert all_of(results, allowed) == 0


def test_asking_and_attaching_leave_training_its_graph():
    layer = residual().inner.requires_grad_()
    kept = attach(layer, gated(16, 32, 1))
    expected = layer(X)

    def change(seed):
        attach(layer, gated(16, 32, seed + 2), strength=0.0).detach()
        Projection(layer).outputs(X.clone().requires_grad_())
        linear_output(layer, X)

    results = beside(lambda: layer(X), change, 60)
    assert all(result.requires_grad for result in results)
    assert all_of(results, [expected]) == 0
    results[-1].sum().backward()
    assert layer.weight.grad is not None
    kept.detach()


def test_two_threads_that_attach_and_detach():
    layer = residual().inner
    base, edits = layer(X), [gated(16, 32, seed) for seed in range(2)]

    def often(edit):
        for _ in range(80):
            with attach(layer, edit) as attachment:
                attachment.set(strength=0.5)
                attachment.set(strength=0.0)

    threads = [threading.Thread(target=often, args=(edit,)) for edit in edits]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert type(layer) is nn.Linear
    assert torch.equal(layer(X), base)
