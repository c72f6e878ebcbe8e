"""Projections of every kind give K Wᵀ and K W by being run."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rankedit.errors import ProjectionError, ShapeError
from rankedit.linear_outputs import linear_output, linear_output_transposed
from rankedit.models.geometry import Geometry
from rankedit.models.projections import (
    Projection,
    geometry,
    innermost,
    is_projection,
)
from tests.layer_cases import Conv1D, Doubling, Packed, matrix_of

IN, OUT = 12, 20


KINDS = {
    "linear": lambda: nn.Linear(IN, OUT),
    "linear_without_bias": lambda: nn.Linear(IN, OUT, bias=False),
    "conv1d_of_gpt2": lambda: Conv1D(OUT, IN),
    "conv1d_of_gpt2_square": lambda: Conv1D(IN, IN),
    "conv_1x1": lambda: nn.Conv2d(IN, OUT, 1),
    "conv_1x1_stride": lambda: nn.Conv2d(IN, OUT, 1, stride=2),
    "conv_3d": lambda: nn.Conv3d(IN, OUT, 1),
    "lora_wrapped": lambda: Doubling(nn.Linear(IN, OUT)),
    "parametrised": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(IN, OUT)),
}


@pytest.fixture(params=KINDS)
def layer(request):
    torch.manual_seed(0)
    return KINDS[request.param]()


class TestRunning:
    def test_outputs_are_the_keys_times_the_weight(self, layer):
        keys = torch.randn(5, IN, dtype=torch.float64)
        torch.testing.assert_close(
            linear_output(layer, keys), keys @ matrix_of(layer).T, rtol=1e-5, atol=1e-5
        )

    def test_transposed_outputs_are_the_values_times_the_weight(self, layer):
        matrix = matrix_of(layer)
        values = torch.randn(5, len(matrix), dtype=torch.float64)
        torch.testing.assert_close(
            linear_output_transposed(layer, values), values @ matrix, rtol=1e-5, atol=1e-5
        )

    def test_geometry_is_found(self, layer):
        matrix = matrix_of(layer)
        found = geometry(layer)
        assert (found.out_features, found.in_features) == tuple(matrix.shape)

    def test_a_packed_layer_is_run_in_the_dtype_that_it_takes(self):
        torch.manual_seed(0)
        layer = Packed(nn.Linear(IN, OUT))
        keys = torch.randn(5, IN, dtype=torch.float64)
        truth = keys @ matrix_of(layer).T
        assert float((linear_output(layer, keys) - truth).norm() / truth.norm()) < 0.01

    def test_a_layer_without_gradient_is_transposed_by_its_columns(self):
        class Detached(nn.Linear):
            def forward(self, x):
                return super().forward(x.detach()).detach()

        torch.manual_seed(0)
        layer, values = Detached(IN, OUT), torch.randn(3, OUT, dtype=torch.float64)
        torch.testing.assert_close(
            linear_output_transposed(layer, values),
            values @ layer.weight.detach().double(),
            rtol=1e-5,
            atol=1e-5,
        )

    def test_small_keys_do_not_drown_in_the_bias(self):
        torch.manual_seed(0)
        layer = nn.Linear(IN, OUT)
        nn.init.constant_(layer.bias, 100.0)
        keys = torch.randn(5, IN, dtype=torch.float64) * 1e-9
        truth = keys @ layer.weight.detach().double().T
        error = (linear_output(layer, keys) - truth).norm() / truth.norm()
        assert float(error) < 1e-4  # of float32 beside a bias of 100; naively it is 1e7

    def test_autocast_and_dropout_are_off_and_training_mode_stays(self):
        torch.manual_seed(0)
        layer = Doubling(nn.Linear(IN, OUT)).train()
        keys = torch.randn(5, IN)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            outputs = linear_output(layer, keys)
        torch.testing.assert_close(
            outputs, keys.double() @ matrix_of(layer).T, rtol=1e-5, atol=1e-5
        )
        assert all(part.training for part in layer.modules())
        assert all(parameter.requires_grad for parameter in layer.parameters())

    def test_gradients_reach_the_keys_and_not_the_layer(self):
        layer = nn.Linear(IN, OUT)
        keys = torch.randn(2, IN, requires_grad=True)
        linear_output(layer, keys).sum().backward()
        torch.testing.assert_close(keys.grad, layer.weight.detach().sum(0).expand(2, -1))
        assert layer.weight.grad is None
        assert not linear_output(layer, keys.detach()).requires_grad

    def test_it_works_in_inference_mode(self):
        layer, values = nn.Linear(IN, OUT), torch.randn(2, OUT)
        with torch.inference_mode():
            result = linear_output_transposed(layer, values)
        torch.testing.assert_close(
            result.float(), values @ layer.weight.detach(), rtol=1e-5, atol=1e-5
        )

    def test_forward_hooks_do_not_see_the_keys(self):
        layer, seen = nn.Linear(IN, OUT), []
        layer.register_forward_hook(lambda *_: seen.append(1))
        linear_output(layer, torch.randn(2, IN))
        assert not seen

    def test_keys_of_another_width_are_refused(self):
        with pytest.raises(ShapeError, match=r"Projection\.outputs: keys must .* \[n, 12\]"):
            linear_output(nn.Linear(IN, OUT), torch.randn(2, IN + 1))
        with pytest.raises(ShapeError, match=r"outputs_transposed: values .* \[n, 20\]"):
            linear_output_transposed(nn.Linear(IN, OUT), torch.randn(2, IN))

    def test_a_layer_that_cannot_be_run_says_why(self):
        class Broken(nn.Linear):
            def forward(self, x):
                raise RuntimeError("the kernel is missing")

        with pytest.raises(ProjectionError, match=r"could not be run on rows.*kernel is missing"):
            linear_output(Broken(IN, OUT), torch.randn(2, IN))

    def test_meta_weights_that_nothing_loads_are_refused(self):
        layer = nn.Linear(IN, OUT, device="meta")
        with pytest.raises(ProjectionError, match="meta device and no offloading hook"):
            linear_output(layer, torch.randn(2, IN))


class TestGeometry:
    @pytest.mark.parametrize(
        "module",
        [
            nn.ReLU(),
            nn.LayerNorm(IN),
            nn.Embedding(IN, OUT),
            nn.Bilinear(IN, IN, OUT),
            nn.LSTM(IN, OUT),
            nn.MultiheadAttention(IN, 2),
            nn.Sequential(nn.Linear(IN, OUT)),
            nn.Dropout(),
        ],
        ids=lambda module: type(module).__name__,
    )
    def test_other_modules_are_not_projections(self, module):
        assert not is_projection(module)
        with pytest.raises(ProjectionError, match="is not a projection: expected a module"):
            geometry(module)

    def test_a_nonlinear_layer_with_a_matrix_is_not_a_projection(self):
        class Squashed(Conv1D):
            def forward(self, x):
                return super().forward(x).tanh()

        assert not is_projection(Squashed(OUT, IN))

    @pytest.mark.parametrize(
        "layer",
        [
            nn.Conv2d(IN, OUT, 3),
            nn.Conv2d(IN, OUT, 1, padding=1),
            nn.Conv2d(IN, OUT, 1, groups=2),
            nn.ConvTranspose2d(IN, OUT, 1),
        ],
    )
    def test_other_convolutions_are_refused(self, layer):
        with pytest.raises(ProjectionError, match="if its kernel is 1x1, without padding"):
            geometry(layer)

    def test_a_lazy_layer_must_run_first(self):
        with pytest.raises(ProjectionError, match="run a lazy layer once"):
            geometry(nn.LazyLinear(OUT))

    def test_rows_of_an_image_and_back(self):
        layout, image = Geometry(IN, OUT, (2, 1)), torch.randn(3, IN, 6, 5)
        rows = layout.to_rows(image)
        assert rows.shape == (3, 3, 5, IN)
        assert torch.equal(layout.from_rows(rows), image[:, :, ::2])

    def test_innermost_follows_base_layers(self):
        layer = nn.Linear(IN, OUT)
        assert innermost(Doubling(layer)) is layer
        assert innermost(layer) is layer


class TestViews:
    def test_parts_of_a_fused_projection(self):
        torch.manual_seed(0)
        layer, keys = nn.Linear(IN, 24), torch.randn(3, IN, dtype=torch.float64)
        weight = layer.weight.detach().double()
        parts = Projection(layer).split(4, 8, 12)
        assert [part.out_features for part in parts] == [4, 8, 12]
        values = torch.randn(3, 8, dtype=torch.float64)
        torch.testing.assert_close(
            linear_output(parts[1], keys), keys @ weight[4:12].T, rtol=1e-5, atol=1e-5
        )
        torch.testing.assert_close(
            linear_output_transposed(parts[1], values), values @ weight[4:12], rtol=1e-5, atol=1e-5
        )
        assert [part.bounds for part in parts[2].split(6, 6)] == [(12, 18), (18, 24)]

    @pytest.mark.parametrize("rows", [slice(0, 25), slice(5, 5), slice(-3, 4), slice(0, 8, 2)])
    def test_rows_outside_the_layer_are_refused(self, rows):
        with pytest.raises(ProjectionError, match=r"rows must be a slice.*there are 24"):
            Projection(nn.Linear(IN, 24), rows)

    @pytest.mark.parametrize("sizes", [(8, 8), (8, 17), (24, 0), ()])
    def test_split_sizes_must_add_up(self, sizes):
        with pytest.raises(ProjectionError, match="positive sizes that add up to 24"):
            Projection(nn.Linear(IN, 24)).split(*sizes)
