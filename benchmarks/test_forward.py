"""Forward of a linear layer with gated concepts, against the plain layer and perfusion-pytorch."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rankedit as rk

IN = 768


def _problem(out: int, concepts: int) -> tuple[nn.Linear, rk.GatedEdit, Tensor]:
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(IN, out, bias=False)
    nn.init.normal_(layer.weight, std=IN**-0.5, generator=generator)
    tokens = torch.randn(4 * IN, IN, generator=generator) * torch.logspace(0, -1.5, IN)
    metric = rk.Metric.from_moment(rk.SecondMoment(IN).update(tokens))
    targets = torch.randn(concepts, out, generator=generator)
    edit = rk.GatedEdit(tokens[:concepts], targets, metric, rk.Sigmoid(0.7, 0.15))
    return layer, edit, tokens


def _oracle(layer: nn.Linear, edit: rk.GatedEdit, x: Tensor) -> Tensor:
    x, keys, images = x.double(), edit.keys.double(), edit.images.double()
    gram = images @ keys.T
    opening = torch.sigmoid(((x @ images.T) / gram.diagonal() - 0.7) / 0.15)
    kept = x - torch.linalg.solve(gram, images @ x.transpose(-1, -2)).transpose(-1, -2) @ keys
    return kept @ layer.weight.double().T + opening @ edit.targets.double()


@pytest.mark.parametrize("batch", [2, 8])
@pytest.mark.parametrize("concepts", [1, 4, 16])
@pytest.mark.parametrize("out", [320, 640, 1280])
def test_forward_against_the_plain_layer(versus: Any, out: int, concepts: int, batch: int) -> None:
    layer, edit, tokens = _problem(out, concepts)
    plain = nn.Linear(IN, out, bias=False)
    plain.load_state_dict(layer.state_dict())
    x = tokens[: batch * 77].reshape(batch, 77, IN).contiguous()
    with rk.attach(layer, edit), torch.no_grad():
        torch.testing.assert_close(layer(x).double(), _oracle(plain, edit, x), rtol=1e-3, atol=1e-3)
        versus(
            lambda: layer(x),
            lambda: plain(x),
            what=f"forward {IN}→{out}, {concepts} gated, {batch}x77 tokens",
            peer_name="torch.nn.Linear",
            pairs=101,
            target=1.15 if concepts == 1 and batch == 8 else 1.3,
        )


@pytest.fixture
def peer_class() -> Any:
    # The peer imports open_clip for its text encoder, which this comparison does not touch.
    stub = types.ModuleType("open_clip")
    stub.tokenizer = types.SimpleNamespace(tokenize=None)
    sys.modules.setdefault("open_clip", stub)
    return pytest.importorskip(
        "perfusion_pytorch.perfusion", reason="pip install --no-deps perfusion-pytorch==0.1.23"
    ).Rank1EditModule


@pytest.mark.parametrize("batch", [2, 8])
@pytest.mark.parametrize("out", [320, 640, 1280])
def test_forward_against_perfusion_pytorch(
    versus: Any, peer_class: Any, out: int, batch: int
) -> None:
    layer, edit, tokens = _problem(out, 1)
    metric = rk.Metric.from_moment(rk.SecondMoment(IN).update(tokens))
    covariance = metric.apply(torch.eye(IN))
    peer = peer_class(nn.Linear(IN, out, bias=False), C=covariance.float(), is_key_proj=False)
    peer.weight.data.copy_(layer.weight)
    peer.initted.fill_(True)
    peer.ema_concept_text_encs.copy_(edit.keys)
    peer.concept_outputs.data.copy_(edit.targets)
    peer.eval()
    x = tokens[: batch * 77].reshape(batch, 77, IN).contiguous()
    plain = nn.Linear(IN, out, bias=False)
    plain.load_state_dict(layer.state_dict())
    with rk.attach(layer, edit), torch.no_grad():
        expected = _oracle(plain, edit, x)
        torch.testing.assert_close(layer(x).double(), expected, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(peer(x).double(), expected, rtol=1e-2, atol=1e-2)
        versus(
            lambda: layer(x),
            lambda: peer(x),
            what=f"forward {IN}→{out}, 1 gated, {batch}x77 tokens",
            peer_name="perfusion-pytorch 0.1.23",
            pairs=101,
        )
