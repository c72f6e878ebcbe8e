"""A sketch tells how far apart weights are, whatever precision they are in."""

from __future__ import annotations

import base64
import math

import numpy as np
import pytest
import torch
from torch import nn

import rankedit as rk
from rankedit.models.sketches import LENGTH, MOST
from tests.layer_cases import Doubling


def layers(seed=0, *, dtype=torch.float32, sizes=((40, 24), (64, 96), (7, 5))):
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for index, (out, width) in enumerate(sizes):
        layer = nn.Linear(width, out).requires_grad_(requires_grad=False)
        layer.weight.copy_(torch.randn(out, width, generator=generator))
        made[f"layer.{index}"] = layer.to(dtype)
    return made


def moved(own, by, seed=1):
    """The layers with weights moved by a part of their size, and how far that is."""
    flat = torch.cat([layer.weight.flatten() for layer in own.values()]).double()
    other = layers(seed)
    for name, layer in other.items():
        layer.weight.copy_(own[name].weight + by * layer.weight)
    new = torch.cat([layer.weight.flatten() for layer in other.values()]).double()
    return other, float((flat - new).norm() / max(flat.norm(), new.norm()))


def test_it_is_the_documented_sum():
    own = layers()
    total = np.zeros(LENGTH)
    for number, name in enumerate(sorted(own)):
        flat = own[name].weight.numpy().ravel().astype(float)
        words = np.random.Philox(key=number).random_raw(math.ceil(len(flat) / 64))
        for i, value in enumerate(flat):
            byte = int(words[i // 64]) >> (8 * (i // 8 % 8)) & 0xFF
            total[i % LENGTH] += value if byte >> (7 - i % 8) & 1 else -value
    size = math.sqrt(sum(float(layer.weight.double().norm()) ** 2 for layer in own.values()))
    made = rk.Sketch.of(own)
    np.testing.assert_allclose(made.numbers, total / size, atol=1e-6)
    assert made.norm == pytest.approx(size)


@pytest.mark.parametrize("by", [1e-3, 0.03, 0.5, 3.0])
def test_distances_are_those_of_the_weights(by):
    ratios = []
    for seed in range(40):
        own = layers(2 * seed)
        other, apart = moved(own, by, 2 * seed + 1)
        ratios.append(rk.Sketch.of(own).distance(rk.Sketch.of(other)) / apart)
    # The standard error of one is 1/8; of the mean of forty squares it is 0.04.
    assert np.mean(np.square(ratios)) == pytest.approx(1, abs=0.16)
    assert 0.5 < min(ratios) < max(ratios) < 1.5


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 3e-3), (torch.float16, 4e-4)])
def test_precisions_are_close_where_fingerprints_differ(dtype, bound):
    full, half = layers(), layers(dtype=dtype)
    assert rk.fingerprint(full["layer.0"]) != rk.fingerprint(half["layer.0"])
    assert 0 < rk.Sketch.of(full).distance(rk.Sketch.of(half)) < bound


def test_size_and_names_matter_but_not_the_order_of_the_mapping():
    own, scaled = layers(sizes=((8, 8), (8, 8))), layers(sizes=((8, 8), (8, 8)))
    for layer in scaled.values():
        layer.weight.mul_(1.25)
    first = rk.Sketch.of(own)
    apart = first.distance(rk.Sketch.of(scaled))
    assert apart == pytest.approx(0.2 * np.linalg.norm(first.numbers))
    assert apart == rk.Sketch.of(scaled).distance(first)
    assert first == rk.Sketch.of(dict(reversed(own.items())))
    exchanged = dict(zip(own, reversed(own.values()), strict=True))
    assert first.distance(rk.Sketch.of(exchanged)) > 0.5


def test_wrappers_do_not_enter():
    own = layers()
    wrapped = {name: Doubling(layer) for name, layer in own.items()}
    assert rk.Sketch.of(own) == rk.Sketch.of(wrapped)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8, torch.uint8])
def test_quantised_weights_have_none(dtype):
    own = layers()
    own["layer.1"].weight = nn.Parameter(own["layer.1"].weight.to(dtype), requires_grad=False)
    assert rk.Sketch.of(own) is None


def test_weights_with_scales_beside_them_have_none():
    # Four bits in the guise of bfloat16, as bitsandbytes keeps them for sharding.
    own = layers(dtype=torch.bfloat16)
    assert rk.Sketch.of(own) is not None
    own["layer.1"].register_buffer("absmax", torch.ones(3))
    own["layer.1"]._buffers["weight.absmax"] = own["layer.1"]._buffers.pop("absmax")
    assert rk.Sketch.of(own) is None


def test_of_a_large_weight_rows_are_read():
    large = nn.Linear(1 << 9, 1 << 10, bias=False).requires_grad_(requires_grad=False)
    part = nn.Linear(1 << 9, 1 << 9, bias=False).requires_grad_(requires_grad=False)
    assert large.weight.numel() == 2 * MOST
    part.weight.copy_(large.weight[::2])
    assert rk.Sketch.of({"a": large}) == rk.Sketch.of({"a": part})


def test_text_is_read_back():
    own = rk.Sketch.of(layers())
    again = rk.Sketch.parse(own.text())
    assert own.distance(again) < 3e-4
    assert again.text() == own.text()
    assert len(own.text()) == 92


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        "aGVsbG8=",
        base64.b64encode(b"\xff" * (2 * LENGTH + 4)).decode(),
        "ä" * 92,
        base64.b64encode(bytes(2 * LENGTH + 4)).decode(),
    ],
)
def test_other_text_is_refused(text):
    with pytest.raises(ValueError, match=r"Sketch\.parse"):
        rk.Sketch.parse(text)


def test_what_has_no_size_is_refused():
    own = layers()
    for layer in own.values():
        layer.weight.zero_()
    with pytest.raises(rk.ProjectionError, match="3 layers were given and all their weights"):
        rk.Sketch.of(own)
    with pytest.raises(rk.ProjectionError, match="0 layers"):
        rk.Sketch.of({})
    own["layer.1"].weight[0, 0] = math.nan
    with pytest.raises(rk.ProjectionError, match=r"weight of 'layer\.1' is not finite"):
        rk.Sketch.of(own)
