"""Attached edits on layers whose weight is elsewhere or packed: offloaded, 8 and 4 bit, GPT-2."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn

from rankedit import Metric, linear_output, solve_edit
from rankedit.linear_outputs import linear_output_transposed
from rankedit.models.patching import attach, detach_all
from rankedit.models.projections import Projection, fingerprint, geometry
from tests.patching_cases import KINDS, added_to, low_rank, residual, state_of

X = torch.randn(5, 3, 16, generator=torch.Generator().manual_seed(1))
EDITS = {"low_rank": KINDS["low_rank"], "gated": KINDS["gated"]}


@pytest.fixture(params=EDITS)
def edits(request):
    make = EDITS[request.param]
    return {"inner": make(16, 32), "outer": make(32, 16), "head": [make(16, 8)] * 2}


def edited_output(edits):
    """What the plain model gives with the edits: what every form below must give."""
    model = residual()
    with attach(model, edits):
        return model(X)


def cpu_offload(model):
    from accelerate import cpu_offload

    return cpu_offload(model, torch.device("cpu"))


def cpu_offload_with_buffers(model):
    from accelerate import cpu_offload

    return cpu_offload(model, torch.device("cpu"), offload_buffers=True)


def dispatch_to_disk(model, folder):
    from accelerate import dispatch_model

    device_map = {"inner": "cpu", "outer": "disk", "head": "disk"}
    return dispatch_model(model, device_map, main_device="cpu", offload_dir=str(folder))


OFFLOADING = ["cpu", "cpu_with_buffers", "disk"]


def offload(how, model, folder):
    if how == "disk":
        return dispatch_to_disk(model, folder)
    return {"cpu": cpu_offload, "cpu_with_buffers": cpu_offload_with_buffers}[how](model)


@pytest.mark.parametrize("how", OFFLOADING)
class TestOffload:
    """accelerate's hooks; the weights are on the meta device between forwards."""

    def test_attached_after_offloading(self, how, edits, tmp_path):
        pytest.importorskip("accelerate")
        model = offload(how, residual(), tmp_path)
        base, before = model(X), state_of(model)
        assert model.outer.weight.is_meta
        with attach(model, edits):
            torch.testing.assert_close(model(X), edited_output(edits))
            assert model.outer.weight.is_meta
        assert torch.equal(model(X), base)
        assert state_of(model).keys() == before.keys()
        assert type(model.outer) is nn.Linear

    def test_attached_before_offloading(self, how, edits, tmp_path):
        pytest.importorskip("accelerate")
        model = residual()
        base, attachment = model(X), attach(model, edits)
        offload(how, model, tmp_path)
        assert model.outer.weight.is_meta
        torch.testing.assert_close(model(X), edited_output(edits))
        attachment.set(strength=0.0)
        assert torch.equal(model(X), base)
        attachment.detach()
        assert torch.equal(model(X), base)
        assert type(model.outer) is nn.Linear
        with attach(model, edits):
            torch.testing.assert_close(model(X), edited_output(edits))

    def test_hooks_removed_while_attached(self, how, edits, tmp_path):
        accelerate = pytest.importorskip("accelerate")
        model = residual()
        base = model(X)
        offload(how, model, tmp_path)
        attachment = attach(model, edits)
        accelerate.hooks.remove_hook_from_module(model, recurse=True)
        torch.testing.assert_close(model(X), edited_output(edits))
        attachment.detach()
        assert torch.equal(model(X), base)
        with attach(model, edits):
            torch.testing.assert_close(model(X), edited_output(edits))

    def test_running_and_fingerprint(self, how, tmp_path):
        pytest.importorskip("accelerate")
        plain = residual()
        model = offload(how, residual(), tmp_path)
        keys, values = torch.randn(4, 32), torch.randn(4, 16)
        assert torch.equal(linear_output(model.outer, keys), linear_output(plain.outer, keys))
        torch.testing.assert_close(
            linear_output_transposed(model.outer, values),
            linear_output_transposed(plain.outer, values),
        )
        assert fingerprint(model.outer) == fingerprint(plain.outer)

    def test_a_deepcopy_is_independent(self, how, edits, tmp_path):
        pytest.importorskip("accelerate")
        if how == "disk":
            pytest.skip("accelerate's disk map cannot be deep-copied, edited or not")
        model = offload(how, residual(), tmp_path)
        base = model(X)
        with attach(model, edits):
            twin = copy.deepcopy(model)
        torch.testing.assert_close(twin(X), edited_output(edits))
        assert torch.equal(model(X), base)
        detach_all(twin)
        assert torch.equal(twin(X), base)


def bitsandbytes(bits):
    def quantise(source):
        bnb = pytest.importorskip("bitsandbytes")
        size = source.in_features, source.out_features, source.bias is not None
        if bits == 8:
            layer = bnb.nn.Linear8bitLt(*size, has_fp16_weights=False)
        else:
            layer = bnb.nn.Linear4bit(*size, quant_type="nf4")
        layer.load_state_dict(source.state_dict())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # bitsandbytes' own, on quantising
            return layer.to("cpu")

    return quantise


