"""What an accelerator must do as a processor does: `pytest -m gpu`.

`RANKEDIT_GPU_TESTS=cpu` runs all that a processor can do of it there, to try the tests themselves.
"""

from __future__ import annotations

import copy
import os
from contextlib import contextmanager

import pytest
import torch
import torch.distributed as dist
from torch import nn

import rankedit as rk
from rankedit.placed import PlacedEdit
from tests.patching_cases import gated, low_rank, residual

DEVICE = os.environ.get("RANKEDIT_GPU_TESTS", "cuda")
CUDA = DEVICE == "cuda"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(CUDA and not torch.cuda.is_available(), reason="no CUDA device"),
]
only_cuda = pytest.mark.skipif(not CUDA, reason="of CUDA only")

X = torch.randn(4, 3, 16, generator=torch.Generator().manual_seed(1))


def edits():
    return {"inner": [gated(16, 32, 2), low_rank(16, 32)], "outer": gated(32, 16)}


def close(found, right, tolerance=1e-4):
    torch.testing.assert_close(
        found.detach().cpu().double(), right.detach().cpu().double(), rtol=tolerance, atol=tolerance
    )


@contextmanager
def exact():
    """Products of cards in all of float32, whatever another test set."""
    earlier = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(earlier)


@pytest.fixture(autouse=True)
def _exact():
    with exact():
        yield


@pytest.mark.parametrize("order", ["moved, then attached", "attached, then moved"])
def test_attached_edits(order):
    model = residual()
    base = model(X)
    twin = copy.deepcopy(model)
    with rk.attach(twin, edits()):
        right = twin(X)
    if order.startswith("moved"):
        model.to(DEVICE)
    attachment = rk.attach(model, edits())
    model.to(DEVICE)
    close(model(X.to(DEVICE)), right)
    attachment.set(strength=0.0)
    close(model(X.to(DEVICE)), base)
    attachment.detach()
    close(model(X.to(DEVICE)), base)


def test_gradients_of_learned_targets():
    learned = []
    for device in ("cpu", DEVICE):
        targets = torch.ones(2, 32, device=device, requires_grad=True)
        edit = gated(16, 32, 2).with_targets(targets)
        model = residual().to(device)
        with rk.attach(model, {"inner": edit}):
            model(X.to(device)).square().sum().backward()
        learned.append(targets.grad)
    close(learned[1], learned[0], 1e-3)


@pytest.mark.parametrize("products", ["float32", "float64"])
def test_collect(products):
    model, batches = residual(), [X, X + 1, X * 2]
    right = rk.collect(model, "outer", batches, products=products, progress=False)["outer"]
    moved = [batch.to(DEVICE) for batch in batches]
    found = rk.collect(model.to(DEVICE), "outer", moved, products=products, progress=False)
    assert found["outer"].count == right.count
    close(found["outer"].matrix, right.matrix)


def test_solve_and_fuse():
    generator = torch.Generator().manual_seed(0)
    keys, values, tokens = (
        torch.randn(s, generator=generator) for s in ((3, 16), (3, 32), (99, 16))
    )
    model = residual()
    metric = rk.Metric.from_moment(rk.SecondMoment(16).update(tokens))
    right = rk.solve_edit(model.inner, keys, values, metric)
    model.to(DEVICE)
    moment = rk.SecondMoment(16, device=DEVICE).update(tokens.to(DEVICE))
    metric = rk.Metric.from_moment(moment)
    found = rk.solve_edit(model.inner, keys.to(DEVICE), values.to(DEVICE), metric)
    close(found.delta(), right.delta())
    before = model.inner.weight.clone()
    with rk.attach(model, {"inner": found}):
        attached = model(X.to(DEVICE))
    rk.fuse_(model, {"inner": found})
    close(model(X.to(DEVICE)), attached)
    assert rk.unfuse_(model) == 1
    assert torch.equal(model.inner.weight, before)


def test_compiled_while_the_strength_changes():
    """Under CUDA graphs too: the tensors of edits are inputs of the graphs."""
    model = residual().to(DEVICE)
    how = {"mode": "reduce-overhead"} if CUDA else {"backend": "aot_eager"}
    with torch.no_grad(), rk.attach(model, {"inner": edits()["inner"]}) as attachment:
        compiled = torch.compile(model, **how)
        x, found = X.to(DEVICE), []
        for strength in (1.0, 0.5, -2.0, 0.0, 1.0):
            attachment.set(strength=strength)
            for _ in range(3):  # the first calls warm up, and record
                y = compiled(x).clone()
            close(y, model(x))
            found.append(y)
    assert not torch.equal(found[0], found[1])
    close(found[0], found[-1])


