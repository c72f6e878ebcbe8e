"""A layer that is asked is not touched: buffers, modes, graphs; and no garbage is read."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from rankedit import AttachError, Metric, Sketch, attach, fingerprint, fuse_, select, solve_edit
from rankedit.linear_outputs import linear_output, linear_output_transposed
from tests.patching_cases import KINDS, gated, low_rank, residual

X = torch.randn(5, 3, 16, generator=torch.Generator().manual_seed(1))


class Counting(nn.Linear):
    """Normalises by what it has seen, and counts: as batch norm does, in both modes."""

    def __init__(self, *size):
        super().__init__(*size)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.register_buffer("mean", torch.zeros(size[0]))

    def forward(self, x):
        self.calls += 1
        self.mean.lerp_(x.detach().mean(tuple(range(x.ndim - 1))), 0.1)
        return super().forward(x)


class Replacing(Counting):
    """Puts another tensor in the place of its buffer."""

    def forward(self, x):
        self.calls = self.calls + 1
        return nn.Linear.forward(self, x)


def spectral(layer):
    return parametrizations.spectral_norm(layer)


LAYERS = {
    "spectral_norm": lambda: spectral(nn.Linear(16, 32)),
    "spectral_norm_of_old": lambda: nn.utils.spectral_norm(nn.Linear(16, 32)),
    "weight_norm_and_spectral_norm": lambda: spectral(
        parametrizations.weight_norm(nn.Linear(16, 32))
    ),
    "counting": lambda: Counting(16, 32),
    "replacing": lambda: Replacing(16, 32),
}

COMPUTED = [
    nn.utils.spectral_norm,
    pytest.param(nn.utils.weight_norm, marks=pytest.mark.filterwarnings("ignore:.*weight_norm")),
    lambda layer: prune.l1_unstructured(layer, "weight", 0.3),
    lambda layer: prune.random_structured(layer, "weight", 0.5, dim=1),
]


def everything(model):
    """Bits of all tensors, modes, and what requires gradients."""
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    return tensors, modes, [tensor.requires_grad for tensor in model.parameters()]


def same(first, second):
    return first[1:] == second[1:] and all(torch.equal(first[0][n], second[0][n]) for n in first[0])


class TestUntouched:
    @pytest.mark.parametrize("form", LAYERS)
    @pytest.mark.parametrize("training", [True, False])
    def test_whatever_it_is_asked(self, form, training):
        torch.manual_seed(0)
        layer = LAYERS[form]().train(training)
        before, keys = everything(layer), torch.randn(2, 16, requires_grad=True)
        solve_edit(layer, keys, torch.randn(2, 32), Metric.identity(16))
        solve_edit(
            layer, torch.randn(2, 32), torch.randn(2, 16), Metric.identity(32), side="output"
        )
        linear_output(layer, keys).sum().backward()
        attach(layer, gated(16, 32)).detach()
        select(nn.ModuleDict({"layer": layer}), "*")
        fingerprint(layer)
        if form in ("counting", "replacing"):
            fuse_(copy.deepcopy(layer), low_rank(16, 32))
        assert same(everything(layer), before)
        assert keys.grad is not None
        assert all(tensor.grad is None for tensor in layer.parameters())

    @pytest.mark.parametrize("training", [True, False])
    @pytest.mark.parametrize("make", COMPUTED)
    def test_weights_that_the_next_call_computes(self, make, training):
        torch.manual_seed(0)
        layer, keys, values = make(nn.Linear(16, 32)), torch.randn(2, 16), torch.randn(2, 32)
        layer.train(training)(keys)
        with torch.no_grad():
            for tensor in layer.parameters():  # as training, or loading, does
                tensor.mul_(1.5).add_(0.1 * torch.randn_like(tensor))
        before, kept = everything(layer), layer.weight
        edit = solve_edit(layer, keys, values, Metric.identity(16))
        assert same(everything(layer), before)
        assert layer.weight is kept
        with attach(layer, edit):
            torch.testing.assert_close(layer(keys) - layer.bias, values, rtol=1e-4, atol=1e-5)

    def test_modules_that_are_only_looked_at(self):
        model = nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16), Counting(16, 4)).train()
        before = everything(model)
        assert list(select(model, "*")) == ["0", "2"]
        assert same(everything(model), before)

    def test_gradients_of_keys_are_those_of_the_weight(self):
        layer, keys = residual().inner.requires_grad_(), torch.randn(3, 16, requires_grad=True)
        seed = torch.randn(3, 32)
        linear_output(layer, keys).backward(seed.double())
        torch.testing.assert_close(keys.grad, seed @ layer.weight)
        torch.testing.assert_close(
            linear_output_transposed(layer, seed).float(), seed @ layer.weight
        )
        assert layer.weight.grad is None

    @pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
    def test_a_training_forward_beside_it_keeps_its_graph(self, make):
        layer, stop, lost = residual().inner.requires_grad_(), threading.Event(), []

        def train():
            while not stop.is_set():
                lost.append(not layer(X).requires_grad)

        thread = threading.Thread(target=train)
        thread.start()
        try:
            for seed in range(40):
                linear_output(layer, torch.randn(2, 16, requires_grad=True))
                attach(layer, make(16, 32, seed)).detach()
        finally:
            stop.set()
            thread.join()
        assert len(lost) > 10
        assert not any(lost)


@pytest.mark.filterwarnings("ignore:.*:FutureWarning", "ignore:.*:UserWarning")
class TestOnDisk:
    """diffusers' group offloading to disk: between forwards, weights are uninitialised memory."""

    @pytest.fixture(params=["block_level", "leaf_level"])
    def unets(self, request, tmp_path):
        pytest.importorskip("diffusers")
        from diffusers.hooks import apply_group_offloading

        from tests.unet_cases import tiny_unet

        plain, unet = tiny_unet(), tiny_unet()
        groups = {"num_blocks_per_group": 1} if request.param == "block_level" else {}
        device = torch.device("cpu")
        apply_group_offloading(
            unet, onload_device=device, offload_device=device, offload_type=request.param,
            offload_to_disk_path=str(tmp_path), **groups,
        )  # fmt: skip
        for tensor in unet.parameters():  # what was in that memory may be anything
            tensor.data.fill_(torch.nan)
        return plain, unet

    def test_layers_are_asked_with_their_weights(self, unets):
        from tests.unet_cases import names_of

        plain, unet = unets
        names = [*names_of(unet)[:2], "time_embedding.linear_1"]
        for name in names:
            real, layer = plain.get_submodule(name), unet.get_submodule(name)
            keys = torch.randn(3, real.in_features)
            assert torch.equal(linear_output(layer, keys), linear_output(real, keys))
            values = torch.randn(3, real.out_features)
            assert torch.equal(
                linear_output_transposed(layer, values), linear_output_transposed(real, values)
            )
            assert fingerprint(layer) == fingerprint(real)
        pairs = [{name: model.get_submodule(name) for name in names} for model in unets]
        assert Sketch.of(pairs[0]) == Sketch.of(pairs[1])

    def test_edits_act_and_leave_no_trace(self, unets):
        from tests.unet_cases import edits_of, output

        plain, unet = unets
        for make in KINDS.values():
            edits = edits_of(plain, make)
            with attach(plain, edits), attach(unet, edits) as attachment:
                torch.testing.assert_close(output(unet), output(plain))
                assert all(attachment.reached.values())
            torch.testing.assert_close(output(unet), output(plain))

    def test_their_weights_take_no_edit(self, unets):
        from tests.unet_cases import edits_of

        with pytest.raises(AttachError, match=r"fuse_: .* has its weight on disk between forwards"):
            fuse_(unets[1], edits_of(unets[0], low_rank))


def test_offloading_by_accelerate_is_asked_through_a_stand_in(tmp_path):
    """Its hooks load into the module that they are told: here into the stand-in."""
    accelerate = pytest.importorskip("accelerate")
    model, plain = residual(), residual()
    accelerate.cpu_offload(model, torch.device("cpu"))
    assigned, original = [], nn.Module.__setattr__
    with attach(model, {"inner": gated(16, 32)}):
        nn.Module.__setattr__ = lambda *a: (assigned.append(a[1]), original(*a))[1]
        try:
            attach(model, {"inner": gated(16, 32, 1)}).detach()
        finally:
            nn.Module.__setattr__ = original
        assert model.inner.weight.is_meta
    keys = torch.randn(2, 16)
    assert torch.equal(linear_output(model.inner, keys), linear_output(plain.inner, keys))
