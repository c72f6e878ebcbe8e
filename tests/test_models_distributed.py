"""Edits in a model under DistributedDataParallel, in two gloo processes."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import nn

from rankedit import AttachError, GatedEdit
from rankedit.models.patching import attach
from tests.patching_cases import gated, low_rank, residual
from tests.two_processes import tracebacks

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not dist.is_available(), reason="torch without torch.distributed"),
]

X = torch.randn(4, 16, generator=torch.Generator().manual_seed(1))
EDITS = {"inner": [gated(16, 32), low_rank(16, 32)], "outer": gated(32, 16)}


def wrapped(model):
    return nn.parallel.DistributedDataParallel(model)


def trained(model, x):
    """Gradients of the model's parameters after a step on this process's data."""
    model.zero_grad()
    model(x).square().mean().backward()
    return [tensor.grad.clone() for tensor in model.parameters()]


def mine(rank):
    return X[2 * rank : 2 * rank + 2]


def attached_before_wrapping(rank):
    model = residual().requires_grad_()
    with attach(model, EDITS):
        truth = model(X)
        expected = trained(model, X)
    base = model(X)
    attachment = attach(model, EDITS)
    ddp = wrapped(model)
    torch.testing.assert_close(ddp(X), truth)
    for given, wanted in zip(trained(ddp, mine(rank)), expected, strict=True):
        torch.testing.assert_close(given, wanted, rtol=1e-4, atol=1e-6)
    assert all(attachment.reached.values())
    attachment.detach()
    for _ in range(2):
        torch.testing.assert_close(ddp(X), base)
        trained(ddp, mine(rank))


def attached_after_wrapping(rank):
    model = residual().requires_grad_()
    base, ddp = model(X), wrapped(model)
    trained(ddp, mine(rank))
    with attach(ddp, {f"module.{name}": edits for name, edits in EDITS.items()}) as attachment:
        given = ddp(X)
        trained(ddp, mine(rank))
        assert all(attachment.reached.values())
    with attach(model, EDITS):
        torch.testing.assert_close(model(X), given)
    torch.testing.assert_close(ddp(X), base)


def settings_of_one_process_are_its_own(rank):
    model = residual().requires_grad_()
    base = model(X)
    with attach(model, EDITS) as attachment:
        truth, ddp = model(X), wrapped(model)
        attachment.set(strength=float(rank))
        for _ in range(3):  # the first process's would be sent to all before a forward
            torch.testing.assert_close(ddp(X), truth if rank else base)


def learned(register, rank):
    """Targets that are learned on different data of two processes, or of one with all of it."""
    model = residual().requires_grad_()
    edit, targets = gated(16, 32), nn.Parameter(torch.ones(2, 32))
    if register:
        model.register_parameter("targets", targets)
    attach(model, {"inner": edit.with_targets(targets)})
    (expected,) = torch.autograd.grad(model(X).square().mean(), targets)
    ddp = wrapped(model)
    ddp(mine(rank)).square().mean().backward()
    torch.testing.assert_close(targets.grad, expected, rtol=1e-4, atol=1e-7)


def learned_tensors_that_are_parameters_are_averaged(rank):
    learned(register=True, rank=rank)


def learned_tensors_that_are_none_are_refused(rank):
    with pytest.raises(AttachError, match=r"'targets' is learned, but is no parameter .*register"):
        learned(register=False, rank=rank)
    model = residual().requires_grad_()
    keys, edit = torch.ones(1, 16, requires_grad=True), gated(16, 32, count=1)
    through = GatedEdit.from_images(keys, edit.targets, 2 * keys, edit.gate)  # computed from it
    with attach(model, {"inner": through}):
        ddp = wrapped(model)
        with pytest.raises(AttachError, match="is learned, but is no parameter of the model"):
            ddp(X)
        with torch.no_grad():
            ddp(X)


SCENARIOS = {
    scenario.__name__: scenario
    for scenario in (
        attached_before_wrapping,
        attached_after_wrapping,
        settings_of_one_process_are_its_own,
        learned_tensors_that_are_parameters_are_averaged,
        learned_tensors_that_are_none_are_refused,
    )
}


@pytest.fixture(scope="module")
def failures():
    return tracebacks(SCENARIOS)


@pytest.mark.parametrize("name", SCENARIOS)
def test_data_parallel(name, failures):
    assert failures[name] == [None, None], "\n".join(filter(None, failures[name]))