@only_cuda
def test_a_cuda_graph_keeps_what_it_was_recorded_with():
    model, x = residual().cuda(), X.cuda()
    with torch.no_grad(), rk.attach(model, {"inner": low_rank(16, 32)}) as attachment:
        right = model(x)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = model(x)
        graph.replay()
        close(y, right)
        attachment.set(strength=0.5)
        graph.replay()
        close(y, right)


def test_all_reduce_of_one_process(tmp_path):
    right = rk.collect(residual(), "outer", [X, X + 1], progress=False)["outer"].matrix
    store = f"file://{tmp_path / 'store'}"
    backend = "nccl" if CUDA else "gloo"
    dist.init_process_group(backend, init_method=store, rank=0, world_size=1)
    try:
        model = residual().to(DEVICE)
        moved = [X.to(DEVICE), X.to(DEVICE) + 1]
        close(rk.collect(model, "outer", moved, progress=False)["outer"].matrix, right)
    finally:
        dist.destroy_process_group()


def test_offloaded_weights():
    accelerate = pytest.importorskip("accelerate")
    model = residual()
    twin = copy.deepcopy(model)
    with rk.attach(twin, edits()):
        right = twin(X)
    accelerate.cpu_offload(model, execution_device=torch.device(DEVICE))
    with rk.attach(model, edits()):
        close(model(X.to(DEVICE)), right)
    assert model.inner.weight.is_meta


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_leaves_what_edits_add_in_float32(dtype):
    model = residual()
    twin = copy.deepcopy(model)
    with rk.attach(twin, edits()):
        right = twin(X)
    model.to(DEVICE)
    with rk.attach(model, edits()), torch.autocast(DEVICE, dtype):
        found = model(X.to(DEVICE))
    close(found, right, 0.1)
    similar = gated(16, 32, 2)
    with torch.autocast(DEVICE, dtype):
        layer = nn.Linear(16, 32).to(DEVICE)
        tensors = {
            n: t.to(DEVICE) for n, t in similar.bind(lambda k: torch.zeros(len(k), 32)).items()
        }
        added = similar.added(X.to(DEVICE), tensors)
        assert layer(X.to(DEVICE)).dtype == dtype
    assert added.dtype == torch.float32


@only_cuda
@pytest.mark.parametrize("bits", [8, 4])
def test_quantised_layers(bits):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    plain = nn.Linear(64, 64, bias=False)
    kind = bitsandbytes.nn.Linear8bitLt if bits == 8 else bitsandbytes.nn.Linear4bit
    given = {"has_fp16_weights": False} if bits == 8 else {"compute_dtype": torch.float16}
    layer = kind(64, 64, bias=False, **given)
    layer.load_state_dict(plain.state_dict())
    layer, x = layer.cuda(), torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    base, edit = layer(x.cuda().half()), low_rank(64, 64)
    with rk.attach(layer, edit):
        close(layer(x.cuda().half()) - base, x @ edit.delta().T, 0.05)
    close(layer(x.cuda().half()), base, 1e-6)


@contextmanager
def unsynchronised():
    """Refuses to wait for the device; on a processor, to ask a tensor for its number."""
    if CUDA:
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return
    with torch.profiler.profile() as profile:
        yield
    asked = {"aten::item", "aten::_local_scalar_dense", "aten::is_nonzero", "aten::nonzero"}
    assert not asked & {event.key for event in profile.key_averages()}


KINDS = {
    "static": lambda: low_rank(16, 32),
    "one key": lambda: gated(16, 32),
    "three keys": lambda: gated(16, 32, 3),
    "dead zone": lambda: gated(16, 32, 2).changed(floor=0.1),
    "normalised": lambda: gated(16, 32, 2).changed(normalised=True),
    "told": lambda: PlacedEdit(torch.ones(1, 3, 32), 16),
}


@pytest.mark.parametrize("strength", [1.0, "by row"])
@pytest.mark.parametrize("mode", ["inference", "training", "autocast"])
@pytest.mark.parametrize("kind", KINDS)
def test_no_forward_waits_for_the_device(kind, mode, strength):
    model, x = residual().to(DEVICE), X.to(DEVICE)
    with rk.attach(model, {"inner": KINDS[kind]()}) as attachment:
        if kind == "told":
            attachment.tell(
                rows=torch.ones(4, 3, device=DEVICE), time=torch.tensor(0.5, device=DEVICE)
            )
        if strength == "by row":
            attachment.set(strength=torch.tensor([1.0, 0.0, 0.5, 2.0]))
        model(x)
        with (
            torch.autocast(DEVICE, torch.bfloat16, enabled=mode == "autocast"),
            torch.set_grad_enabled(mode == "training"),
            unsynchronised(),
        ):
            model(x)