def torchao(name):
    def quantise(source):
        quantization = pytest.importorskip("torchao.quantization")
        model = nn.Sequential(copy.deepcopy(source))
        quantization.quantize_(model, getattr(quantization, name)())
        return model[0]

    return quantise


QUANTISED = {
    "bitsandbytes_8": (bitsandbytes(8), 0.02),
    "bitsandbytes_4": (bitsandbytes(4), 0.2),
    "torchao_int8_weights": (torchao("Int8WeightOnlyConfig"), 0.02),
    "torchao_int8_dynamic": (torchao("Int8DynamicActivationInt8WeightConfig"), 0.03),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", QUANTISED)
class TestQuantised:
    """The weight is packed: the layer is run, and the edit stays beside it in float32."""

    @pytest.fixture(params=[True, False], ids=["training", "evaluation"], autouse=True)
    def _mode(self, request):
        self.training = request.param

    def layers(self, form):
        torch.manual_seed(0)
        source = nn.Linear(64, 128).requires_grad_(requires_grad=False)
        quantise, error = QUANTISED[form]
        layer = quantise(source).train(self.training)
        return source, layer, error

    def test_running_it_gives_the_quantised_weight(self, form):
        source, layer, error = self.layers(form)
        keys, values = torch.randn(4, 64), torch.randn(4, 128)
        for function, rows in ((linear_output, keys), (linear_output_transposed, values)):
            truth = function(source, rows)
            assert float((function(layer, rows) - truth).norm() / truth.norm()) < error
        assert (geometry(layer).in_features, geometry(layer).out_features) == (64, 128)
        assert fingerprint(layer) == fingerprint(layer) != fingerprint(source)

    @pytest.mark.parametrize("make", EDITS.values(), ids=EDITS)
    def test_an_edit_adds_exactly_what_it_should(self, form, make):
        _, layer, _ = self.layers(form)
        x, edit = torch.randn(7, 64), make(64, 128)
        base, cls = layer(x), type(layer)
        columns = Projection(layer).outputs(torch.eye(64)).T
        with attach(layer, edit):
            difference = layer(x) - base
            assert isinstance(layer, cls)
        truth = added_to(columns, edit, x)
        assert float((difference - truth).norm() / truth.norm()) < 0.01
        assert torch.equal(layer(x), base)
        assert type(layer) is cls

    def test_a_gated_edit_gives_its_target_at_its_key(self, form):
        """Where it matters that the layer was run and not its weight read."""
        _, layer, _ = self.layers(form)
        keys = torch.randn(2, 64)
        metric = Metric.identity(64)
        goal = torch.randn(2, 128)
        edit = solve_edit(layer, keys, goal, metric)
        bias = layer(torch.zeros(1, 64))
        with attach(layer, edit):
            error = (layer(keys) - bias - goal).norm() / goal.norm()
        assert float(error) < 0.02

    def test_state_dict_is_that_of_the_layer(self, form):
        _, layer, _ = self.layers(form)
        names = list(layer.state_dict())
        with attach(layer, low_rank(64, 128)):
            assert list(layer.state_dict()) == names


class TestGPT2:
    def test_conv1d_of_transformers(self):
        transformers = pytest.importorskip("transformers")
        torch.manual_seed(0)
        config = transformers.GPT2Config(
            n_layer=2, n_embd=32, n_head=2, vocab_size=50, n_positions=16
        )
        model = transformers.GPT2LMHeadModel(config).eval()
        tokens = torch.arange(8)[None]
        layer = model.transformer.h[1].mlp.c_proj
        keys, values = torch.randn(2, 128), torch.randn(2, 32)
        edit = solve_edit(layer, keys, values, Metric.identity(128))
        with torch.no_grad():
            base = model(tokens).logits
            with attach(model, {"transformer.h.1.mlp.c_proj": edit}):
                assert not torch.allclose(model(tokens).logits, base)
                torch.testing.assert_close(layer(keys) - layer.bias, values, rtol=1e-4, atol=1e-5)
            assert torch.equal(model(tokens).logits, base)

    @pytest.mark.parametrize("make", EDITS.values(), ids=EDITS)
    def test_save_pretrained_saves_the_bare_model(self, tmp_path, make):
        transformers = pytest.importorskip("transformers")
        torch.manual_seed(0)
        config = transformers.GPT2Config(
            n_layer=1, n_embd=32, n_head=2, vocab_size=50, n_positions=16
        )
        model = transformers.GPT2LMHeadModel(config).eval()
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        with attach(model, {"transformer.h.0.mlp.c_fc": make(32, 128)}):
            model.save_pretrained(tmp_path)
        loaded = transformers.GPT2LMHeadModel.from_pretrained(tmp_path).state_dict()
        assert loaded.keys() == state.keys()
        assert all(torch.equal(loaded[name], state[name]) for name in state)
