"""fuse_ writes round(W + ΔW) or nothing; unfuse_ puts the old bits back."""

from __future__ import annotations

import copy
import io
import re
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from rankedit import AttachError, LowRank, ProjectionError, RankeditWarning, ShapeError
from rankedit.linear_outputs import linear_output
from rankedit.models import fusing
from rankedit.models.fusing import fuse_, unfuse_
from rankedit.models.patching import attach
from rankedit.models.projections import Projection
from tests.layer_cases import Conv1D, Doubling, Packed, matrix_of
from tests.patching_cases import gated, low_rank, residual, state_of
from tests.test_patching_layers import QUANTISED

X = torch.randn(5, 3, 16, generator=torch.Generator().manual_seed(1))


def bits(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same_bits(model, state):
    now = model.state_dict()
    return now.keys() == state.keys() and all(torch.equal(now[name], state[name]) for name in now)


LAYERS = {
    "linear": lambda: nn.Linear(16, 32),
    "conv1d_of_gpt2": lambda: Conv1D(32, 16),
    "conv1d_of_gpt2_square": lambda: Conv1D(16, 16),
    "linear_square": lambda: nn.Linear(16, 16),
    "conv_1x1": lambda: nn.Conv2d(16, 32, 1),
    "lora_wrapped": lambda: Doubling(nn.Linear(16, 32)),
}


class TestFuse:
    @pytest.mark.parametrize("form", LAYERS)
    def test_the_weight_becomes_the_rounded_sum_and_comes_back(self, form):
        torch.manual_seed(0)
        layer = LAYERS[form]()
        inner = getattr(layer, "base_layer", layer)
        before, state = matrix_of(inner), bits(layer)
        edit = low_rank(16, len(before))
        fuse_(layer, edit)
        exact = before + edit.up.double() @ edit.down.double()
        assert torch.equal(matrix_of(inner), exact.float().double())
        assert unfuse_(layer) == 1
        assert same_bits(layer, state)
        assert unfuse_(layer) == 0

    def test_fused_equals_attached(self):
        model = residual()
        edits = {"inner": [low_rank(16, 32), low_rank(16, 32, 1)], "outer": low_rank(32, 16)}
        with attach(model, edits):
            attached = model(X)
        before, base = state_of(model), model(X)
        fuse_(model, edits)
        torch.testing.assert_close(model(X), attached, rtol=1e-4, atol=1e-5)
        unfuse_(model)
        assert torch.equal(model(X), base)
        assert state_of(model) == before

    def test_rows_of_a_fused_projection(self):
        layer = residual().inner
        weight, first, second = layer.weight.clone(), low_rank(16, 8), low_rank(16, 20)
        fuse_(Projection(layer, slice(4, 12)), first)
        torch.testing.assert_close(layer.weight[4:12], weight[4:12] + first.delta())
        assert torch.equal(layer.weight[:4], weight[:4])
        assert torch.equal(layer.weight[12:], weight[12:])
        unfuse_(layer)
        model = nn.ModuleDict({"qkv": layer})
        fuse_(model, {"qkv[0:8]": first, "qkv[4:24]": second})  # rows 4 to 8 get both
        expected = weight.double()
        expected[0:8] += first.delta().double()
        expected[4:24] += second.delta().double()
        torch.testing.assert_close(layer.weight.double(), expected, rtol=1e-6, atol=1e-7)
        assert unfuse_(model) == 1
        assert torch.equal(layer.weight, weight)

    def test_fusing_again_keeps_the_first_original(self):
        model = residual()
        state = bits(model)
        fuse_(model, {"inner": low_rank(16, 32)})
        fuse_(model, {"inner": low_rank(16, 32, 1), "head": low_rank(16, 8)})
        assert unfuse_(model) == 2
        assert same_bits(model, state)

    def test_it_leaves_no_trace_in_the_state_dict_and_survives_copies(self):
        model = residual()
        state = bits(model)
        fuse_(model, {"inner": low_rank(16, 32)})
        assert model.state_dict().keys() == state.keys()
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        for twin in (copy.deepcopy(model), torch.load(file, weights_only=False)):
            assert unfuse_(twin) == 1
            assert same_bits(twin, state)
        assert not same_bits(model, state)

    def test_fusing_beside_attached_edits(self):
        model, edit, gate = residual(), low_rank(16, 32), gated(16, 32)
        with attach(model, {"inner": [edit, gate]}):
            expected = model(X)
        with attach(model, {"inner": gate}):
            fuse_(model, {"inner": edit})
            torch.testing.assert_close(model(X), expected, rtol=1e-4, atol=1e-5)
            unfuse_(model)

    def test_a_linearised_gated_edit(self):
        layer, edit = residual().inner, gated(16, 32)
        linear = edit.linearised(lambda keys: linear_output(layer, keys))
        fuse_(layer, linear)
        torch.testing.assert_close(
            layer(edit.keys) - layer.bias, edit.targets, rtol=1e-3, atol=1e-4
        )


class TestRounding:
    def test_a_swallowed_edit_warns_with_the_figure(self):
        layer = nn.Linear(16, 32).bfloat16()
        weight, edit = layer.weight.detach().double(), low_rank(16, 32) * 1e-3
        exact = weight + edit.delta().double()
        lost = float((exact.bfloat16().double() - exact).norm() / edit.delta().double().norm())
        with pytest.warns(RankeditWarning, match=re.escape(f"‖/‖ΔW‖ = {lost:.3g}); attach keeps")):
            fuse_(layer, edit)
        assert lost > 0.5
        unfuse_(layer)
        assert torch.equal(layer.weight.double(), weight)

    def test_a_large_enough_edit_does_not_warn(self):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            fuse_(nn.Linear(16, 32).bfloat16(), low_rank(16, 32) * 10)
            fuse_(nn.Linear(16, 32), low_rank(16, 32) * 1e-3)
            fuse_(nn.Linear(16, 32), low_rank(16, 32) * 0.0)
        assert not told

    def test_overflow_is_refused(self):
        layer = nn.Linear(16, 32).half()
        state = bits(layer)
        with pytest.raises(AttachError, match=r"overflows torch\.float16: largest entry"):
            fuse_(layer, low_rank(16, 32) * 1e6)
        assert same_bits(layer, state)


class TestAllOrNothing:
    NAMES = ("inner", "outer", "head")

    @pytest.mark.parametrize("index", range(3))
    @pytest.mark.parametrize("place", ["_change", "_write"])
    def test_a_failure_at_any_layer_leaves_the_model_bitwise(self, monkeypatch, index, place):
        model, calls, original = residual(), [], getattr(fusing, place)
        sizes = {name: model.get_submodule(name) for name in self.NAMES}
        edits = {name: low_rank(at.in_features, at.out_features) for name, at in sizes.items()}
        before = state_of(model)

        def failing(*arguments):
            calls.append(place)
            if len(calls) == index + 1:
                if place == "_write":  # half of the weight is already there
                    arguments[0][0] = 7.0
                raise MemoryError("injected")
            return original(*arguments)

        monkeypatch.setattr(fusing, place, failing)
        with pytest.raises(MemoryError, match="injected"):
            fuse_(model, edits)
        assert state_of(model) == before
        assert unfuse_(model) == 0


class TestRefusals:
    def test_gated_edits(self):
        with pytest.raises(AttachError, match=r"must be a LowRank, got GatedEdit.*linearised"):
            fuse_(residual(), {"inner": gated(16, 32)})

    @pytest.mark.filterwarnings("ignore")
    @pytest.mark.parametrize("form", QUANTISED)
    def test_quantised_weights(self, form):
        torch.manual_seed(0)
        layer = QUANTISED[form][0](nn.Linear(64, 128).requires_grad_(requires_grad=False))
        with pytest.raises(AttachError, match=r"\(quantised.*use attach, which keeps"):
            fuse_(layer, low_rank(64, 128))

    def test_weights_stored_in_eight_bits(self):
        class Upcast(nn.Linear):
            def forward(self, x):
                return nn.functional.linear(x, self.weight.to(x.dtype))

        layer = Upcast(16, 32, bias=False).to(torch.float8_e4m3fn)
        with pytest.raises(AttachError, match=r"weight as torch\.float8_e4m3fn \(quantised\)"):
            fuse_(layer, low_rank(16, 32))

    def test_offloaded_weights(self):
        accelerate = pytest.importorskip("accelerate")
        model = accelerate.cpu_offload(residual(), torch.device("cpu"))
        with pytest.raises(AttachError, match=r"'inner' .*meta device \(offloaded, or not loaded"):
            fuse_(model, {"inner": low_rank(16, 32)})

    def test_layers_without_a_weight(self):
        with pytest.raises(AttachError, match="no parameter of its own called weight"):
            fuse_(Packed(nn.Linear(16, 32)), low_rank(16, 32))
        computed = nn.utils.parametrizations.weight_norm(nn.Linear(16, 32))
        with pytest.raises(AttachError, match="it is computed or packed"):
            fuse_(computed, low_rank(16, 32))

    def test_a_weight_that_is_not_what_the_layer_multiplies_by(self):
        class Scaled(nn.Linear):
            def forward(self, x):
                return nn.functional.linear(x, 3 * self.weight, self.bias)

        with pytest.raises(AttachError, match="is not the matrix that its Scaled multiplies by"):
            fuse_(Scaled(16, 32), low_rank(16, 32))

    def test_tied_weights_need_a_flag(self):
        torch.manual_seed(0)
        model = nn.ModuleDict({"embed": nn.Embedding(50, 16), "lm_head": nn.Linear(16, 50)})
        model["lm_head"].weight = model["embed"].weight
        state, edit = bits(model), {"lm_head": low_rank(16, 50)}
        with pytest.raises(
            AttachError, match=r"shared by \['embed.weight', 'lm_head.weight'\].*tied"
        ):
            fuse_(model, edit)
        assert same_bits(model, state)
        fuse_(model, edit, tied=True)
        assert torch.equal(model["embed"].weight, model["lm_head"].weight)
        unfuse_(model)
        assert same_bits(model, state)
        tokens = torch.arange(5)
        with attach(model, edit):  # the layer alone is edited
            assert torch.equal(model["embed"](tokens), state["embed.weight"][:5])

    def test_one_weight_through_several_layers(self):
        model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
        model[1].weight = model[0].weight
        before, first, second = model[0].weight.detach().clone(), low_rank(8, 8), 2 * low_rank(8, 8)
        with pytest.raises(AttachError, match="'1' is edited as that of another layer, too"):
            fuse_(model, {"0": first, "1": second}, tied=True)
        assert torch.equal(model[0].weight, before)
        fuse_(model, {"0": first}, tied=True)
        with pytest.raises(AttachError, match="name one of the layers that share it"):
            fuse_(model, {"1": second}, tied=True)
        fuse_(model, {"0": second}, tied=True)
        expected = before + first.delta() + second.delta()
        torch.testing.assert_close(model[1].weight.detach(), expected)
        assert unfuse_(model) == 1
        assert torch.equal(model[0].weight, before)

    def test_weights_that_share_part_of_their_storage(self):
        model = nn.ModuleDict({"a": nn.Linear(16, 32, bias=False), "b": nn.Linear(16, 8)})
        model["b"].weight = nn.Parameter(model["a"].weight.detach()[4:12])
        with pytest.raises(AttachError, match=r"shared by \['a.weight', 'b.weight'\]"):
            fuse_(model, {"b": low_rank(16, 8)})
        storage = torch.randn(2, 8, 16)  # neighbours in one storage are not shared
        model["a"].weight, model["b"].weight = nn.Parameter(storage[0]), nn.Parameter(storage[1])
        model["a"].out_features = 8
        fuse_(model, {"b": low_rank(16, 8)})

    def test_one_module_under_two_names(self):
        model = residual()
        model.alias = model.inner
        with pytest.raises(AttachError, match=r"shared by \['inner.weight', 'alias.weight'\]"):
            fuse_(model, {"inner": low_rank(16, 32)})

    def test_names_and_sizes_as_in_attach(self):
        with pytest.raises(ProjectionError, match=r"fuse_: layer 'iner': .*nearest names"):
            fuse_(residual(), {"iner": low_rank(16, 32)})
        with pytest.raises(ShapeError, match="fuse_: the edit of 'inner' must be"):
            fuse_(residual(), {"inner": low_rank(32, 16)})

    def test_fusing_again_after_training(self):
        model = residual()
        fuse_(model, {"inner": low_rank(16, 32)})
        model.inner.weight.mul_(1.001)
        trained, again = bits(model), {"head": low_rank(16, 8), "inner": low_rank(16, 32, 1)}
        with pytest.raises(AttachError, match=r"weight of 'inner' is not what fuse_ left .*force"):
            fuse_(model, again)
        assert same_bits(model, trained)
        fresh = residual()
        fresh.load_state_dict(trained)
        fuse_(fresh, again)
        unfuse_(fresh)
        assert same_bits(fresh, trained)

    @pytest.mark.parametrize("change", ["train", "cast", "load"])
    def test_unfuse_refuses_weights_that_changed_since(self, change):
        model, trained = residual(), residual(1).state_dict()
        state = bits(model)
        fuse_(model, {"inner": low_rank(16, 32), "outer": low_rank(32, 16)})
        if change == "train":
            model.inner.weight.mul_(1.001)
        elif change == "cast":
            model.bfloat16()
        else:
            model.load_state_dict(trained)
        now = bits(model)
        with pytest.raises(AttachError, match=r"that of 'inner', are not what.*force=True"):
            unfuse_(model)
        assert same_bits(model, now)
        assert unfuse_(model, force=True) == 2
        assert torch.equal(model.inner.weight, state["inner.weight"].to(model.inner.weight.dtype))


def test_a_static_edit_of_another_dtype():
    layer, edit = nn.Linear(16, 32), low_rank(16, 32)
    weight = layer.weight.detach().double()
    fuse_(layer, LowRank(edit.up.double(), edit.down.double()))
    exact = weight + edit.up.double() @ edit.down.double()
    assert torch.equal(layer.weight, exact.float())


def _weight_normed(layer):
    nn.utils.parametrizations.weight_norm(layer)


def _pruned(layer):
    prune.identity(layer, "weight")


def _meta(layer):
    layer.to("meta")


def _other_size(layer):
    layer.weight = nn.Parameter(torch.zeros(4, 16))


@pytest.mark.parametrize("force", [True, False])
@pytest.mark.parametrize("change", [_weight_normed, _pruned, _meta, _other_size])
def test_what_cannot_be_put_back_is_told(change, force):
    layer = nn.Linear(16, 8)
    fuse_(layer, low_rank(16, 8))
    change(layer)
    with pytest.raises(AttachError, match=r"unfuse_: .* must have its plain weight \[8, 16\]"):
        unfuse_(layer, force=force)


def test_a_parametrisation_that_was_taken_away_again():
    layer, edit = nn.Linear(16, 8), low_rank(16, 8)
    before = layer.weight.detach().clone()
    fuse_(layer, edit)
    prune.identity(layer, "weight")
    prune.remove(layer, "weight")
    assert unfuse_(layer) == 1
    assert torch.equal(layer.weight, before)


def _inference():
    with torch.inference_mode():
        return torch.randn(8, 16)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support:UserWarning")
@pytest.mark.parametrize(
    ("made", "why"),
    [
        (_inference, "inference mode"),
        (lambda: torch.randn(1, 16).expand(8, 16), "share memory"),
        (lambda: torch.randn(8, 1).expand(8, 16), "share memory"),
        (lambda: torch.randn(30).as_strided((8, 16), (2, 1)), "share memory"),
        (lambda: torch.randn(8, 16).to_sparse_csr(), "sparse_csr"),
        (lambda: torch.randn(8, 16).to_sparse(), "sparse_coo"),
        (lambda: torch.randn(8, 16).to_mkldnn(), "_mkldnn"),
    ],
)
def test_weights_that_cannot_be_written_to(made, why):
    layer = nn.Linear(16, 8).requires_grad_(requires_grad=False)
    layer.weight = nn.Parameter(made(), requires_grad=False)
    with pytest.raises(AttachError, match=f"fuse_: .*{why}.*use attach"):
        fuse_(layer, low_rank(16, 8))


@pytest.mark.parametrize(
    "made",
    [
        lambda: torch.randn(8, 40)[:, ::2][:, :16],
        lambda: torch.randn(16, 8).T,
        lambda: torch._neg_view(torch.randn(8, 16)),
    ],
)
def test_views_are_written_to(made):
    layer, edit = nn.Linear(16, 8), low_rank(16, 8)
    layer.weight = nn.Parameter(made())
    before = layer.weight.detach().clone()
    negative = LowRank(torch._neg_view(-edit.up), edit.down)
    fuse_(layer, negative)
    torch.testing.assert_close(layer.weight.detach(), before + edit.delta())
    unfuse_(layer)
    assert torch.equal(layer.weight, before)
