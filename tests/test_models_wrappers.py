"""Adapters around an edited layer: those that add are met, those that scale or turn are refused."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from rankedit import (
    AttachError,
    Metric,
    ProjectionError,
    RankeditWarning,
    attach,
    fuse_,
    solve_edit,
)
from tests.layer_cases import Doubling
from tests.patching_cases import KINDS, gated, low_rank, state_of

peft = pytest.importorskip("peft")

TARGETS = {"target_modules": ["inner"]}
ADDING = {
    "LoRA": lambda: peft.LoraConfig(r=2, **TARGETS),
    "VeRA": lambda: peft.VeraConfig(r=2, **TARGETS),
    "LoHa": lambda: peft.LoHaConfig(r=2, **TARGETS),
    "LoKr": lambda: peft.LoKrConfig(r=2, **TARGETS),
    "FourierFT": lambda: peft.FourierFTConfig(n_frequency=8, **TARGETS),
}
CHANGING = {
    "DoRA": lambda: peft.LoraConfig(r=2, use_dora=True, **TARGETS),
    "OFT": lambda: peft.OFTConfig(r=0, oft_block_size=4, **TARGETS),
    "BOFT": lambda: peft.BOFTConfig(boft_block_size=4, **TARGETS),
    "IA3": lambda: peft.IA3Config(feedforward_modules=[], **TARGETS),
    "HRA": lambda: peft.HRAConfig(r=2, **TARGETS),
}
NAME = "base_model.model.inner"


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x):
        return self.outer(self.inner(x))


def trained(config, scale=0.1):
    """A model with an adapter that is not as it was made."""
    torch.manual_seed(0)
    model = peft.get_peft_model(Model(), config)
    for name, tensor in model.named_parameters():
        if "base_layer" not in name and "outer" not in name:
            tensor.data += scale * torch.randn(tensor.shape)
    return model


pytestmark = pytest.mark.filterwarnings("ignore")


class TestWrappers:
    @pytest.mark.parametrize("kind", ADDING)
    def test_that_add_are_met_at_the_keys(self, kind):
        model = trained(ADDING[kind]())
        layer, keys, values = model.base_model.model.inner, torch.randn(2, 16), torch.randn(2, 16)
        edit = solve_edit(layer, keys, values, Metric.identity(16))
        with attach(model, {NAME: edit}):
            given = layer(keys) - layer(torch.zeros_like(keys))
        assert float((given - values).norm() / values.norm()) < 1e-5

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
    def test_that_add_are_met_in_any_precision(self, dtype):
        model = trained(ADDING["LoRA"]()).to(dtype)
        with attach(model, {NAME: gated(16, 16)}) as attachment:
            assert attachment.names == (NAME,)

    @pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
    @pytest.mark.parametrize("kind", CHANGING)
    def test_that_scale_or_turn_are_refused_with_the_figure(self, kind, make):
        model = trained(CHANGING[kind]())
        before, edits = state_of(model), {NAME: make(16, 16)}
        with pytest.raises(AttachError, match=r"attach: .* deviates by 0?[\d.]+ at the .*Merge"):
            attach(model, edits)
        if make is low_rank:
            with pytest.raises(AttachError, match=r"fuse_: what is added .* deviates by"):
                fuse_(model, edits)
        assert state_of(model) == before

    def test_a_little_scaling_is_seen(self):
        with pytest.raises(AttachError, match=r"deviates by 0\.0\d"):
            attach(trained(CHANGING["IA3"](), 0.03), {NAME: low_rank(16, 16)})

    @pytest.mark.parametrize("kind", CHANGING)
    def test_after_merging_they_are_met(self, kind):
        model = trained(CHANGING[kind]()).merge_and_unload()
        keys, values = torch.randn(2, 16), torch.randn(2, 16)
        edit = solve_edit(model.inner, keys, values, Metric.identity(16))
        with attach(model, {"inner": edit}):
            given = model.inner(keys) - model.inner(torch.zeros_like(keys))
        torch.testing.assert_close(given, values, rtol=1e-4, atol=1e-4)

    def test_of_nobody_s_library(self):
        class Halving(Doubling):
            def forward(self, x):
                return 0.5 * self.base_layer(x)

        class Turning(Doubling):
            def forward(self, x):
                return self.base_layer(x.flip(-1))

        attach(Doubling(nn.Linear(16, 32)), gated(16, 32)).detach()
        for kind in (Halving, Turning):
            with pytest.raises(AttachError, match=rf"what its {kind.__name__} gives"):
                attach(kind(nn.Linear(16, 32)), gated(16, 32))


class TestClasses:
    """Layers that are torch's linear layer, with a `forward` of their own."""

    class Normalising(nn.Linear):
        def forward(self, x):
            return super().forward(nn.functional.layer_norm(x, x.shape[-1:]))

    class Activated(nn.Linear):
        def forward(self, x):
            return torch.relu(super().forward(x))

    class Clipping(nn.Linear):
        def forward(self, x):
            return super().forward(x).clamp(-0.1, 0.1)

    class Scaling(nn.Linear):
        def forward(self, x):
            return 3 * super().forward(x)

    class Several(nn.Linear):
        def forward(self, x):
            return super().forward(x), None

    @pytest.mark.parametrize("verb", [attach, fuse_])
    @pytest.mark.parametrize("kind", [Normalising, Activated, Clipping])
    def test_that_are_not_linear_are_refused(self, kind, verb):
        model = nn.Sequential(kind(16, 16))
        with pytest.raises(AttachError, match=f"'0' must be linear, but its class {kind.__name__}"):
            verb(model, {"0": low_rank(16, 16)})

    @pytest.mark.parametrize("fill", [None, 0.0])
    def test_that_scale_are_met_at_the_keys(self, fill):
        layer = self.Scaling(16, 16, bias=False).requires_grad_(requires_grad=False)
        if fill is not None:
            layer.weight.fill_(fill)
        keys, values = torch.randn(2, 16), torch.randn(2, 16)
        with attach(layer, solve_edit(layer, keys, values, Metric.identity(16))):
            torch.testing.assert_close(layer(keys), values, rtol=1e-4, atol=1e-4)
            attach(layer, gated(16, 16)).detach()  # a gate beside it bends nothing of the layer

    def test_that_give_more_than_a_tensor_are_refused(self):
        with pytest.raises(ProjectionError, match=r"Several must give a tensor, got tuple; name"):
            solve_edit(
                self.Several(16, 16), torch.randn(1, 16), torch.randn(1, 16), Metric.identity(16)
            )

    @pytest.mark.parametrize("verb", [attach, fuse_])
    def test_of_complex_numbers_are_refused(self, verb):
        layer = nn.Linear(16, 16, dtype=torch.complex64)
        with pytest.raises(ProjectionError, match=r"must have real weights, got torch\.complex64"):
            verb(layer, low_rank(16, 16))


class TestHooks:
    @pytest.mark.filterwarnings("error")
    @pytest.mark.parametrize("edit", [attach, fuse_])
    @pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
    def test_a_hook_on_the_layer_is_told_of_and_not_run(self, edit, register):
        seen = []
        model = Model()
        getattr(model.inner, register)(lambda *call: seen.append(call))
        with pytest.warns(RankeditWarning, match=r"'inner' has the forward hook .* acts below it"):
            edit(model, {"inner": low_rank(16, 16)})
        assert not seen

    @pytest.mark.filterwarnings("error")
    def test_of_torch_s_own_and_of_hooks_elsewhere_nothing_is_said(self):
        model = Model()
        nn.utils.spectral_norm(model.inner)
        for module in (model, model.outer):
            module.register_forward_hook(lambda *_: None)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            attach(model, {"inner": low_rank(16, 16)}).detach()
        assert not said
