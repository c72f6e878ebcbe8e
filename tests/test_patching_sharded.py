"""Attached edits in a model that two gloo processes share: FSDP2 in both orders, and TP."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch import nn

from rankedit import AttachError, ProjectionError, linear_output
from rankedit.models.fingerprints import fingerprint
from rankedit.models.patching import attach
from tests.patching_cases import gated, low_rank, residual
from tests.two_processes import tracebacks

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not dist.is_available(), reason="torch without torch.distributed"),
]

X = torch.randn(4, 16, generator=torch.Generator().manual_seed(1))


def edits():
    return {"inner": [gated(16, 32), low_rank(16, 32)], "outer": gated(32, 16)}


def expected():
    model = residual()
    base = model(X)
    with attach(model, edits()):
        return base, model(X)


def shard(model, *, nested):
    from torch.distributed.fsdp import fully_shard

    if nested:
        fully_shard(model.inner)
    return fully_shard(model)


def fsdp_after_attaching(nested):
    model = residual()
    base, truth = expected()
    attachment = attach(model, edits())
    names = list(model.state_dict())
    shard(model, nested=nested)
    torch.testing.assert_close(model(X), truth)
    assert list(model.state_dict()) == names
    attachment.set(strength=0.0)
    torch.testing.assert_close(model(X), base)
    attachment.detach()
    torch.testing.assert_close(model(X), base)


def fsdp_before_attaching(nested):
    model = shard(residual(), nested=nested)
    base, truth = expected()
    cls = type(model.inner)
    with attach(model, edits()):
        torch.testing.assert_close(model(X), truth)
    torch.testing.assert_close(model(X), base)
    assert type(model.inner) is cls
    with attach(model, edits()):  # also once the sharding library has set itself up
        torch.testing.assert_close(model(X), truth)


def fsdp_gradients(nested):
    learned = torch.randn(2, 32, generator=torch.Generator().manual_seed(5)).requires_grad_()
    edit = gated(16, 32).with_targets(learned)
    model = residual()
    with attach(model, {"inner": edit}):
        (truth,) = torch.autograd.grad(model(X).square().sum(), learned)
    sharded = shard(residual().requires_grad_(), nested=nested)
    with attach(sharded, {"inner": edit}):
        sharded(X).square().sum().backward()
    torch.testing.assert_close(learned.grad, truth, rtol=1e-4, atol=1e-5)


def fsdp_above_the_model_that_was_passed(nested):
    model = shard(residual(), nested=False)
    with pytest.raises(AttachError, match=r"is split over devices: its weight is a DTensor"):
        attach(model.inner, low_rank(16, 32))
    with pytest.raises(ProjectionError, match="could not be run"):
        linear_output(model.inner, X)


def fsdp_fingerprint(nested):
    model = shard(residual(), nested=nested)
    assert fingerprint(model.inner) == fingerprint(residual().inner)


def parallelize(model):
    from torch.distributed.tensor import parallel

    mesh = dist.device_mesh.init_device_mesh("cpu", (dist.get_world_size(),))
    plan = {"inner": parallel.ColwiseParallel(), "outer": parallel.RowwiseParallel()}
    return parallel.parallelize_module(model, mesh, plan)


def tensor_parallel_is_refused(nested):
    model = parallelize(residual())
    for name, sizes in (("inner", (16, 32)), ("outer", (32, 16))):
        with pytest.raises(AttachError, match=r"tensor parallelism.*before parallelize_module"):
            attach(model, {name: low_rank(*sizes)})
    with attach(model, {"head": low_rank(16, 8)}):  # not among the parallel layers
        assert model(X).shape == (4, 8)


def tensor_parallel_after_attaching(nested):
    base, _ = expected()
    for name, sizes in (("inner", (16, 32)), ("outer", (32, 16))):
        model, edit = residual(), {name: gated(*sizes)}
        with attach(model, edit):
            truth = model(X)
        attachment = attach(model, edit)
        parallelize(model)
        torch.testing.assert_close(model(X), truth)
        attachment.detach()
        torch.testing.assert_close(model(X), base)


SCENARIOS = {
    f"{scenario.__name__}-{'layer_and_root' if nested else 'root_only'}": (scenario, nested)
    for scenario, both in {
        fsdp_after_attaching: True,
        fsdp_before_attaching: True,
        fsdp_gradients: True,
        fsdp_fingerprint: True,
        fsdp_above_the_model_that_was_passed: False,
        tensor_parallel_is_refused: False,
        tensor_parallel_after_attaching: False,
    }.items()
    for nested in ((False, True) if both else (False,))
}


def nested_or_not(scenario, nested, _rank):
    scenario(nested)


@pytest.fixture(scope="module")
def failures():
    return tracebacks({name: partial(nested_or_not, *given) for name, given in SCENARIOS.items()})


@pytest.mark.parametrize("name", SCENARIOS)
def test_sharded(name, failures):
    assert failures[name] == [None, None], "\n".join(filter(None, failures[name]))


def test_an_ordinary_model_is_not_called_sharded():
    """torch.distributed is imported here: its classes must not be seen where there are none."""
    import torch.distributed.fsdp
    import torch.distributed.tensor  # noqa: F401

    layer = nn.Linear(16, 32)
    with attach(layer, low_rank(16, 32)):
        assert layer(X).shape == (4, 32)
